#!/usr/bin/env bash
# Compares packages.txt with advisories.txt and writes out/scan.json, the predicate of an in-toto
# vulns v0.2 attestation. Exits with 1 if a listed version is found, 2 if a file cannot be read.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")"
mkdir -p out

now() { date -u +%Y-%m-%dT%H:%M:%SZ; }

# Prints when the advisories were last updated: the time of their last commit, else of the file.
updated() {
  local committed=
  if git diff --quiet HEAD -- advisories.txt 2>/dev/null; then
    committed=$(TZ=UTC git log -1 --date=format-local:%Y-%m-%dT%H:%M:%SZ --format=%cd -- advisories.txt 2>/dev/null) || true
  fi
  printf '%s' "${committed:-$(date -u -r advisories.txt +%Y-%m-%dT%H:%M:%SZ)}"
}

# Reads a file as words that need no escaping in JSON; anything else is an error.
words() {
  awk -v fields="$2" -v file="$1" '
    /^[ \t]*(#|$)/ { next }
    NF != fields { printf "%s:%d: expected %d words\n", file, NR, fields >"/dev/stderr"; exit 2 }
    !/^[A-Za-z0-9._+~: \t-]+$/ { printf "%s:%d: unexpected character\n", file, NR >"/dev/stderr"; exit 2 }
    { $1 = $1; print }' "$1"
}

started=$(now)
packages=$(words packages.txt 2)
advisories=$(words advisories.txt 4)
[ -n "$packages" ] || { echo "packages.txt lists no packages; cannot scan" >&2; exit 2; }
found=$(awk '
  NR == FNR { installed[$1 " " $2] = 1; next }
  installed[$1 " " $2]' <(printf '%s\n' "$packages") <(printf '%s\n' "$advisories"))

result=$([ -z "$found" ] || awk '{
  printf "%s{\"id\":\"%s\",\"severity\":[{\"method\":\"cvss_score\",\"score\":\"%s\"}]}", (NR > 1 ? "," : ""), $4, $3 }' <<<"$found")
printf '%s\n' \
  '{"scanner":{"uri":"https://git.example/company/web-app/scan.sh","version":"1.0.0",' \
  '"db":{"uri":"https://git.example/company/web-app/advisories.txt","version":"'"$(sha256sum advisories.txt | cut -c 1-16)"'","lastUpdate":"'"$(updated)"'"},' \
  '"result":['"$result"']},' \
  '"metadata":{"scanStartedOn":"'"$started"'","scanFinishedOn":"'"$(now)"'"}}' >out/scan.json

printf '%d packages, %d advisories\n' "$(wc -l <<<"$packages")" "$(wc -l <<<"$advisories")"
if [ -n "$found" ]; then
  while read -r name version score id; do printf 'FOUND  %s %s: %s (%s)\n' "$name" "$version" "$id" "$score"; done <<<"$found" >&2
  exit 1
fi
