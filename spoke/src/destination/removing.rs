//! A removal that is being carried out: the inventory is deleted, then the record is emptied. Pure.

use std::sync::Arc;
use std::time::Instant;

use attest_common::basics::text::error_chain;
use attest_common::documents::manifest::ObjectKey;
use attest_common::verify::{Removal, Verified};

use super::applying::Applying;
use super::command::{By, Command, Commands, Notice, Request};
use super::deleting::Deleting;
use super::event::RemoveOrder;
use super::objects::Failure;
use super::report::RemovalStatus;
use super::track::with_known;
use crate::cluster::account::Account;
use crate::cluster::apply::{ApplyError, Authority, Deleted};
use crate::ledger::error::LedgerError;
use crate::ledger::records::Key;

/// A removal that is being carried out.
#[derive(Debug)]
pub(super) struct Removing {
    removal: Arc<Verified<Removal>>,
    account: Account,
    deleting: Deleting,
    stage: Stage,
    /// Failure of recording.
    problem: Option<Failure>,
}

/// Stage of a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Deleting,
    /// All objects are deleted, and the record is being emptied.
    Recording,
    Done,
}

impl Removing {
    /// Returns the initial state of a removal, from the record and from the previous admission.
    pub(super) fn begin(order: RemoveOrder, key: &Key, before: Option<&Applying>) -> Self {
        let RemoveOrder { removal, facts } = order;
        let (application, namespace) = key;
        let account = Account::new(application, namespace, &removal.accounts_namespace);
        let inventory = facts.entry.map(|entry| entry.record.inventory).unwrap_or_default();
        let inventory = with_known(inventory, before.map(|before| &before.objects));
        Self {
            deleting: Deleting::of(inventory.iter(), &facts.kinds),
            stage: if inventory.is_empty() { Stage::Done } else { Stage::Deleting },
            removal: Arc::new(removal),
            account,
            problem: None,
        }
    }

    /// Begins due requests. Returns when the next one is due if no event arrives.
    pub(super) fn advance(&mut self, now: Instant, commands: &mut Commands) -> Option<Instant> {
        if self.stage == Stage::Done {
            return None;
        }
        if let Some(problem) = self.problem.as_ref().filter(|problem| problem.retry_at > now) {
            return Some(problem.retry_at);
        }
        let by = By {
            authority: Authority::Remove(Arc::clone(&self.removal)),
            account: self.account.clone(),
        };
        let wake = self.deleting.advance(&by, now, commands);
        if self.deleting.items.is_empty() && self.stage == Stage::Deleting {
            self.stage = Stage::Recording;
            commands.request(Request::RecordRemoved);
        }
        wake
    }

    pub(super) fn deleted(
        &mut self,
        key: &ObjectKey,
        result: Result<Deleted, ApplyError>,
        now: Instant,
        commands: &mut Commands,
    ) {
        if self.deleting.finish(key, result, now) {
            commands.notice(Notice::Deleted);
        }
    }

    /// Processes the result of emptying the record.
    pub(super) fn recorded(
        &mut self,
        result: Result<(), LedgerError>,
        now: Instant,
        commands: &mut Commands,
    ) {
        match result {
            Ok(()) => {
                self.stage = Stage::Done;
                self.problem = None;
                commands.push(Command::TidyContent);
            }
            Err(error) => {
                self.stage = Stage::Deleting;
                let text = error_chain(&error);
                self.problem =
                    Some(Failure::after(self.problem.as_ref(), error.reason(), text, now));
            }
        }
    }

    /// Forgets requests that were dropped. They may have been carried out, and are made again.
    pub(super) fn forget_requests(&mut self) {
        self.deleting.forget_requests();
        if self.stage == Stage::Recording {
            self.stage = Stage::Deleting;
        }
    }

    /// Returns the facts for a report.
    pub(super) fn shown(&self) -> RemovalStatus<'_> {
        RemovalStatus {
            left: self.deleting.items.len(),
            done: self.stage == Stage::Done,
            obstacle: self.deleting.obstacle(),
        }
    }

    /// Returns the failure that concerns the destination as a whole.
    pub(super) fn problem(&self) -> Option<&Failure> {
        self.problem.as_ref()
    }
}
