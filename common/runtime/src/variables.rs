//! Environment variables that were renamed. A former name is refused, not ignored.

use std::ffi::OsStr;

use attest_common::basics::reason::Reason;

/// Refuses to run while `former` is set.
///
/// # Errors
/// [`VariableRenamed`], which names the variable that is read today.
pub fn refuse_former(former: &'static str, current: &'static str) -> Result<(), VariableRenamed> {
    check(std::env::var_os(former).as_deref(), former, current)
}

fn check(
    value: Option<&OsStr>,
    former: &'static str,
    current: &'static str,
) -> Result<(), VariableRenamed> {
    value.map_or(Ok(()), |_| Err(VariableRenamed { former, current }))
}

/// A variable is set that is no longer read.
#[derive(Debug, thiserror::Error)]
#[error("the environment variable {former} is not read; unset it and set {current}")]
pub struct VariableRenamed {
    former: &'static str,
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
