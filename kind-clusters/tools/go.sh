# A Go toolchain that can build the programs, if this machine has one; to be sourced.
#
# Kubernetes 1.37 needs Go 1.26: what a distribution calls `go` is often older.
go_minor_min=26

# Prints the first that is new enough: on PATH, where go.dev's archive goes, in the cache.
go_here() {
  local candidate minor
  for candidate in "$(command -v go || true)" /usr/local/go/bin/go "$1/go/bin/go"; do
    [ -x "$candidate" ] || continue
    minor=$("$candidate" env GOVERSION 2>/dev/null | sed -n 's/^go1\.\([0-9]*\).*/\1/p')
    if [ "${minor:-0}" -ge "$go_minor_min" ]; then printf '%s' "$candidate"; return; fi
  done
  return 1
}
