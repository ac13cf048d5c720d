#!/usr/bin/env bash
# Stops every cluster that up.sh started and removes its data.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec cargo run --quiet --locked --manifest-path "$here/../Cargo.toml" \
  --package attest-tests --bin attest-clusters -- \
  down --dir "${ATTEST_CLUSTERS_DIR:-$here/../.attest-demo/clusters}"
