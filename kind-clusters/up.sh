#!/usr/bin/env bash
# Starts Kubernetes control planes on loopback, without Docker, and leaves them running.
#
#   kind-clusters/up.sh                  hub, staging and production
#   kind-clusters/up.sh 2                the first two of them; from the fourth on, names are cluster-4, …
#   kind-clusters/up.sh blue green       clusters with these names
#
# Running clusters are left unchanged. Prints one line per cluster: its name, a tab, and its kubeconfig
# (context <name>-cluster). Files are in $ATTEST_CLUSTERS_DIR, by default .attest-demo/clusters of the
# checkout. If $ATTEST_SPOKE is set, pods with an image named attest-spoke run that program.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

names=(hub staging production)
if [ $# -eq 1 ] && [[ $1 =~ ^[0-9]+$ ]]; then
  for ((number = ${#names[@]} + 1; number <= $1; number++)); do names+=("cluster-$number"); done
  names=("${names[@]:0:$1}")
elif [ $# -gt 0 ]; then
  names=("$@")
fi
[ ${#names[@]} -gt 0 ] || { echo "attest: the number of clusters must be at least 1" >&2; exit 3; }

directories=$(bash "$here/tools/build.sh")
export ATTEST_KUBE_BIN=${directories%%:*}
arguments=(up --detach --dir "${ATTEST_CLUSTERS_DIR:-$here/../.attest-demo/clusters}")
arguments+=(--names "$(IFS=,; echo "${names[*]}")")
[ -z "${ATTEST_SPOKE:-}" ] || arguments+=(--run "attest-spoke=$ATTEST_SPOKE")
program=(--locked --manifest-path "$here/../Cargo.toml" --package attest-tests --bin attest-clusters)
bash "$here/tools/cargo.sh" build "${program[@]}"
exec cargo run --quiet "${program[@]}" -- "${arguments[@]}"
