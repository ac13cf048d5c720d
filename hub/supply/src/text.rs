//! Text of other programs, made fit for one line of an error.

/// Longest piece of a server's or program's own words inside an error, in characters.
const DETAIL_CHARS_MAX: usize = 300;
/// How much of that is its beginning; causes come last.
const DETAIL_BEGINNING_CHARS: usize = 100;

/// Foreign words made fit for one line of an error.
pub(crate) fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let line = words.join(" ");
    let clean = |character: char| if character.is_control() { '\u{fffd}' } else { character };
    let clean_line: Vec<char> = line.chars().map(clean).collect();
    let Some(over) = clean_line.len().checked_sub(DETAIL_CHARS_MAX).filter(|over| *over > 0) else {
        return clean_line.into_iter().collect();
    };
    let (beginning, rest) = clean_line.split_at(DETAIL_BEGINNING_CHARS);
    let end = rest.iter().skip(over);
    beginning.iter().chain([&'…']).chain(end).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_long_words_the_beginning_and_the_cause_at_the_end_are_kept() {
        let said = format!("handshake failed: {}Connection refused", "over and over: ".repeat(40));

        let shown = one_line(&said);

        assert_eq!(shown.chars().count(), DETAIL_CHARS_MAX + 1);
        assert!(shown.starts_with("handshake failed: "), "{shown}");
        assert!(shown.ends_with(": Connection refused") && shown.contains('…'), "{shown}");
        assert_eq!(one_line("two\nlines"), "two lines");
        assert_eq!(one_line(&"é".repeat(DETAIL_CHARS_MAX)), "é".repeat(DETAIL_CHARS_MAX));
    }
}
