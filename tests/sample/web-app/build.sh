#!/usr/bin/env bash
# Builds the image: an OCI image layout in out/image, from src/ only.
#
# The build is reproducible on every machine: timestamps, owners, modes and order are fixed.
# The layer contains only the program; a base image with a shell is omitted to keep the sample small.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")"

layout=out/image
rm -rf "$layout"
mkdir -p "$layout/blobs/sha256" out/root/app

# Stores standard input as a blob; prints "digest size".
store() {
  local file=out/blob digest
  cat >"$file"
  digest=$(sha256sum "$file" | cut -d ' ' -f 1)
  printf 'sha256:%s %s\n' "$digest" "$(wc -c <"$file" | tr -d ' ')"
  mv "$file" "$layout/blobs/sha256/$digest"
}

rm -rf out/root/app
cp -R src out/root/app
layer=$(tar --create --format=ustar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner \
  --mode='u=rwX,go=rX' --directory=out/root app | store)
read -r layer_digest layer_size <<<"$layer"
rm -rf out/root

config=$(printf '%s' \
  '{"architecture":"amd64","os":"linux","created":"1970-01-01T00:00:00Z",' \
  '"config":{"User":"65534","ExposedPorts":{"8080/tcp":{}},"Entrypoint":["/app/web-app"]},' \
  '"rootfs":{"type":"layers","diff_ids":["'"$layer_digest"'"]},' \
  '"history":[{"created":"1970-01-01T00:00:00Z","created_by":"build.sh"}]}' | store)
read -r config_digest config_size <<<"$config"

manifest=$(printf '%s' \
  '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",' \
  '"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"'"$config_digest"'","size":'"$config_size"'},' \
  '"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"'"$layer_digest"'","size":'"$layer_size"'}]}' | store)
read -r manifest_digest manifest_size <<<"$manifest"

printf '%s' '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
printf '%s' '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json",' \
  '"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json",' \
  '"digest":"'"$manifest_digest"'","size":'"$manifest_size"'}]}' >"$layout/index.json"
printf 'built myapp@%s\n' "$manifest_digest"
