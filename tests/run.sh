#!/usr/bin/env bash
# Runs every test of the workspace against real Kubernetes control planes.
#
# Needs what kind-clusters/demo.sh needs, and ssh, sshd and curl. Builds kube-apiserver, kube-controller-manager, kubectl, etcd, kustomize and yq once, into a cache
# outside the checkout. Arguments go to `cargo test`. With CI=true a test that lacks something fails
# where it would otherwise say that it was skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

talk() { printf 'attest: %s\n' "$*" >&2; }

bash kind-clusters/tools/needs.sh ssh=openssh-client sshd=openssh-server curl=curl
export PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin:/usr/sbin
# sshd, started by root, insists on this directory; only its service would make it.
[ "$(id -u)" != 0 ] || mkdir -p /run/sshd

talk "looking for Kubernetes, kustomize and yq"
directories=$(bash kind-clusters/tools/build.sh kustomize yq)
export ATTEST_KUBE_BIN=${directories%%:*}
export PATH=$directories:$PATH
talk "Kubernetes programs in $ATTEST_KUBE_BIN"

started=$SECONDS
talk "building attest, attest-hub and attest-spoke"
cargo build --workspace --bins --locked
talk "built in $((SECONDS - started)) s; building the tests"
started=$SECONDS
cargo test --workspace --locked --no-run
talk "built in $((SECONDS - started)) s; running the tests (about 10 minutes, slowest those of \`cluster\`)"
exec cargo test --workspace --locked "$@"
