#!/usr/bin/env bash
# Runs every test of the workspace against real Kubernetes control planes.
#
# Requires what kind-clusters/demo.sh requires, and ssh, sshd, curl and openssl. Builds kube-apiserver,
# kube-controller-manager, kubectl, etcd, kustomize, yq, helm (4 and 3) and kube-reader once, into a cache outside the checkout.
# Fetches test vectors with pip, where there is pip.
# Arguments are passed to `cargo test`. A test that lacks a program is skipped; with CI=true it fails.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

info() { printf 'attest: %s\n' "$*" >&2; }

bash kind-clusters/tools/needs.sh ssh=openssh-client sshd=openssh-server curl=curl openssl=openssl
export PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin:/usr/sbin
# sshd requires this directory when it runs as root; normally its service creates it.
[ "$(id -u)" != 0 ] || mkdir -p /run/sshd

info "looking for Kubernetes, kustomize, yq and helm"
directories=$(bash kind-clusters/tools/build.sh kustomize yq helm helm3 kube-reader)
export ATTEST_KUBE_BIN=${directories%%:*}
export PATH=$directories:$PATH
info "Kubernetes programs in $ATTEST_KUBE_BIN"
ATTEST_TEST_VECTORS=$(bash kind-clusters/tools/vectors.sh)
export ATTEST_TEST_VECTORS

started=$SECONDS
info "building attest, attest-hub and attest-spoke"
bash kind-clusters/tools/cargo.sh build --workspace --bins --locked
info "built in $((SECONDS - started)) s; building the tests"
started=$SECONDS
bash kind-clusters/tools/cargo.sh test --workspace --locked --no-run
info "built in $((SECONDS - started)) s; running the tests (about 10 minutes, mostly for \`cluster\`)"
# Most tests wait for processes half of the time.
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$((2 * $(nproc)))}
exec cargo test --workspace --locked "$@"
