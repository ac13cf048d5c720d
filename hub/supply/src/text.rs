//! Messages of servers, programs and errors as one line of text.

/// Maximum length of a foreign message inside an error, in characters.
const DETAIL_CHARS_MAX: usize = 300;
/// Part of [`DETAIL_CHARS_MAX`] that is kept of the beginning; the cause is at the end.
const DETAIL_BEGINNING_CHARS: usize = 100;

/// Returns a foreign message as one short line without control characters.
pub(crate) fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let line: Vec<char> = words.join(" ").chars().map(replace_control).collect();
    let excess = line.len().saturating_sub(DETAIL_CHARS_MAX);
    if excess == 0 {
        return line.into_iter().collect();
    }
    let (beginning, rest) = line.split_at(DETAIL_BEGINNING_CHARS);
    let end = rest.iter().skip(excess);
    beginning.iter().chain([&'…']).chain(end).collect()
}

fn replace_control(character: char) -> char {
    if character.is_control() { '\u{fffd}' } else { character }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_keeps_its_beginning_and_its_end() {
        let message =
            format!("handshake failed: {}Connection refused", "over and over: ".repeat(40));

        let shown = one_line(&message);

        assert_eq!(shown.chars().count(), DETAIL_CHARS_MAX + 1);
        assert!(shown.starts_with("handshake failed: "), "{shown}");
        assert!(shown.ends_with(": Connection refused") && shown.contains('…'), "{shown}");
        assert_eq!(one_line("two\nlines"), "two lines");
        assert_eq!(one_line(&"é".repeat(DETAIL_CHARS_MAX)), "é".repeat(DETAIL_CHARS_MAX));
    }
}
