//! Health of a live object, by kind: a pure function of what the API server shows and for how long.
//!
//! Follows kstatus where it decides and goes further where it does not (a running Job is not done,
//! a PVC may be lost). What to do about bad health is decided elsewhere.

mod rules;

use std::time::{Duration, Instant};

use crate::basics::reason::Reason;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How long a Deployment may be unable to make pods before that counts as a failure.
pub const REPLICA_FAILURE_MAX: Duration = Duration::from_secs(60);
/// How long a pod may be unschedulable before that counts as a failure.
pub const UNSCHEDULABLE_MAX: Duration = Duration::from_secs(15);
/// How long a route or gateway may be refused before that counts as a failure.
pub const ROUTE_REFUSED_MAX: Duration = Duration::from_secs(60);
/// How long a Service may wait for its address before its message says so.
pub const ADDRESS_WAIT_MAX: Duration = Duration::from_secs(5 * 60);
/// How long an object of another's kind may be not ready before that counts as a failure.
pub const PROGRESS_MAX: Duration = Duration::from_secs(60 * 60);
/// How long an object whose status does not say which version it is about must look the same
/// before it is believed: what it shows right after a change may be about the version before.
pub const SETTLE_FOR: Duration = Duration::from_secs(2);

/// How an object is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Health {
    Current,
    Suspended,
    InProgress,
    NotFound,
    Terminating,
    Failed,
}

impl Health {
    /// The word that people see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Current => "Current",
            Self::Suspended => "Suspended",
            Self::InProgress => "InProgress",
            Self::NotFound => "NotFound",
            Self::Terminating => "Terminating",
            Self::Failed => "Failed",
        }
    }
}

impl Health {
    /// Returns the reason of a condition about objects of this health.
    pub fn reason(self) -> Reason {
        match self {
            Self::Current => Reason::Current,
            Self::Suspended => Reason::Suspended,
            Self::InProgress => Reason::InProgress,
            Self::NotFound => Reason::NotFound,
            Self::Terminating => Reason::Terminating,
            Self::Failed => Reason::Failed,
        }
    }
}

/// Health of an object by one observation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub health: Health,
    /// A sentence when it is not `Current`.
    pub message: String,
    /// The application is not done before this object is `Current`.
    pub gates: bool,
    /// Change of the verdict if the observation stays the same.
    pub turn: Option<Turn>,
}

impl Verdict {
    /// The verdict on an object that does not exist.
    pub fn absent(group: &str, kind: &str) -> Self {
        let gates = gates(group, kind);
        let message = "does not exist".to_owned();
        Self { health: Health::NotFound, message, gates, turn: None }
    }
}

/// Change of a verdict by time alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Observation that must persist. It contains UID and version of the object, so a change restarts the time.
    pub cause: String,
    pub after: Duration,
    pub health: Health,
    pub message: String,
}

/// A turn and since when its cause was seen, by the clock of the process that looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turning {
    turn: Turn,
    since: Instant,
}

impl Turning {
    /// The turn of the newest verdict: time goes on counting while the cause is the same.
    pub fn next(former: Option<Self>, turn: Option<Turn>, now: Instant) -> Option<Self> {
        let turn = turn?;
        let since = former.filter(|f| f.turn.cause == turn.cause).map_or(now, |f| f.since);
        Some(Self { turn, since })
    }

    /// When it turns.
    pub fn due(&self) -> Instant {
        self.since + self.turn.after
    }

    /// Returns the changed verdict once its time has come.
    pub fn turned(&self, now: Instant) -> Option<(Health, &str)> {
        (self.due() <= now).then_some((self.turn.health, self.turn.message.as_str()))
    }
}

/// Returns the health of `live`.
pub fn verdict(group: &str, kind: &str, live: &Value) -> Verdict {
    let shown = rules::shown(group, kind, live);
    let gates = gates(group, kind) && !shown.waits_for_another;
    Verdict { health: shown.health, message: shown.message, gates, turn: shown.turn }
}

/// True when the application is not done before this kind of object is `Current`.
pub fn gates(group: &str, kind: &str) -> bool {
    !matches!(
        (group, kind),
        ("batch", "CronJob")
            | ("", "Service" | "Pod")
            | ("networking.k8s.io", "Ingress")
            | ("gateway.networking.k8s.io", _)
            | ("autoscaling", "HorizontalPodAutoscaler")
            | ("policy", "PodDisruptionBudget")
    )
}

/// Health of the whole, from its gating objects.
pub fn aggregate(gating: impl IntoIterator<Item = Health>) -> Health {
    match gating.into_iter().max().unwrap_or(Health::Current) {
        Health::InProgress | Health::NotFound | Health::Terminating => Health::InProgress,
        worst @ (Health::Current | Health::Suspended | Health::Failed) => worst,
    }
}

#[cfg(test)]
mod tests;
