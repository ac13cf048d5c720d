# Tests of src/web-app. Each runs in a separate shell; a failing command fails the test.

request() { printf '%s\r\nHost: localhost\r\n\r\n' "$1" | sh src/web-app; }
body() { sed '1,/^\r*$/d'; }

contains() { grep -qF -- "$1" <<<"$2" || { printf 'expected: %s\ngot:\n%s\n' "$1" "$2"; return 1; }; }
lacks() { ! grep -qF -- "$1" <<<"$2" || { printf 'unexpected: %s\ngot:\n%s\n' "$1" "$2"; return 1; }; }

test_the_page_greets_with_the_configured_words() {
  local seen; seen=$(GREETING=Welcome ENVIRONMENT=staging request "GET / HTTP/1.0")
  contains "HTTP/1.0 200 OK" "$seen"
  contains "<h1>Welcome from staging</h1>" "$seen"
}

test_without_configuration_the_page_still_greets() {
  contains "<h1>Hello from nowhere</h1>" "$(unset GREETING ENVIRONMENT; request "GET / HTTP/1.0")"
}

test_configured_words_cannot_carry_markup() {
  local seen; seen=$(GREETING='<script>|&\' request "GET / HTTP/1.0")
  lacks "<script>" "$seen"
  contains '&lt;script&gt;|&amp;\' "$seen"
}

test_the_health_check_says_ok() {
  [ "$(request "GET /healthz HTTP/1.0" | body)" = ok ]
}

test_the_stated_length_is_the_length() {
  local seen stated; seen=$(request "GET / HTTP/1.0")
  stated=$(sed -n 's/^Content-Length: \([0-9]*\).*/\1/p' <<<"$seen")
  [ "$(request "GET / HTTP/1.0" | body | wc -c)" -eq "$stated" ]
}

test_another_path_is_not_found() {
  contains "HTTP/1.0 404 Not Found" "$(request "GET /../web-app HTTP/1.0")"
}

test_another_method_is_refused() {
  contains "HTTP/1.0 405 Method Not Allowed" "$(request "POST / HTTP/1.0")"
}

test_every_placeholder_of_the_page_is_filled() {
  lacks "@" "$(request "GET / HTTP/1.0" | body)"
}
