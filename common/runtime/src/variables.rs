//! Renamed environment variables. An old name is an error, not ignored.

use std::ffi::OsStr;

use attest_common::basics::reason::Reason;

/// Rejects an environment in which the old name of a variable is set.
///
/// # Errors
/// [`VariableRenamed`], which names the current variable.
pub fn reject_old_name(old: &'static str, current: &'static str) -> Result<(), VariableRenamed> {
    check(std::env::var_os(old).as_deref(), old, current)
}

fn check(
    value: Option<&OsStr>,
    old: &'static str,
    current: &'static str,
) -> Result<(), VariableRenamed> {
    value.map_or(Ok(()), |_| Err(VariableRenamed { old, current }))
}

/// The old name of a variable is set.
#[derive(Debug, thiserror::Error)]
#[error("the environment variable {old} is not read; unset it and set {current}")]
pub struct VariableRenamed {
    old: &'static str,
    current: &'static str,
}

impl VariableRenamed {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        Reason::VariableRenamed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_that_is_not_read_is_an_error_that_names_the_one_that_is() {
        assert!(check(None, "ATTEST_LOG", "ATTEST_LOG_LEVEL").is_ok());

        for value in ["debug", ""] {
            let set = Some(OsStr::new(value));
            let error = check(set, "ATTEST_LOG", "ATTEST_LOG_LEVEL").unwrap_err();

            let text = error.to_string();
            assert!(text.contains("ATTEST_LOG ") && text.contains("ATTEST_LOG_LEVEL"), "{text}");
        }
    }
}
