//! Messages of git, ssh and the HTTP client, and the cause of a failure that each identifies.
//!
//! These programs report causes only as English text; they run with `LC_ALL=C`. `messages/golden/` holds their output
//! for each cause, by program and version. `messages/capture.sh` prints the output of other versions.

/// Cause of a failed exchange with a Git server, as far as its messages identify one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FailureCause {
    /// The name resolves only to addresses that the repository may not be read from.
    Address,
    /// The host key is unknown or differs from the known one.
    HostKey,
    /// The TLS certificate is not trusted.
    Certificate,
    /// The credentials are missing or were rejected.
    Authentication,
    /// The server has no such repository.
    NotFound,
    /// There is no working connection to the server.
    Unreachable,
}

/// Messages and their causes. The first message that an output contains determines the cause.
const MESSAGES: &[(&str, FailureCause)] = &[
    (ADDRESS_REFUSED, FailureCause::Address),
    ("Host key verification failed", FailureCause::HostKey),
    ("host key is known", FailureCause::HostKey),
    ("HOST IDENTIFICATION", FailureCause::HostKey),
    ("invalid peer certificate", FailureCause::Certificate),
    ("UnknownIssuer", FailureCause::Certificate),
    ("self-signed certificate", FailureCause::Certificate),
    ("Permission denied", FailureCause::Authentication),
    ("HTTP status 401", FailureCause::Authentication),
    ("HTTP status 403", FailureCause::Authentication),
    // ssh, for a file that is not a private key.
    ("invalid format", FailureCause::Authentication),
    ("HTTP status 404", FailureCause::NotFound),
    ("HTTP status 410", FailureCause::NotFound),
    ("does not appear to be a git repository", FailureCause::NotFound),
    ("not a git repository", FailureCause::NotFound),
    // Hosting services write this with and without a capital.
    ("epository not found", FailureCause::NotFound),
    ("does not exist", FailureCause::NotFound),
    ("No such file or directory", FailureCause::NotFound),
    ("HTTP status 5", FailureCause::Unreachable),
    ("dns error", FailureCause::Unreachable),
    ("error trying to connect", FailureCause::Unreachable),
    ("tcp connect", FailureCause::Unreachable),
    ("client error (Connect)", FailureCause::Unreachable),
    ("Could not resolve hostname", FailureCause::Unreachable),
    ("Connection refused", FailureCause::Unreachable),
    ("Connection timed out", FailureCause::Unreachable),
    ("Connection closed", FailureCause::Unreachable),
    ("Connection reset", FailureCause::Unreachable),
    ("No route to host", FailureCause::Unreachable),
    ("Network is unreachable", FailureCause::Unreachable),
    ("failed to lookup address", FailureCause::Unreachable),
    (TIMED_OUT, FailureCause::Unreachable),
];
/// Part of every message about an address that is not allowed; written by the resolver of this crate.
pub(super) const ADDRESS_REFUSED: &str = "address is not allowed";
/// Part of every message about a time limit.
const TIMED_OUT: &str = "timed out";
/// Messages of servers that do not send an object requested by its id.
const OBJECT_REFUSED: [&str; 2] = ["not our ref", "unadvertised object"];

/// Returns the cause that `output` identifies, if any.
pub(super) fn classify(output: &str) -> Option<FailureCause> {
    let found = MESSAGES.iter().find(|(message, _)| output.contains(message));
    found.map(|(_, cause)| *cause)
}

/// Returns whether `output` reports that a time limit was exceeded.
pub(super) fn reports_timeout(output: &str) -> bool {
    output.contains(TIMED_OUT)
}

/// Returns whether `output` reports that the server does not send the requested object.
pub(super) fn refuses_object(output: &str) -> bool {
    OBJECT_REFUSED.iter().any(|message| output.contains(message))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn each_golden_output_identifies_its_cause() {
        for (file, cause, description, output) in golden_outputs() {
            let found =
                classify(&output).map_or_else(|| "None".to_owned(), |cause| format!("{cause:?}"));

            assert_eq!(found, cause, "{file}: {description}: {output}");
        }
    }

    #[test]
    fn golden_outputs_cover_each_program_and_cause() {
        let outputs = golden_outputs();
        let covers = |program: &str, cause: &str| {
            outputs.iter().any(|(file, found, ..)| file.starts_with(program) && found == cause)
        };

        for cause in ["HostKey", "Authentication", "NotFound", "Unreachable"] {
            assert!(covers("openssh", cause), "{cause}");
        }
        for cause in ["Certificate", "Authentication", "NotFound", "Unreachable"] {
            assert!(covers("gix", cause), "{cause}");
        }
        assert!(covers("git-", "NotFound"));
    }

    #[test]
    fn an_object_that_the_server_does_not_send_is_recognised() {
        for (file, _, description, output) in golden_outputs() {
            assert_eq!(
                refuses_object(&output),
                description.ends_with("(refuses_object)"),
                "{file}: {description}: {output}"
            );
        }
    }

    /// File, cause, description and output of each case.
    fn golden_outputs() -> Vec<(String, String, String, String)> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/source/messages/golden");
        let mut outputs = Vec::new();
        for file in std::fs::read_dir(directory).unwrap().flatten() {
            let name = file.file_name().into_string().unwrap();
            let text = std::fs::read_to_string(file.path()).unwrap();
            for case in text.split("=== ").filter(|case| !case.is_empty()) {
                let (header, output) = case.split_once('\n').unwrap();
                let (cause, description) = header.split_once(": ").unwrap();
                outputs.push((name.clone(), cause.into(), description.into(), output.into()));
            }
        }
        outputs
    }
}
