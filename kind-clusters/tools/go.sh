# Finds a Go toolchain that can build the programs; to be sourced.
#
# Kubernetes 1.37 requires Go 1.26; the version packaged by a distribution is often older.
go_minor_min=26

# Prints the first recent enough one: on PATH, in the install location of go.dev's archive, in the cache.
go_here() {
  local candidate minor
  for candidate in "$(command -v go || true)" /usr/local/go/bin/go "$1/go/bin/go"; do
    [ -x "$candidate" ] || continue
    minor=$("$candidate" env GOVERSION 2>/dev/null | sed -n 's/^go1\.\([0-9]*\).*/\1/p')
    if [ "${minor:-0}" -ge "$go_minor_min" ]; then printf '%s' "$candidate"; return; fi
  done
  return 1
}
