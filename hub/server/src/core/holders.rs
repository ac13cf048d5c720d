//! The processes that open sessions with one certificate: alternating ones prove a copied identity. Pure.
//!
//! A process that is restarted has a new id and its predecessor never returns. A pod that is being replaced may return
//! once or twice before it ends. Two processes that replace each other's sessions again and again both live.

use std::collections::VecDeque;

/// Most processes of one certificate that are remembered; the one that connected least recently is forgotten.
const PROCESSES_MAX: usize = 16;
/// Most sessions that a process may open after one of another process, beside its first.
const RETURNS_MAX: u32 = 3;

/// Processes that have presented the newest certificate of a cluster.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    /// Serial number of the certificate.
    serial: String,
    /// The process of the newest session is last.
    processes: VecDeque<Holder>,
}

#[derive(Debug)]
struct Holder {
    process: Vec<u8>,
    returns: u32,
}

/// Result of opening a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holding {
    /// The processes may be successors of each other.
    Single,
    /// Two processes hold the certificate.
    Copied,
}

impl Holders {
    /// Records that `process` opens a session with the certificate of this serial number. Older spokes without a process
    /// id count as one process.
    pub(crate) fn open(&mut self, serial: &str, process: &[u8]) -> Holding {
        if self.serial != serial {
            *self = Self { serial: serial.to_owned(), processes: VecDeque::new() };
        }
        let is_newest = self.processes.back().is_some_and(|newest| newest.process == process);
        if is_newest {
            return Holding::Single;
        }
        let known = self.processes.iter().position(|holder| holder.process == process);
        let returned = known.and_then(|position| self.processes.remove(position));
        let returns = returned.map_or(0, |holder| holder.returns.saturating_add(1));
        if self.processes.len() >= PROCESSES_MAX {
            self.processes.pop_front();
        }
        self.processes.push_back(Holder { process: process.to_vec(), returns });
        if returns > RETURNS_MAX { Holding::Copied } else { Holding::Single }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Opens a session for each character, and returns the position of the first that proves a copy.
    fn first_copied(sessions: &str) -> Option<usize> {
        let mut holders = Holders::default();
        sessions.bytes().position(|process| holders.open("1", &[process]) == Holding::Copied)
    }

    #[test]
    fn processes_that_alternate_hold_a_copy_and_successors_do_not() {
        for (sessions, expected) in [
            ("aaaaaaaaaaaa", None),
            ("abcdefghijklmnopqrstuvwxyz", None),
            ("aabbbabbbb", None),
            ("abacadae", None),
            ("abacadaea", Some(8)),
            ("ababababab", Some(8)),
            ("abcabcabcabcabc", Some(12)),
        ] {
            assert_eq!(first_copied(sessions), expected, "{sessions}");
        }
    }

    #[test]
    fn another_certificate_starts_without_processes_and_spokes_without_id_count_as_one() {
        let mut holders = Holders::default();
        for round in 0..20_u32 {
            let serial = (round / 4).to_string();
            let process = if round % 2 == 0 { b"a" } else { b"b" };
            assert_eq!(holders.open(&serial, process), Holding::Single);
        }
        for _ in 0..20 {
            assert_eq!(holders.open("1", b""), Holding::Single);
        }
        let copied = (0..20).any(|_| {
            [b"a".as_slice(), b""].iter().any(|id| holders.open("1", id) == Holding::Copied)
        });
        assert!(copied);
    }
}
