//! Evidence of a commit for one application: release statements, receipts and renderings, unverified.

use std::collections::{BTreeMap, BTreeSet};

use attest_common::basics::envelope::{self, STATEMENT_TYPE};
use attest_common::basics::ids::{Digest, Name};
use attest_common::documents::release::{self, RELEASE_TYPE, Release};
use attest_common::documents::statement::Statement;
use bytes::Bytes;

/// Most release statements of one application that are looked at.
pub(crate) const STATEMENTS_MAX: usize = 256;
/// Most receipts of one application that are looked at.
pub(crate) const RECEIPTS_MAX: usize = 2_048;
/// Most other applications that are named.
pub(crate) const APPLICATIONS_NAMED_MAX: usize = 5;
/// Newest release statements that are remembered although no rendering is theirs.
pub(crate) const NEWEST_KEPT_MAX: usize = 8;

/// Evidence in a commit about one application, read once for all destinations.
#[derive(Clone, Debug, Default)]
pub(crate) struct Evidence {
    /// Unverified release statements, highest counter first.
    pub statements: Vec<Candidate>,
    /// Receipts by what they say, unverified.
    pub receipts: BTreeMap<Digest, Bytes>,
    /// Committed renderings by the name of their render.
    pub renderings: BTreeMap<String, Vec<u8>>,
    /// Other applications that the repository has receipts of, unverified. For a message.
    pub other_applications: BTreeSet<String>,
}

/// A release statement, not verified.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub envelope: Bytes,
    pub statement: Statement,
    pub release: Release,
}

impl Evidence {
    /// Sorts the files of an application's `.attest` directories by what they are.
    pub(crate) fn read<'a>(
        receipts: impl Iterator<Item = &'a [u8]>,
        renderings: impl Iterator<Item = (String, Vec<u8>)>,
    ) -> Self {
        let mut evidence = Self { renderings: renderings.collect(), ..Self::default() };
        for file in receipts {
            let Some((payload, _)) = envelope::peek(file, STATEMENT_TYPE) else { continue };
            let Ok(statement) = Statement::read(&payload) else { continue };
            if statement.predicate_type != RELEASE_TYPE {
                if evidence.receipts.len() < RECEIPTS_MAX {
                    let id = envelope::id_of(STATEMENT_TYPE, &payload);
                    evidence.receipts.insert(id, Bytes::copy_from_slice(file));
                }
                continue;
            }
            let Ok(release) = Release::read(&statement) else { continue };
            evidence.statements.push(Candidate {
                envelope: Bytes::copy_from_slice(file),
                statement,
                release,
            });
        }
        evidence.statements.sort_by_key(|s| std::cmp::Reverse(s.release.counter));
        evidence.statements.truncate(STATEMENTS_MAX);
        evidence
    }

    /// Sets the other applications that the directories of receipts name.
    pub(crate) fn with_others<'a>(
        mut self,
        application: &str,
        directories: impl Iterator<Item = &'a str>,
    ) -> Self {
        let others =
            directories.filter(|name| *name != application && name.parse::<Name>().is_ok());
        let named: BTreeSet<String> = others.map(str::to_owned).collect();
        self.other_applications = named.into_iter().take(APPLICATIONS_NAMED_MAX).collect();
        self
    }

    /// Keeps the evidence relevant while the commit renders to `renderings`: releases with one of them, the
    /// newest releases, and their receipts. A long history costs no memory.
    pub(crate) fn kept_for(mut self, renderings: &BTreeSet<Digest>) -> Self {
        let mut newest = 0..NEWEST_KEPT_MAX;
        self.statements.retain(|candidate| {
            let has = |render| {
                release::content_digest(&candidate.statement, render)
                    .is_some_and(|digest| renderings.contains(&digest))
            };
            newest.next().is_some() || candidate.release.renders.iter().any(has)
        });
        let evidence = self.statements.iter().flat_map(|c| &c.release.evidence);
        let named: BTreeSet<Digest> = evidence.map(|evidence| evidence.receipt).collect();
        self.receipts.retain(|id, _| named.contains(id));
        self
    }
}
