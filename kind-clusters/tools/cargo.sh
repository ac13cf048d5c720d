#!/usr/bin/env bash
# Runs cargo with visible progress: `cargo.sh build --workspace --bins --locked`.
#
# With a terminal this is cargo with its own progress bar. Without one it prints a line every 15 seconds
# (`attest: compiling … 120 of 431 steps, 75 s`), and cargo's output only if cargo fails. A step is a unit of
# cargo's bar: a crate, a build script or its run. Writes to standard error only.
set -euo pipefail

[ ! -t 2 ] || exec cargo "$@" >&2

interval_s=15
log=$(mktemp)
builder=
finish() {
  [ -z "$builder" ] || kill "$builder" 2>/dev/null || true
  rm -f "$log"
}
trap finish EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

# Cargo writes one line, overwritten with carriage returns. Only cargo knows the number of steps.
lines() { tr '\r' '\n' <"$log"; }
bar='^ *Building \[[=> ]*\] \([0-9]*\)/\([0-9]*\).*'

report() {
  local progress
  progress=$(lines | sed -n "s,$bar,\1 of \2 steps,p" | tail -n 1)
  if [ -n "$progress" ]; then
    printf 'attest: compiling … %s, %d s\n' "$progress" "$1" >&2
  else
    # Before the first step cargo downloads crates, or waits for another cargo.
    progress=$(lines | sed -e 's/^ *//' -e 's/ *$//' -e '/^$/d' | tail -n 1)
    printf 'attest: cargo … %d s%s\n' "$1" "${progress:+ ($progress)}" >&2
  fi
}

CARGO_TERM_PROGRESS_WHEN=always CARGO_TERM_PROGRESS_WIDTH=100 CARGO_TERM_COLOR=never cargo "$@" >"$log" 2>&1 &
builder=$!
next_s=$interval_s
SECONDS=0
while kill -0 "$builder" 2>/dev/null; do
  sleep 0.2
  [ "$SECONDS" -lt "$next_s" ] || { report "$SECONDS"; next_s=$((next_s + interval_s)); }
done
code=0
wait "$builder" || code=$?
builder=
if [ "$code" -ne 0 ]; then
  printf 'attest: cargo %s failed:\n' "$*" >&2
  lines | sed -e 's/ *$//' -e "/$(sed 's,/,\\/,g' <<<"$bar")/d" >&2
fi
exit "$code"
