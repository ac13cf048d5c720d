//! Text for reports and log fields: bounded length, no control characters.

/// Longest message in a report, in characters.
pub const MESSAGE_CHARACTERS_MAX: usize = 1_000;
/// Longest quotation of an invalid value in an error, in characters.
pub const QUOTATION_CHARACTERS_MAX: usize = 80;

/// Truncates a message to [`MESSAGE_CHARACTERS_MAX`] and replaces control characters by spaces.
pub fn message(text: &str) -> String {
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.take(MESSAGE_CHARACTERS_MAX).collect()
}

/// Makes a text of a peer a message, as [`message`] does. Costs no allocation where it is one.
pub fn make_message(text: &mut String) {
    // Never fewer bytes than characters.
    if text.len() > MESSAGE_CHARACTERS_MAX || text.chars().any(char::is_control) {
        *text = message(text);
    }
}

/// Truncates a text to `characters_max` characters, and appends `mark` to one that was longer.
pub fn truncate(text: &mut String, characters_max: usize, mark: &str) {
    if let Some((end, _)) = text.char_indices().nth(characters_max) {
        text.truncate(end);
        text.push_str(mark);
    }
}

/// Truncates an invalid value to [`QUOTATION_CHARACTERS_MAX`], for an error that quotes it.
pub fn shortened(text: &str) -> String {
    text.chars().take(QUOTATION_CHARACTERS_MAX).collect()
}

/// Returns an error and its sources in one line, for a report or a log field.
pub fn error_chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let cause = inner.to_string();
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        source = inner.source();
    }
    message(&text)
}
