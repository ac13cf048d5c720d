#!/usr/bin/env bash
# Renders deploy/rbac and deploy/controller from the chart, for `kubectl apply -f`. A test compares them.
#
#   charts/render.sh [DIRECTORY]     deploy/ of the checkout by default
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
output=${1:-$here/../deploy}
namespace=attest-system

mkdir -p "$output/rbac/as-documented" "$output/controller"
find "$output/rbac" "$output/controller" -name '*.yaml' -delete

# The chart is installed into a namespace that Helm creates; here, the first file creates it.
cat >"$output/rbac/00-namespace.yaml" <<EOF
apiVersion: v1
kind: Namespace
metadata:
  name: $namespace
  labels:
    name: $namespace
    app.kubernetes.io/part-of: attest
    pod-security.kubernetes.io/enforce: restricted
EOF

# One file for each template. Helm's own labels and annotations are left out.
helm template attest-gitops "$here/gitops-controller" --namespace "$namespace" --skip-tests --set crds.install=false |
  sed -e '/app.kubernetes.io\/managed-by: Helm$/d' |
  awk -v output="$output" '
    /^---$/ { next }
    /^# Source: / {
      name = $3; sub(".*/", "", name)
      directory = name ~ /^(serviceaccount|rbac|user-roles)\.yaml$/ ? "rbac" : "controller"
      file = output "/" directory "/" name
      if (seen[file]++) print "---" >file
      next
    }
    file != "" && /^$/ { next }
    file != "" { print >file }
  '

# Not applied with the directory: `kubectl apply -f` does not descend into it.
cp "$here/gitops-controller/files/as-documented.yaml" "$output/rbac/as-documented/clusterrole.yaml"
