//! Syntax that kubectl's reader, which follows YAML 1.1 and divides a file at its lines first, refuses or reads
//! differently: refused here.

use serde_saphyr::granit_parser::{Event, ScalarStyle, Span};

/// Problem of a file for kubectl, and its line, if that is not the line of the event.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) line: Option<usize>,
    pub(super) text: &'static str,
}

const BREAKS: [char; 3] = ['\u{85}', '\u{2028}', '\u{2029}'];
const INDICATORS: [char; 5] = [',', '[', ']', '{', '}'];

/// Checks what kubectl decides by lines.
pub(super) fn check_lines(text: &str) -> Result<(), Problem> {
    for (index, line) in text.split('\n').enumerate() {
        if let Some(problem) = line_problem(line) {
            return Err(Problem { line: Some(index + 1), text: problem });
        }
    }
    Ok(())
}

fn line_problem(line: &str) -> Option<&'static str> {
    let after_separator = line.strip_prefix("---").map(str::trim).unwrap_or_default();
    if !after_separator.is_empty() && !after_separator.starts_with('#') {
        return Some("kubectl takes nothing but a comment after `---`: begin on the next line");
    }
    if line.starts_with('%') {
        return Some("kubectl takes no directives: leave the line out");
    }
    if line.contains("\r---") {
        return Some("a line ends with a carriage return alone: write line feeds");
    }
    line.contains(BREAKS).then_some(
        "kubectl takes U+0085, U+2028 and U+2029 for line breaks: write them as escapes in double quotes",
    )
}

/// Follows the events of a file, and the characters between its scalars.
#[derive(Debug)]
pub(super) struct SyntaxCheck<'a> {
    text: &'a str,
    /// End of the last scalar, in bytes.
    position: usize,
    line: usize,
    flow_depth: usize,
    /// Only indicators and spaces precede on the line.
    is_line_start: bool,
    /// `...` was read, and no `---` after it.
    has_ended: bool,
    /// The last scalar is a key of a flow mapping, and its `:` is not read yet.
    is_after_flow_key: bool,
}

impl<'a> SyntaxCheck<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self {
            text,
            position: 0,
            line: 1,
            flow_depth: 0,
            is_line_start: true,
            has_ended: false,
            is_after_flow_key: false,
        }
    }

    /// Takes the next event.
    pub(super) fn event(
        &mut self,
        event: &Event<'_>,
        span: &Span,
        is_key: bool,
    ) -> Result<(), Problem> {
        match event {
            Event::Scalar(value, style, _, tag) => {
                let (Some(start), Some(end)) = (span.start.byte_offset(), span.end.byte_offset())
                else {
                    return Ok(());
                };
                self.between(start)?;
                self.has_content()?;
                let raw = self.text.get(start..end).unwrap_or_default();
                if let Some(tag_start) = span.tag_start.and_then(|start| start.byte_offset()) {
                    let tag = self.text.get(tag_start..).unwrap_or_default();
                    self.tag_length(tag).map_err(|text| Problem { line: None, text })?;
                }
                let tag = tag.as_ref().map(|tag| tag.suffix());
                let problem = self.scalar_problem(value, *style, tag, raw, end);
                if let Some(text) = problem {
                    return Err(Problem { line: None, text });
                }
                if !raw.is_empty() {
                    self.line = span.end.line();
                    self.is_line_start =
                        matches!(style, ScalarStyle::Literal | ScalarStyle::Folded);
                    self.is_after_flow_key = is_key && self.flow_depth > 0;
                }
                self.position = self.position.max(end);
                Ok(())
            }
            Event::StreamEnd => self.between(self.text.len()),
            Event::StreamStart
            | Event::DocumentStart(..)
            | Event::DocumentEnd
            | Event::Alias(_)
            | Event::Anchor(..)
            | Event::UnresolvedAlias(_)
            | Event::Comment(..)
            | Event::SequenceStart(..)
            | Event::SequenceEnd
            | Event::MappingStart(..)
            | Event::MappingEnd
            | _ => Ok(()),
        }
    }

    fn scalar_problem(
        &self,
        value: &str,
        style: ScalarStyle,
        tag: Option<&str>,
        raw: &str,
        end: usize,
    ) -> Option<&'static str> {
        match tag {
            Some("null") if !matches!(value, "" | "~" | "null" | "Null" | "NULL") => {
                return Some("kubectl reads only null as `!!null`");
            }
            Some("binary") if value.contains([' ', '\t']) => {
                return Some("kubectl takes no spaces in `!!binary`");
            }
            _ => {}
        }
        match style {
            ScalarStyle::Plain => {
                let rest = self.text.get(end..).unwrap_or_default();
                let ends_with_colon =
                    rest.strip_prefix(':').is_some_and(|rest| rest.starts_with(INDICATORS));
                let is_odd = raw.starts_with([':', '?']) || !raw.is_empty() && ends_with_colon;
                (self.flow_depth > 0 && is_odd).then_some(
                    "kubectl reads a `:` or `?` beside a word differently: quote the word",
                )
            }
            ScalarStyle::DoubleQuoted => has_foreign_escape(raw)
                .then_some("kubectl takes no `\\/` and no escaped surrogates: write the character"),
            ScalarStyle::Literal | ScalarStyle::Folded => is_indented_by_tabs(value, raw)
                .then_some("kubectl takes no tabs in the indentation of a block: write spaces"),
            ScalarStyle::SingleQuoted => None,
        }
    }

    /// Reads what is between the last scalar and the next one.
    fn between(&mut self, end: usize) -> Result<(), Problem> {
        let start = self.position.min(end);
        let gap = self.text.get(start..end).unwrap_or_default();
        self.position = self.position.max(end);
        let mut rest = gap;
        while let Some(c) = rest.chars().next() {
            let length =
                self.token(rest, c).map_err(|text| Problem { line: Some(self.line), text })?;
            rest = rest.get(length..).unwrap_or_default();
        }
        Ok(())
    }

    /// Reads one token between scalars; returns its length in bytes.
    fn token(&mut self, rest: &str, c: char) -> Result<usize, &'static str> {
        if c == '\n' {
            if self.is_after_flow_key {
                return Err("kubectl takes a key and its `:` on one line only");
            }
            self.line += 1;
            self.is_line_start = true;
            return Ok(1);
        }
        if self.is_line_start && self.flow_depth == 0 {
            match c {
                '\t' => return Err("kubectl takes no tabs in indentation: write spaces"),
                '-' if rest.starts_with("---") => {
                    self.has_ended = false;
                    return Ok(3);
                }
                '.' if rest.starts_with("...") => {
                    self.has_ended = true;
                    return Ok(3);
                }
                _ => {}
            }
        }
        match c {
            ' ' | '\t' | '\r' => return Ok(1),
            '#' => return Ok(rest.find('\n').unwrap_or(rest.len())),
            '-' | '?' | ':' => {
                self.is_after_flow_key = false;
                return Ok(1);
            }
            _ => {}
        }
        self.is_line_start = false;
        self.has_content().map_err(|problem| problem.text)?;
        match c {
            '{' | '[' => self.flow_depth += 1,
            '}' | ']' => {
                self.flow_depth = self.flow_depth.saturating_sub(1);
                self.is_after_flow_key = false;
            }
            ',' => self.is_after_flow_key = false,
            '&' | '*' => return anchor_length(rest),
            '!' => return self.tag_length(rest),
            _ => {}
        }
        Ok(c.len_utf8())
    }

    fn tag_length(&self, rest: &str) -> Result<usize, &'static str> {
        let length = rest.find(char::is_whitespace).unwrap_or(rest.len());
        let tag = rest.get(..length).unwrap_or_default();
        if self.flow_depth > 0 && tag.contains(INDICATORS) {
            return Err("kubectl takes a space after a tag only");
        }
        Ok(length)
    }

    fn has_content(&self) -> Result<(), Problem> {
        if self.has_ended {
            let text = "kubectl ignores what follows `...`: write `---`";
            return Err(Problem { line: Some(self.line), text });
        }
        Ok(())
    }
}

/// Length of an anchor or alias with its indicator.
fn anchor_length(rest: &str) -> Result<usize, &'static str> {
    let name = rest.get(1..).unwrap_or_default();
    let end = name.find(|c: char| c.is_whitespace() || INDICATORS.contains(&c));
    let name = name.get(..end.unwrap_or(name.len())).unwrap_or_default();
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_') {
        return Err("kubectl takes only letters, digits, `-` and `_` in names of anchors");
    }
    Ok(1 + name.len())
}

/// Returns true if a tab stands where kubectl expects the indentation of a block.
fn is_indented_by_tabs(value: &str, raw: &str) -> bool {
    let mut lines = raw.lines();
    if raw.starts_with(['|', '>']) {
        let header = lines.next().unwrap_or_default();
        if header.split('#').next().unwrap_or_default().contains(|c: char| c.is_ascii_digit()) {
            return false;
        }
    }
    let first = lines.clone().find(|line| !line.trim().is_empty()).map_or(0, indentation);
    value.trim_start_matches('\n').starts_with('\t')
        || lines
            .any(|line| indentation(line) < first && line.trim_start_matches(' ').starts_with('\t'))
}

/// Number of spaces before a line.
fn indentation(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

/// Returns true if a scalar in double quotes has an escape that only JSON has.
fn has_foreign_escape(raw: &str) -> bool {
    let mut rest = raw;
    while let Some((_, escaped)) = rest.split_once('\\') {
        let mut characters = escaped.chars();
        let first = characters.next();
        let is_surrogate = first == Some('u')
            && matches!(characters.next(), Some('d' | 'D'))
            && matches!(characters.next(), Some('8' | '9' | 'a'..='f' | 'A'..='F'));
        if first == Some('/') || is_surrogate {
            return true;
        }
        rest = escaped.get(first.map_or(0, char::len_utf8)..).unwrap_or_default();
    }
    false
}
