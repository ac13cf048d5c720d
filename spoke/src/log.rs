//! Log lines in the product's shape: one JSON object with `timestamp`, `level`, `target`, `message`, `fields`.
//!
//! Values of Secrets and keys never reach this file; what to say is the caller's business. The hub has a
//! formatter of its own: `common` and `certs`, which both ends share, know no logging.

use std::fmt;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Quietens libraries that log every request or retry below our own level.
const LIBRARIES: &str =
    "kube_client=error,kube_runtime=error,quinn=error,rustls=error,hyper=error,tower=error";

/// Sends log lines to standard error. A second call changes nothing.
pub fn install(level: &str) {
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter(level))
        .with_writer(std::io::stderr)
        .event_format(Lines)
        .finish();
    // Only a test that already installed one gets an error here.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// A cluster is not left alone for a mistyped level, nor does it fall silent: a word alone that is none,
/// which libraries would read as the name of a module, means `info`.
fn filter(level: &str) -> EnvFilter {
    let is_level = |part: &str| !part.is_empty() && part.parse::<LevelFilter>().is_ok();
    let is_known = |part: &str| part.contains(['=', '[']) || is_level(part);
    let level = Some(level).filter(|level| level.split(',').map(str::trim).all(is_known));
    level
        .and_then(|level| EnvFilter::try_new(format!("{LIBRARIES},{level}")).ok())
        .unwrap_or_else(|| EnvFilter::new(format!("{LIBRARIES},info")))
}

/// The format.
#[derive(Clone, Copy, Debug)]
pub struct Lines;

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut said = Said::default();
        event.record(&mut said);
        let metadata = event.metadata();
        let text = |value: &str| Value::String(value.to_owned());
        // In this order, which a map would not keep.
        writeln!(
            writer,
            r#"{{"timestamp":"{:.0}","level":{},"target":{},"message":{},"fields":{}}}"#,
            jiff::Timestamp::now(),
            text(metadata.level().as_str()),
            text(metadata.target()),
            Value::String(said.message),
            Value::Object(said.fields),
        )
    }
}

#[derive(Default)]
struct Said {
    message: String,
    fields: Map<String, Value>,
}

impl Said {
    fn put(&mut self, field: &Field, value: Value) {
        if field.name() == "message" {
            self.message = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        } else if !field.name().starts_with("log.") {
            self.fields.insert(field.name().to_owned(), value);
        }
    }
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, Value::String(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, Value::String(value.to_owned()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_level_that_is_none_means_info() {
        let levels = |level: &str| filter(level).max_level_hint();
        for (given, understood) in [
            ("debug", LevelFilter::DEBUG),
            ("warn", LevelFilter::WARN),
            ("attest_spoke=trace", LevelFilter::TRACE),
            ("blah", LevelFilter::INFO),
            ("warning", LevelFilter::INFO),
            ("", LevelFilter::INFO),
            ("attest_spoke=debugg", LevelFilter::INFO),
        ] {
            assert_eq!(levels(given), Some(understood), "{given}");
        }
    }

    #[test]
    fn a_line_has_the_documented_keys_in_the_documented_order() {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .event_format(Lines)
            .finish();

        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "attest_spoke::agent", application = "my-app", heals = 2_u64, "Say \"it\"");
        });

        let line = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        let (stamp, rest) = line.split_once(r#","level""#).unwrap();
        assert!(stamp.starts_with(r#"{"timestamp":"20"#) && stamp.ends_with("Z\""), "{stamp}");
        assert_eq!(
            rest,
            ":\"INFO\",\"target\":\"attest_spoke::agent\",\"message\":\"Say \\\"it\\\"\",\
             \"fields\":{\"application\":\"my-app\",\"heals\":2}}\n"
        );
    }
}
