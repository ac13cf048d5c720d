#!/usr/bin/env bash
# The main job on real API servers: a hub and two clusters, one signed commit, and what a hub cannot do.
#
# Needs Rust. Installs git, a C compiler and Python where it is root on Debian and they are missing, builds
# the rest (Kubernetes once, about 12 minutes on two cores; ATTEST itself), then runs the demo.
# Arguments go to it: --once ends it after the last step, --help says more.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

talk() { printf 'attest: %s\n' "$*" >&2; }

bash kind-clusters/tools/needs.sh
export PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin

directories=$(bash kind-clusters/tools/build.sh)
export ATTEST_KUBE_BIN=${directories%%:*}
export PATH=$directories:$PATH
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/attest/target}
talk "building attest, attest-hub, attest-spoke and the demo (a few minutes the first time)"
cargo build --quiet --workspace --bins --locked
export ATTEST_PROGRAMS=$CARGO_TARGET_DIR/debug
exec "$CARGO_TARGET_DIR/debug/attest-demo" "$@"
