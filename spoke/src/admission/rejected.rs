//! Why a directive is not carried out, and when it is worth judging again.

use std::time::Duration;

use attest_common::basics::text::error_chain;

use super::agent::RETRY;
use super::gate::GateError;
use crate::ledger::error::LedgerError;
use crate::rate_limits::{
    ADMISSION_EVERY, ADMISSIONS_AT_ONCE_MAX, DISCOVERIES_AT_ONCE_MAX, DISCOVERY_EVERY,
    NEW_DESTINATION_EVERY, NEW_DESTINATIONS_AT_ONCE_MAX, WRITTEN_AT_ONCE_BYTES_MAX,
    WRITTEN_PER_MINUTE_BYTES_MAX, WRITTEN_RETRY,
};

/// Why a directive was not carried out.
pub(super) enum Rejected {
    /// It may be admitted, but not so soon after the others.
    TooFast,
    /// The same, of destinations that this cluster has no record of.
    TooManyNew,
    /// The same, in the whole cluster: orders have written too much.
    TooMuch,
    /// It may be that the cluster serves its kinds by now, but it was asked too often.
    TooManyDiscoveries,
    Gate(GateError),
    Ledger(LedgerError),
}

impl Rejected {
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::TooFast | Self::TooManyNew | Self::TooMuch | Self::TooManyDiscoveries => {
                "AdmissionsTooFast"
            }
            Self::Gate(error) => error.reason(),
            Self::Ledger(error) => error.reason(),
        }
    }

    /// In words, with every cause.
    pub(super) fn text(&self) -> String {
        match self {
            Self::TooFast => format!(
                "more than {ADMISSIONS_AT_ONCE_MAX} directives at once, and more than one in {} s",
                ADMISSION_EVERY.as_secs()
            ),
            Self::TooManyNew => format!(
                "more than {NEW_DESTINATIONS_AT_ONCE_MAX} new destinations at once, and more than one in {} s",
                NEW_DESTINATION_EVERY.as_secs()
            ),
            Self::TooMuch => format!(
                "orders have written more than {} MiB at once, and more than {} MiB in a minute",
                WRITTEN_AT_ONCE_BYTES_MAX >> 20,
                WRITTEN_PER_MINUTE_BYTES_MAX >> 20
            ),
            Self::TooManyDiscoveries => format!(
                "more than {DISCOVERIES_AT_ONCE_MAX} questions about kinds at once, and more than one in {} s",
                DISCOVERY_EVERY.as_secs()
            ),
            Self::Gate(error) => error_chain(error),
            Self::Ledger(error) => error_chain(error),
        }
    }

    /// Returns the delay before it is worth judging again after `attempt` earlier failures, or none.
    pub(super) fn retry_after(&self, attempt: u32) -> Option<Duration> {
        match self {
            Self::TooFast | Self::TooManyDiscoveries => Some(ADMISSION_EVERY),
            Self::TooMuch => Some(WRITTEN_RETRY),
            Self::TooManyNew => Some(NEW_DESTINATION_EVERY),
            Self::Ledger(error) if error.is_transient() => Some(RETRY.delay_max(attempt)),
            Self::Gate(_) | Self::Ledger(_) => None,
        }
    }
}
