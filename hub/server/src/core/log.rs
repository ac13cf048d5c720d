//! Log lines: one JSON object a line, in the shape the product documents promise. Nothing else goes to the output.

use std::fmt;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Target of the lines about applications.
pub const CONTROLLER: &str = "attest_gitops::controller";

/// Sends log lines to the standard output. `level` is a filter such as `info` or `attest_gitops=debug`.
///
/// # Errors
/// When `level` is not a filter, or logging was set up already.
pub fn start(level: &str) -> Result<(), LogError> {
    let filter = filter(level)?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .event_format(Lines)
        .try_init()
        .map_err(|_| LogError::Twice)
}

/// A word alone is a level: read as the name of a module, as libraries do, a mistyped one would silence everything.
fn filter(level: &str) -> Result<EnvFilter, LogError> {
    let wrong = || LogError::Level(level.to_owned());
    let is_level = |part: &str| !part.is_empty() && part.parse::<LevelFilter>().is_ok();
    let mut parts = level.split(',').map(str::trim);
    if parts.any(|part| !part.contains(['=', '[']) && !is_level(part)) {
        return Err(wrong());
    }
    EnvFilter::try_new(level).map_err(|_| wrong())
}

/// Why there are no log lines.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    #[error("--log-level `{0}` is not known; write error, warn, info, debug or trace")]
    Level(String),
    #[error("logging was set up twice")]
    Twice,
}

impl LogError {
    /// A stable word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Level(_) => "LogLevel",
            Self::Twice => "LogTwice",
        }
    }
}

/// Formats an event as one line of JSON.
#[derive(Clone, Copy, Debug)]
pub struct Lines;

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        let message = fields.message.unwrap_or_default();
        let now = jiff::Timestamp::now();
        // Written in the order of the product's document, which a map would not keep.
        writeln!(
            writer,
            r#"{{"timestamp":"{now:.0}","level":"{}","target":{},"message":{},"fields":{}}}"#,
            metadata.level(),
            Value::from(metadata.target()),
            Value::from(message),
            Value::from(fields.others)
        )
    }
}

#[derive(Default)]
struct Fields {
    message: Option<String>,
    others: Map<String, Value>,
}

impl Fields {
    fn keep(&mut self, field: &Field, value: impl Into<Value>) {
        let value = value.into();
        if field.name() == "message" {
            self.message = Some(match value {
                Value::String(text) => text,
                Value::Null
                | Value::Bool(_)
                | Value::Number(_)
                | Value::Array(_)
                | Value::Object(_) => value.to_string(),
            });
        } else {
            self.others.insert(field.name().to_owned(), value);
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.keep(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.keep(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.keep(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.keep(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.keep(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.keep(field, attest_common::basics::text::error_chain(value));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_word_alone_must_be_a_level() {
        for good in ["info", "WARN", "off", "attest_gitops=debug", "warn,attest_gitops=trace"] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["blah", "warning", "verbose", "info,attest_gitops", "attest_gitops=debugg", ""]
        {
            let error = filter(bad).unwrap_err();
            assert!(error.to_string().contains("error, warn, info, debug or trace"), "{error}");
        }
    }

    #[test]
    fn a_line_has_the_shape_of_the_product_document() {
        let written = Written::default();
        let to = written.clone();
        let subscriber =
            tracing_subscriber::fmt().event_format(Lines).with_writer(move || to.clone()).finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(
                target: "attest_gitops::controller",
                application = "my-app",
                namespace = "default",
                phase = "Synced",
                verification_status = "Verified",
                "Successfully reconciled AttestApplication: {}/{}", "default", "my-app"
            );
        });

        let line = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let rest = line.strip_prefix("{\"timestamp\":\"").unwrap();
        assert_eq!(&rest[19..21], "Z\"");
        assert_eq!(
            &rest[21..],
            ",\"level\":\"INFO\",\"target\":\"attest_gitops::controller\",\
             \"message\":\"Successfully reconciled AttestApplication: default/my-app\",\
             \"fields\":{\"application\":\"my-app\",\"namespace\":\"default\",\"phase\":\"Synced\",\
             \"verification_status\":\"Verified\"}}\n"
        );
    }
}
