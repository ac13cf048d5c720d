//! Writes a value as YAML in one of its many forms, chosen by a seed.

use serde_json::Value;

/// Chooses forms; the same seed gives the same file.
pub(super) struct Writer {
    state: u64,
}

impl Writer {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
    }

    /// A file with one document.
    pub(super) fn file(&mut self, value: &Value) -> String {
        let mut file = String::new();
        if self.pick(4) == 0 {
            file.push_str("# comment\n---\n");
        }
        self.fields(value, 0, &mut file);
        file
    }

    fn fields(&mut self, value: &Value, indent: usize, file: &mut String) {
        for (name, inner) in value.as_object().into_iter().flatten() {
            file.push_str(&" ".repeat(indent));
            file.push_str(&self.text(name, true));
            file.push(':');
            self.node(inner, indent, file);
        }
    }

    fn node(&mut self, value: &Value, indent: usize, file: &mut String) {
        match value {
            Value::Object(fields) if !fields.is_empty() && self.pick(5) > 0 => {
                file.push('\n');
                self.fields(value, indent + 2, file);
            }
            Value::Array(items) if !items.is_empty() && self.pick(3) > 0 => {
                file.push('\n');
                let deeper = if self.pick(2) == 0 { indent } else { indent + 2 };
                for item in items {
                    file.push_str(&" ".repeat(deeper));
                    file.push('-');
                    self.node(item, deeper, file);
                }
            }
            Value::Null => {
                file.push_str([" null\n", " ~\n", "\n", " Null # nothing\n"][self.pick(4)])
            }
            Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_)
            | Value::Object(_) => {
                file.push(' ');
                file.push_str(&self.flow(value));
                file.push_str(["\n", " # comment\n", "  \n"][self.pick(3)]);
            }
        }
    }

    fn flow(&mut self, value: &Value) -> String {
        match value {
            Value::Object(fields) => {
                let fields: Vec<String> = fields
                    .iter()
                    .map(|(name, inner)| format!("{}: {}", self.text(name, true), self.flow(inner)))
                    .collect();
                format!("{{{}}}", fields.join(", "))
            }
            Value::Array(items) => {
                let items: Vec<String> = items.iter().map(|item| self.flow(item)).collect();
                format!("[{}]", items.join(", "))
            }
            Value::String(text) => self.text(text, false),
            Value::Null => "null".to_owned(),
            Value::Bool(_) | Value::Number(_) => value.to_string(),
        }
    }

    fn text(&mut self, text: &str, is_key: bool) -> String {
        let is_simple = text.len() > 5
            && text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        let is_printable =
            !text.is_empty() && text.bytes().all(|byte| (b' '..b'\x7f').contains(&byte));
        match self.pick(3) {
            0 | 1 if is_simple => text.to_owned(),
            2 if is_printable && !is_key => format!("'{}'", text.replace('\'', "''")),
            _ => quoted(text),
        }
    }

    fn pick(&mut self, choices: usize) -> usize {
        // xorshift64
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        usize::try_from(self.state % 1_000).unwrap_or_default() % choices
    }
}

/// In double quotes, with the escapes that YAML and JSON share.
fn quoted(text: &str) -> String {
    let json = Value::from(text).to_string();
    json.replace('\u{2028}', "\\u2028").replace('\u{85}', "\\u0085").replace('\u{7f}', "\\u007f")
}
