#!/usr/bin/env bash
# Runs the demo on real API servers: a hub, two clusters, a signed commit, and attacks by a compromised hub.
#
# Requires Rust. As root on Debian, installs git, a C compiler and Python if they are missing. Builds the
# Kubernetes programs (once, about 12 minutes on two cores) and ATTEST, then starts the demo.
# Arguments are passed to the demo: --once exits after the last step, --help lists all options.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

info() { printf 'attest: %s\n' "$*" >&2; }

bash kind-clusters/tools/needs.sh
export PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin

directories=$(bash kind-clusters/tools/build.sh)
export ATTEST_KUBE_BIN=${directories%%:*}
export PATH=$directories:$PATH
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/attest/target}
info "building attest, attest-hub, attest-spoke and the demo (a few minutes the first time)"
bash kind-clusters/tools/cargo.sh build --workspace --bins --locked
export ATTEST_PROGRAMS=$CARGO_TARGET_DIR/debug
exec "$CARGO_TARGET_DIR/debug/attest-demo" "$@"
