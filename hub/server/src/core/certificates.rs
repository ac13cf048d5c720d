//! Generations of a spoke's certificates: which one is admitted, and which one proves a copied identity. Pure.
//!
//! A generation rises with each certificate of a cluster. A spoke uses a certificate only after it has stored it, and
//! never an earlier one again. A certificate that is presented after a newer one was presented therefore comes from
//! a copy of the spoke's identity, or from a restored backup of it. A certificate that was issued and never presented,
//! because its answer was lost or its spoke exited, proves nothing.

use serde::{Deserialize, Serialize};

/// State of the certificates of one cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Certificates {
    /// Serial number of the newest certificate that was presented. In records of hubs without generations: of the newest
    /// issued one.
    serial: Option<String>,
    /// In records of hubs without generations: serial number that is admitted until the newest is presented.
    former_serial: Option<String>,
    /// Generation of the newest issued certificate.
    issued_generation: u64,
    /// Lowest generation that is admitted: earlier certificates became invalid by an eviction or a new join.
    valid_generation: u64,
    /// Generation of the newest certificate that was presented.
    used_generation: u64,
}

/// Result of presenting a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Presentation {
    /// It is the newest that was presented.
    Current,
    /// It is admitted once this state is durable, which invalidates earlier certificates.
    FirstUse(Certificates),
    /// It became invalid before the present registration.
    NotCurrent,
    /// A newer certificate of the same registration was presented before.
    Copied,
}

impl Certificates {
    /// Evaluates a certificate that the fleet's authority has issued to this cluster. A generation above all issued ones
    /// is from after the backup from which this hub was restored.
    pub(crate) fn present(&self, generation: u64, serial: &str) -> Presentation {
        let is_used = self.serial.as_deref() == Some(serial);
        let first_use = Self {
            serial: Some(serial.to_owned()),
            former_serial: None,
            used_generation: generation,
            ..self.clone()
        };
        if generation < self.valid_generation {
            return Presentation::NotCurrent;
        }
        if generation > self.used_generation {
            return Presentation::FirstUse(first_use);
        }
        if generation < self.used_generation {
            return Presentation::Copied;
        }
        match (generation, is_used, &self.former_serial) {
            (0, true, Some(_)) => Presentation::FirstUse(first_use),
            (_, true, _) => Presentation::Current,
            (0, false, Some(replaced)) if replaced == serial => Presentation::Current,
            // Without generations, the order of two certificates is not known.
            (0, false, _) => Presentation::NotCurrent,
            // Two certificates of one generation, of which one was issued before and one after a restore.
            (_, false, _) => Presentation::Copied,
        }
    }

    /// Records that another certificate is issued, and returns its generation: above all previous ones, and at least
    /// `now_s`, so that certificates of an earlier registration, or from after a restored backup, are lower.
    pub(crate) fn issue(&mut self, now_s: u64) -> u64 {
        self.issued_generation = self.next(now_s);
        self.issued_generation
    }

    /// Invalidates all certificates issued so far.
    pub(crate) fn invalidate(&mut self, now_s: u64) {
        self.valid_generation = self.next(now_s);
        self.serial = None;
        self.former_serial = None;
    }

    fn next(&self, now_s: u64) -> u64 {
        let newest = self.issued_generation.max(self.used_generation);
        newest.saturating_add(1).max(self.valid_generation).max(now_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Replays events on the certificates of a cluster and returns the result of each presentation. `issue` takes a clock
    /// in seconds; certificate `N` is the one of the Nth issue, and `N'` another one of the same generation.
    fn replay(certificates: &mut Certificates, events: &str) -> Vec<&'static str> {
        let (mut issued, mut backup, mut results) = (vec![], certificates.clone(), vec![]);
        for event in events.split_whitespace() {
            match event.split_once(':') {
                Some(("issue", now_s)) => {
                    issued.push(certificates.issue(now_s.parse().unwrap()));
                }
                Some(("invalidate", now_s)) => certificates.invalidate(now_s.parse().unwrap()),
                Some(("present", name)) => {
                    let number: usize = name.trim_end_matches('\'').parse().unwrap();
                    let presented = certificates.present(issued[number - 1], name);
                    results.push(match presented {
                        Presentation::Current => "current",
                        Presentation::FirstUse(next) => {
                            *certificates = next;
                            "first"
                        }
                        Presentation::NotCurrent => "not current",
                        Presentation::Copied => "copied",
                    });
                }
                Some(_) => panic!("{event}"),
                None if event == "backup" => backup = certificates.clone(),
                None if event == "restore" => *certificates = backup.clone(),
                None => panic!("{event}"),
            }
        }
        results
    }

    #[test]
    fn only_a_certificate_older_than_one_that_was_presented_proves_a_copy() {
        let table = include_str!("certificates/presentations.txt");
        for line in table.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (events, expected) = line.split_once("=>").unwrap();
            let mut certificates = Certificates::default();

            let results = replay(&mut certificates, events);

            assert_eq!(results.join(", "), expected.trim(), "{line}");
        }
    }

    #[test]
    fn generations_rise_even_if_the_clock_goes_back_or_stands_still() {
        let mut certificates = Certificates::default();
        let mut previous = 0;
        for now_s in [100, 100, 90, 0, 200, u64::MAX / 2, 200] {
            let generation = certificates.issue(now_s);
            assert!(generation > previous && generation >= now_s);
            previous = generation;
        }
    }

    #[test]
    fn records_of_hubs_without_generations_admit_both_serials_until_the_newer_is_presented() {
        let stored = r#"{"serial": "b", "formerSerial": "a"}"#;
        let mut certificates: Certificates = serde_json::from_str(stored).unwrap();

        assert_eq!(certificates.present(0, "a"), Presentation::Current);
        assert_eq!(certificates.present(0, "c"), Presentation::NotCurrent);
        let generation = certificates.issue(100);
        assert_eq!(certificates.present(0, "a"), Presentation::Current);
        let Presentation::FirstUse(mut certificates) = certificates.present(0, "b") else {
            panic!("the newer serial is used for the first time")
        };
        assert_eq!(certificates.present(0, "a"), Presentation::NotCurrent);
        assert_eq!(certificates.present(0, "b"), Presentation::Current);
        let Presentation::FirstUse(next) = certificates.present(generation, "d") else {
            panic!("the certificate with a generation is used for the first time")
        };
        assert_eq!(next.present(0, "b"), Presentation::Copied);
        certificates.invalidate(200);
        assert_eq!(certificates.present(0, "b"), Presentation::NotCurrent);
    }
}
