#!/usr/bin/env bash
# What a fresh machine lacks to build and run the project: Rust is asked for; Debian packages are
# installed when this is root, else named. More commands to look for are arguments, as COMMAND=PACKAGE.
set -euo pipefail

talk() { printf 'attest: %s\n' "$*" >&2; }

export PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin:/usr/sbin:/usr/local/go/bin
command -v cargo >/dev/null || { talk "no cargo: install Rust from https://rustup.rs"; exit 1; }
missing=()
for need in git=git cc=build-essential "$@"; do
  command -v "${need%%=*}" >/dev/null || missing+=("${need#*=}")
done
# An old Go is as good as none: then the toolchain comes as a Python wheel.
. "$(dirname "${BASH_SOURCE[0]}")/go.sh"
go_here "${ATTEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/attest-kube}" >/dev/null \
  || python3 -c 'import ensurepip' 2>/dev/null || python3 -c 'import pip' 2>/dev/null || missing+=(python3-venv)
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  talk "install these first: ${missing[*]}"
  exit 1
fi
talk "installing ${missing[*]}"
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  # A machine that runs tests serves no ssh.
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
  trap 'rm -f /usr/sbin/policy-rc.d' EXIT
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
