//! Reasons that a directive is not carried out, and when it is judged again.

use std::time::Duration;

use attest_common::basics::reason::Reason;
use attest_common::basics::text::error_chain;

use super::agent::RETRY;
use super::gate::GateError;
use crate::ledger::error::LedgerError;
use crate::rate_limits::{
    ADMISSION_EVERY, ADMISSIONS_AT_ONCE_MAX, DISCOVERIES_AT_ONCE_MAX, DISCOVERY_EVERY,
    NEW_DESTINATION_EVERY, NEW_DESTINATIONS_AT_ONCE_MAX, WRITTEN_AT_ONCE_BYTES_MAX,
    WRITTEN_PER_MINUTE_BYTES_MAX, WRITTEN_RETRY,
};

/// Reason that a directive is not carried out.
pub(super) enum Rejected {
    /// The destination exceeds its rate of admissions.
    TooFast,
    /// The cluster exceeds the rate of new destinations.
    TooManyNew,
    /// Orders exceed the budget of bytes written in the cluster.
    TooMuch,
    /// The cluster may serve its kinds by now, but discovery requests exceed their rate.
    TooManyDiscoveries,
    Gate(GateError),
    Ledger(LedgerError),
}

impl Rejected {
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::TooFast | Self::TooManyNew | Self::TooMuch | Self::TooManyDiscoveries => {
                Reason::AdmissionRateLimited
            }
            Self::Gate(error) => error.reason(),
            Self::Ledger(error) => error.reason(),
        }
    }

    /// Returns the message, with every cause.
    pub(super) fn text(&self) -> String {
        match self {
            Self::TooFast => format!(
                "more than {ADMISSIONS_AT_ONCE_MAX} directives in a burst, and more than one in {} s",
                ADMISSION_EVERY.as_secs()
            ),
            Self::TooManyNew => format!(
                "more than {NEW_DESTINATIONS_AT_ONCE_MAX} new destinations in a burst, and more than one in {} s",
                NEW_DESTINATION_EVERY.as_secs()
            ),
            Self::TooMuch => format!(
                "orders have written more than {} MiB in a burst, and more than {} MiB in a minute",
                WRITTEN_AT_ONCE_BYTES_MAX >> 20,
                WRITTEN_PER_MINUTE_BYTES_MAX >> 20
            ),
            Self::TooManyDiscoveries => format!(
                "more than {DISCOVERIES_AT_ONCE_MAX} discovery requests in a burst, and more than one in {} s",
                DISCOVERY_EVERY.as_secs()
            ),
            Self::Gate(error) => error_chain(error),
            Self::Ledger(error) => error_chain(error),
        }
    }

    /// Returns the delay before it is judged again after `attempt` earlier failures; `None` if it is refused.
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
