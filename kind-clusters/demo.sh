#!/usr/bin/env bash
# The main job on real API servers: a hub and two clusters, one signed commit, and what a hub cannot do.
#
# Builds what is missing (Kubernetes once, about 12 minutes on two cores; ATTEST itself), then runs the demo.
# Arguments go to it: --once ends it after the last step, --help says more.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

talk() { printf 'attest: %s\n' "$*" >&2; }

missing=()
command -v cargo >/dev/null || { talk "no cargo: install Rust from https://rustup.rs"; exit 1; }
command -v git >/dev/null || missing+=(git)
command -v cc >/dev/null || missing+=(build-essential)
command -v go >/dev/null || python3 -c 'import ensurepip' 2>/dev/null || python3 -c 'import pip' 2>/dev/null || missing+=(python3-venv)
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    talk "installing ${missing[*]}"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  else
    talk "install these first: ${missing[*]}"
    exit 1
  fi
fi

directories=$(bash kind-clusters/tools/build.sh)
export ATTEST_KUBE_BIN=${directories%%:*}
export PATH=$directories:$PATH
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/attest/target}
talk "building attest, attest-hub, attest-spoke and the demo (a few minutes the first time)"
cargo build --quiet --workspace --bins --locked
export ATTEST_PROGRAMS=$CARGO_TARGET_DIR/debug
exec "$CARGO_TARGET_DIR/debug/attest-demo" "$@"
