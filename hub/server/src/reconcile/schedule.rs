//! The third step of a pass: which of the decided directives are issued now. Pure.
//!
//! Every one, today. A rollout that goes by stages holds some of them back here: it is a decision over all destinations
//! of an application, which no destination can make alone.

use super::plan::{Decision, PlannedDirective};

/// The directives to issue now.
pub(super) fn schedule(decisions: &[Decision]) -> Vec<&PlannedDirective> {
    let directives = decisions.iter().filter_map(|decision| match decision {
        Decision::Issue(planned) => Some(planned),
        Decision::Blocked { .. }
        | Decision::Hold { .. }
        | Decision::Keep(_)
        | Decision::Resend(_) => None,
    });
    directives.collect()
}
