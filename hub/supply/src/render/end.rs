//! The limit that ended a process.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use rustix::process::Signal;

/// A limit of the system that ended a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SystemLimit {
    Memory,
    ProcessorTime,
    FileSize,
}

/// Returns the limit that ended a process, by its status and what it wrote to its error output.
pub(super) fn exceeded(status: ExitStatus, errors: &str) -> Option<SystemLimit> {
    // Rust, Go's allocator, Go's thread creation, and the C library of other programs.
    const OUT_OF_MEMORY: [&str; 4] = [
        "memory allocation of",
        "out of memory",
        "failed to create new OS thread",
        "cannot allocate memory",
    ];
    let ended_by = |signal: Signal| status.signal() == Some(signal.as_raw());
    let is_failure = !status.success() && !ended_by(Signal::KILL);
    let words = errors.to_ascii_lowercase();
    if ended_by(Signal::XCPU) {
        Some(SystemLimit::ProcessorTime)
    } else if ended_by(Signal::XFSZ) {
        Some(SystemLimit::FileSize)
    } else if is_failure
        && OUT_OF_MEMORY.iter().any(|text| words.contains(&text.to_ascii_lowercase()))
    {
        Some(SystemLimit::Memory)
    } else {
        None
    }
}

impl SystemLimit {
    /// The text of an error about `program`, which had `memory_bytes_max` bytes.
    pub(super) fn detail(self, program: &str, memory_bytes_max: u64) -> String {
        let mib = memory_bytes_max / (1024 * 1024);
        match self {
            Self::Memory => format!(
                "{program} needs more than {mib} MiB of memory: make the overlay smaller, or give the hub more memory"
            ),
            Self::ProcessorTime => {
                format!("{program} needs too much processor time: make the overlay simpler")
            }
            Self::FileSize => {
                format!("{program} writes too large a file: make the overlay smaller")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_told_from_other_failures() {
        let signal = |signal: Signal| ExitStatus::from_raw(signal.as_raw());
        let code = |code: i32| ExitStatus::from_raw(code << 8);

        for (status, errors, expected) in [
            (
                signal(Signal::ABORT),
                "memory allocation of 64 bytes failed",
                Some(SystemLimit::Memory),
            ),
            (code(2), "fatal error: runtime: out of memory", Some(SystemLimit::Memory)),
            (code(2), "runtime: failed to create new OS thread", Some(SystemLimit::Memory)),
            (signal(Signal::XCPU), "", Some(SystemLimit::ProcessorTime)),
            (signal(Signal::XFSZ), "", Some(SystemLimit::FileSize)),
            (signal(Signal::KILL), "out of memory", None),
            (signal(Signal::ABORT), "", None),
            (code(1), "Error: accumulating resources", None),
            (code(0), "out of memory", None),
        ] {
            assert_eq!(exceeded(status, errors), expected, "{status} {errors}");
        }
    }
}
