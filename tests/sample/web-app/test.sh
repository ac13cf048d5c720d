#!/usr/bin/env bash
# Runs every test_* function of tests/*.sh and writes out/junit.xml. Exits with 1 if one fails.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")"
mkdir -p out

xml_text() { tr -d '\000-\010\013\014\016-\037' | sed -e 's/&/\&amp;/g' -e 's/</\&lt;/g' -e 's/>/\&gt;/g' -e 's/"/\&quot;/g'; }
seconds_since() { awk -v from="$1" -v to="$EPOCHREALTIME" 'BEGIN { printf "%.3f", to - from }'; }

tests=0 failures=0 cases='' started=$EPOCHREALTIME
for file in tests/*.sh; do
  for name in $(sed -n 's/^\(test_[a-z0-9_]*\)().*/\1/p' "$file"); do
    tests=$((tests + 1)) case_started=$EPOCHREALTIME
    if output=$(bash -euo pipefail -c '. "$1"; "$2"' test "$file" "$name" 2>&1); then
      printf 'ok      %s\n' "$name"
      cases+="  <testcase classname=\"$file\" name=\"$name\" time=\"$(seconds_since "$case_started")\"/>"$'\n'
    else
      failures=$((failures + 1))
      printf 'FAILED  %s\n%s\n' "$name" "$output"
      cases+="  <testcase classname=\"$file\" name=\"$name\" time=\"$(seconds_since "$case_started")\">"
      cases+="<failure message=\"failed\">$(xml_text <<<"$output")</failure></testcase>"$'\n'
    fi
  done
done

printf '<?xml version="1.0" encoding="UTF-8"?>\n<testsuites tests="%d" failures="%d" errors="0">\n<testsuite name="web-app" tests="%d" failures="%d" errors="0" skipped="0" time="%s">\n%s</testsuite>\n</testsuites>\n' \
  "$tests" "$failures" "$tests" "$failures" "$(seconds_since "$started")" "$cases" >out/junit.xml
printf '%d tests, %d failed\n' "$tests" "$failures"
[ "$tests" -gt 0 ] && [ "$failures" -eq 0 ]
