#!/usr/bin/env bash
# Runs every test of the workspace against real Kubernetes control planes.
#
# Builds kube-apiserver, kube-controller-manager, kubectl, etcd, kustomize and yq once, into a cache
# outside the checkout. Arguments go to `cargo test`. With CI=true a test that lacks something fails
# where it would otherwise say that it was skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

talk() { printf 'attest: %s\n' "$*" >&2; }

directories=$(bash kind-clusters/tools/build.sh kustomize yq)
export ATTEST_KUBE_BIN=${directories%%:*}
export PATH=$directories:$PATH
talk "Kubernetes programs in $ATTEST_KUBE_BIN"

started=$SECONDS
talk "building attest, attest-hub and attest-spoke"
cargo build --workspace --bins --locked
talk "built in $((SECONDS - started)) s; running the tests"
exec cargo test --workspace --locked "$@"
