//! Log: one JSON object per line on standard error, with `timestamp`, `level`, `target`, `message`, `fields`.
//!
//! Callers never pass values of Secrets or keys.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::{DefaultFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::variables::{VariableRenamed, reject_old_name};

/// Environment variable of the level.
pub const LEVEL_VARIABLE: &str = "ATTEST_LOG_LEVEL";
/// Old name of the variable, at the hub.
const LEVEL_VARIABLE_OLD: &str = "ATTEST_LOG";
/// Libraries that log every request or retry. Only their errors are logged, unless a directive names them.
const LIBRARIES: &str =
    "kube_client=error,kube_runtime=error,quinn=error,rustls=error,hyper=error,tower=error";

/// The flag of the log level, common to all programs that log.
#[derive(Clone, Debug, clap::Args)]
pub struct LogArgs {
    /// off, error, warn, info, debug or trace, or directives such as `attest_spoke=debug,warn`
    #[arg(long, env = LEVEL_VARIABLE, value_name = "LEVEL", default_value = "info")]
    pub log_level: LogLevel,
}

/// A level, or comma-separated directives of targets and levels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLevel(String);

impl FromStr for LogLevel {
    type Err = LogLevelError;

    /// A single word must be a level. Libraries accept it as the name of a module, so that a mistyped level would
    /// suppress all messages.
    fn from_str(text: &str) -> Result<Self, LogLevelError> {
        if !text.split(',').map(str::trim).all(is_directive) || EnvFilter::try_new(text).is_err() {
            return Err(LogLevelError(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

fn is_directive(part: &str) -> bool {
    part.contains(['=', '[']) || is_level(part)
}

fn is_level(part: &str) -> bool {
    !part.is_empty() && part.parse::<LevelFilter>().is_ok()
}

impl fmt::Display for LogLevel {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl LogLevel {
    fn filter(&self) -> EnvFilter {
        // `off` applies to the libraries, too.
        let is_off = self.0.parse().is_ok_and(|level: LevelFilter| level == LevelFilter::OFF);
        let libraries = if is_off { "" } else { LIBRARIES };
        EnvFilter::new(format!("{libraries},{}", self.0))
    }
}

/// A value that is neither a level nor a list of directives. The command line names the flag.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is not a level; must be off, error, warn, info, debug or trace, or directives such as \
     attest_spoke=debug,warn"
)]
pub struct LogLevelError(String);

/// Starts logging to standard error.
///
/// # Errors
/// When the old variable `ATTEST_LOG` is set, or logging is already started.
pub fn start(arguments: &LogArgs) -> Result<(), LogError> {
    reject_old_name(LEVEL_VARIABLE_OLD, LEVEL_VARIABLE)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(arguments.log_level.filter())
        .with_writer(std::io::stderr as fn() -> std::io::Stderr)
        .event_format(JsonLines)
        .with_filter_reloading();
    let started = Started { level: arguments.log_level.clone(), filter: builder.reload_handle() };
    builder.try_init().map_err(|_| LogError::Started)?;
    STARTED.set(started).map_err(|_| LogError::Started)
}

/// The running log of this process.
struct Started {
    /// Level of the command line.
    level: LogLevel,
    filter: FilterHandle,
}

type FilterHandle = tracing_subscriber::reload::Handle<
    EnvFilter,
    tracing_subscriber::fmt::Formatter<DefaultFields, JsonLines, fn() -> std::io::Stderr>,
>;

static STARTED: OnceLock<Started> = OnceLock::new();

/// Changes the level of the running log; `None` returns to that of the command line. Without a log, nothing happens.
pub fn set_level(level: Option<&LogLevel>) {
    if let Some(started) = STARTED.get() {
        // Fails only when the subscriber is gone, and the log with it.
        let _ = started.filter.reload(level.unwrap_or(&started.level).filter());
    }
}

/// Failure to start logging.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    #[error(transparent)]
    Variable(#[from] VariableRenamed),
    #[error("logging was started twice")]
    Started,
}

/// Formats an event as one line of JSON.
#[derive(Clone, Copy, Debug)]
pub struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
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
        // In the order of the product's document, which a map would not preserve.
        writeln!(
            writer,
            r#"{{"timestamp":"{:.0}","level":"{}","target":{},"message":{},"fields":{}}}"#,
            jiff::Timestamp::now(),
            metadata.level(),
            Value::from(metadata.target()),
            Value::from(fields.message),
            Value::from(fields.others)
        )
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Fields {
    fn insert(&mut self, field: &Field, value: impl Into<Value>) {
        let value = value.into();
        if field.name() == "message" {
            self.message = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        } else if !field.name().starts_with("log.") {
            // Libraries that use the `log` crate add `log.file` and similar fields to every line.
            self.others.insert(field.name().to_owned(), value);
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.insert(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.insert(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.insert(field, attest_common::basics::text::error_chain(value));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use clap::{CommandFactory as _, Parser};

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

    #[derive(Debug, Parser)]
    struct Options {
        #[command(flatten)]
        log: LogArgs,
    }

    /// What is written while `log` runs.
    fn written(log: impl FnOnce()) -> String {
        let written = Written::default();
        let writer = written.clone();
        let subscriber = tracing_subscriber::fmt()
            .event_format(JsonLines)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, log);
        String::from_utf8(written.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_word_alone_must_be_a_level() {
        for good in [
            "info",
            "WARN",
            "off",
            "attest_gitops=debug",
            "warn,attest_gitops=trace",
            "attest_spoke=debug,warn",
        ] {
            assert!(good.parse::<LogLevel>().is_ok(), "{good}");
        }
        for bad in ["blah", "warning", "verbose", "info,attest_gitops", "attest_gitops=debugg", ""]
        {
            let error = bad.parse::<LogLevel>().unwrap_err();
            assert!(error.to_string().contains("error, warn, info, debug or trace"), "{error}");
        }
    }

    #[test]
    fn a_level_that_is_none_is_refused_with_the_name_of_its_flag() {
        Options::command().debug_assert();

        let error = Options::try_parse_from(["program", "--log-level", "blah"]).unwrap_err();

        let text = error.to_string();
        assert!(text.contains("--log-level") && text.contains("debug or trace"), "{text}");
    }

    #[test]
    fn a_level_limits_what_is_logged() {
        for (given, understood) in [
            ("debug", LevelFilter::DEBUG),
            ("warn", LevelFilter::WARN),
            ("attest_spoke=trace", LevelFilter::TRACE),
            ("off", LevelFilter::OFF),
        ] {
            let level: LogLevel = given.parse().unwrap();
            assert_eq!(level.filter().max_level_hint(), Some(understood), "{given}");
        }
    }

    #[test]
    fn a_line_has_the_shape_of_the_product_document() {
        let line = written(|| {
            tracing::info!(
                target: "attest_gitops::controller",
                application = "my-app",
                namespace = "default",
                phase = "Synced",
                verification_status = "Verified",
                "Successfully reconciled AttestApplication: {}/{}", "default", "my-app"
            );
        });

        let rest = line.strip_prefix("{\"timestamp\":\"20").unwrap();
        assert_eq!(&rest[17..19], "Z\"");
        assert_eq!(
            &rest[19..],
            ",\"level\":\"INFO\",\"target\":\"attest_gitops::controller\",\
             \"message\":\"Successfully reconciled AttestApplication: default/my-app\",\
             \"fields\":{\"application\":\"my-app\",\"namespace\":\"default\",\"phase\":\"Synced\",\
             \"verification_status\":\"Verified\"}}\n"
        );
    }

    #[test]
    fn a_field_keeps_its_type_and_fields_of_the_log_crate_are_left_out() {
        let line = written(|| {
            let error: &dyn std::error::Error = &std::io::Error::other("no room");
            tracing::info!(
                target: "attest_spoke::agent",
                error,
                heals = 2_u64,
                left = -1_i64,
                log.file = "lib.rs",
                seconds = 0.5_f64,
                settled = true,
                "Say \"it\""
            );
        });

        let (_, rest) = line.split_once(r#","level""#).unwrap();
        assert_eq!(
            rest,
            ":\"INFO\",\"target\":\"attest_spoke::agent\",\"message\":\"Say \\\"it\\\"\",\
             \"fields\":{\"error\":\"no room\",\"heals\":2,\"left\":-1,\"seconds\":0.5,\
             \"settled\":true}}\n"
        );
    }
}
