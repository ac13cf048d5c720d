//! Held content: the blobs of a plan, packed into immutable Secrets, so that a spoke that lost its memory needs no hub.
//!
//! Two packs a plan: the rendering, by its own digest, which CI signed; and the envelopes, by the
//! digest of the plan's. Who signs the same in ever new envelopes does not have it written again.
//! Nothing read here is believed: it is verified again like anything that comes from the hub.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::time::Duration;

use attest_common::basics::ids::Digest;
use attest_common::basics::text::error_chain;
use attest_common::record::{Held, Record, Records};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use prost::Message;
use serde_json::{Value, json};

use super::{COMPRESSION_LEVEL, Ledger, LedgerError, RECORD_LABEL};
use crate::cluster::{ApiError, ApiServer};
use crate::failpoint;
use crate::secrets::{self, collection, path};

/// Bytes of one Secret's piece.
pub const PIECE_BYTES_MAX: usize = 900 * 1024;
/// Most uncompressed bytes of one plan's blobs.
pub const CONTENT_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Most pieces of one plan.
pub const PIECES_MAX: usize = 32;
/// Most bytes of all content Secrets of a cluster, as stored.
pub const CONTENT_TOTAL_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// How long unused content stays, so that deleting it does not compete with what was just admitted.
const TIDY_AFTER: Duration = Duration::from_secs(2);
/// How long to wait after one that failed.
const TIDY_RETRY: Duration = Duration::from_secs(10);
const IN_FLIGHT_MAX: usize = 4;
const PIECES: &str = "attest.continuu.ms/pieces";
const BYTES: &str = "attest.continuu.ms/bytes";
const PIECE: &str = "piece";

#[derive(Clone, PartialEq, Message)]
struct Packed {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    blobs: Vec<Bytes>,
}

/// What this process knows of the content Secrets: their names, and their sizes in bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    stored: BTreeMap<String, u64>,
    /// Those that the API server said to this process are there when it stored them.
    confirmed: BTreeSet<String>,
    /// How often each pack is asked to stay although no record may name it.
    kept: BTreeMap<String, usize>,
}

impl Index {
    pub(super) fn of(list: &Value) -> Self {
        let items = list.get("items").and_then(Value::as_array).into_iter().flatten();
        let stored = items.filter_map(|item| {
            let name = item.pointer("/metadata/name")?.as_str()?;
            let annotations = item.pointer("/metadata/annotations");
            let bytes = annotations.and_then(|a| a.get(BYTES)?.as_str()?.parse().ok());
            Some((name.to_owned(), bytes.unwrap_or(PIECE_BYTES_MAX as u64)))
        });
        Self { stored: stored.collect(), ..Self::default() }
    }

    /// Whether pieces of these sizes, some of which may be there already, fit the cluster's share.
    fn has_room<'a>(&self, pieces: impl Iterator<Item = (&'a String, u64)>) -> bool {
        let stored: u64 = self.stored.values().sum();
        let new: u64 =
            pieces.filter(|(name, _)| !self.stored.contains_key(*name)).map(|(_, b)| b).sum();
        stored.saturating_add(new) <= CONTENT_TOTAL_BYTES_MAX
    }

    /// Whether a Secret is of no plan that is used or kept.
    fn is_unused(&self, name: &str, used: &BTreeSet<String>) -> bool {
        name.rsplit_once('-')
            .is_none_or(|(stem, _)| !used.contains(stem) && !self.kept.contains_key(stem))
    }
}

/// Keeps the content of some plans for as long as it lives: what is being stored and not yet named
/// by a record.
#[derive(Debug)]
pub struct Kept {
    ledger: Ledger,
    stems: Vec<String>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        let mut state = self.ledger.state();
        for stem in &self.stems {
            let left = state.content.kept.get_mut(stem).map(|count| {
                *count = count.saturating_sub(1);
                *count
            });
            if left == Some(0) {
                state.content.kept.remove(stem);
            }
        }
    }
}

/// What is stored together, by the digest that names it.
fn packs(held: &Held) -> [(Digest, BTreeSet<Digest>); 2] {
    let envelopes = [held.plan, held.release].into_iter().chain(held.receipts.iter().copied());
    [(held.plan, envelopes.collect()), (held.content, [held.content].into())]
}

/// The pieces that a plan's blobs are stored as, by the names of their Secrets.
fn pack(
    held: &Held,
    blobs: &BTreeMap<Digest, Bytes>,
) -> Result<Vec<(String, usize, Vec<u8>)>, LedgerError> {
    let lost = || LedgerError::Content { plan: held.plan };
    let (mut size, mut pieces) = (0, Vec::new());
    for (name, members) in packs(held) {
        let members = members.iter().map(|digest| blobs.get(digest).cloned().ok_or_else(lost));
        let packed = Packed { blobs: members.collect::<Result<_, _>>()? };
        size += packed.encoded_len() as u64;
        if size > CONTENT_BYTES_MAX {
            let max = CONTENT_BYTES_MAX;
            return Err(LedgerError::Limit { what: "bytes of content a plan", max });
        }
        let bytes =
            zstd::bulk::compress(&packed.encode_to_vec(), COMPRESSION_LEVEL).map_err(|_| lost())?;
        let count = bytes.len().div_ceil(PIECE_BYTES_MAX);
        let all = bytes.chunks(PIECE_BYTES_MAX).enumerate();
        pieces.extend(all.map(|(index, piece)| (piece_name(name, index), count, piece.to_vec())));
    }
    if pieces.len() > PIECES_MAX {
        let max = PIECES_MAX as u64;
        return Err(LedgerError::Limit { what: "pieces of content a plan", max });
    }
    Ok(pieces)
}

impl Ledger {
    /// Keeps the content of a plan until what is returned is dropped.
    pub fn keep_content(&self, held: &Held) -> Kept {
        let stems: Vec<String> = stems(held).collect();
        let mut state = self.state();
        for stem in &stems {
            *state.content.kept.entry(stem.clone()).or_default() += 1;
        }
        drop(state);
        Kept { ledger: self.clone(), stems }
    }

    /// Stores the blobs of a plan. What this process stored before is not sent again: also a create that
    /// is refused because the Secret is there goes through the log of etcd with all its bytes. What
    /// somebody else deletes is noticed when it is loaded, and stored again then.
    ///
    /// The caller keeps the content ([`Self::keep_content`]) until a record names it.
    ///
    /// # Errors
    /// [`LedgerError::Limit`] before anything is written when it could not be loaded again or the
    /// cluster's share is used up; otherwise what the API server says.
    pub async fn store_content(
        &self,
        held: &Held,
        blobs: &BTreeMap<Digest, Bytes>,
    ) -> Result<(), LedgerError> {
        let pieces = pack(held, blobs)?;
        let sizes = || pieces.iter().map(|(name, _, piece)| (name, piece.len() as u64));
        if !self.state().content.has_room(sizes()) {
            self.drop_unused_content().await?;
        }
        let _turn = self.content_turn().await;
        if !self.state().content.has_room(sizes()) {
            let max = CONTENT_TOTAL_BYTES_MAX;
            return Err(LedgerError::Limit { what: "bytes of content in all", max });
        }
        failpoint::reach("before-content-write");
        stream::iter(pieces)
            .map(|(name, count, piece)| self.store_piece(name, count, piece))
            .buffer_unordered(IN_FLIGHT_MAX)
            .try_collect::<()>()
            .await?;
        failpoint::reach("after-content-write");
        Ok(())
    }

    async fn store_piece(
        &self,
        name: String,
        count: usize,
        piece: Vec<u8>,
    ) -> Result<(), LedgerError> {
        if self.state().content.confirmed.contains(&name) {
            return Ok(());
        }
        let metadata = json!({
            "labels": {RECORD_LABEL: "content"},
            "annotations": {PIECES: count.to_string(), BYTES: piece.len().to_string()},
        });
        let mut body = secrets::body(&name, "", metadata, &[(PIECE, &piece)].into());
        if let Some(fields) = body.as_object_mut() {
            fields.insert("immutable".to_owned(), true.into());
        }
        // Counted before: an error does not say that nothing was written.
        self.state().content.stored.insert(name.clone(), piece.len() as u64);
        self.writes().spend(piece.len() as u64);
        match self.api().create(&collection(), &body).await {
            // Addressed by content: whoever wrote it wrote this, and loading checks.
            Err(error) if !error.is_already_exists() => return Err(LedgerError::Api(error)),
            Ok(_) | Err(_) => {}
        }
        self.state().content.confirmed.insert(name);
        Ok(())
    }

    /// The blobs of a plan, each still to be checked against the digest that names it; only what is
    /// stored together with a `wanted` one.
    ///
    /// # Errors
    /// [`LedgerError::Content`] when they are not all there.
    pub async fn load_content(
        &self,
        held: &Held,
        wanted: impl Fn(&Digest) -> bool,
    ) -> Result<Vec<Bytes>, LedgerError> {
        let packs = packs(held).into_iter().filter(|(_, members)| members.iter().any(&wanted));
        let loads = packs.map(|(name, _)| self.load_pack(held.plan, name));
        Ok(futures::future::try_join_all(loads).await?.concat())
    }

    async fn load_pack(&self, plan: Digest, name: Digest) -> Result<Vec<Bytes>, LedgerError> {
        let lost = || LedgerError::Content { plan };
        let (first, count) = self.load_piece(plan, name, 0).await?;
        let mut bytes = first;
        for index in 1..count.min(PIECES_MAX) {
            bytes.extend(self.load_piece(plan, name, index).await?.0);
        }
        let mut whole = Vec::new();
        let reader = zstd::stream::read::Decoder::new(bytes.as_slice()).map_err(|_| lost())?;
        reader.take(CONTENT_BYTES_MAX).read_to_end(&mut whole).map_err(|_| lost())?;
        let packed = Packed::decode(whole.as_slice()).map_err(|_| lost())?;
        Ok(packed.blobs)
    }

    async fn load_piece(
        &self,
        plan: Digest,
        name: Digest,
        index: usize,
    ) -> Result<(Vec<u8>, usize), LedgerError> {
        let lost = || LedgerError::Content { plan };
        let found = self.api().get_optional(&path(&piece_name(name, index))).await;
        let Some(secret) = found.map_err(LedgerError::Api)? else {
            // Who deleted this may have deleted more.
            self.state().content.confirmed.clear();
            return Err(lost());
        };
        let bytes = secrets::bytes(&secret, PIECE).ok_or_else(lost)?;
        let pieces = secret.pointer("/metadata/annotations").and_then(|a| a.get(PIECES));
        let count = pieces.and_then(Value::as_str).and_then(|text| text.parse().ok());
        Ok((bytes, count.ok_or_else(lost)?))
    }

    /// Asks for unused content to be deleted soon.
    pub fn tidy_content(&self) {
        self.tidy().notify_one();
    }

    /// Deletes unused content when asked, for as long as the process lives.
    pub async fn keep_tidy(self) {
        loop {
            self.tidy().notified().await;
            tokio::time::sleep(TIDY_AFTER).await;
            if let Err(error) = self.drop_unused_content().await {
                tracing::warn!(
                    reason = error.reason(),
                    error = %error_chain(&error),
                    "Cannot delete content that is no longer used"
                );
                tokio::time::sleep(TIDY_RETRY).await;
                self.tidy_content();
            }
        }
    }

    /// Deletes content that no record names and nobody keeps.
    ///
    /// Works from what this process knows, which is everything: it listed once and wrote the rest.
    /// Where records were lost nothing is deleted: what is there shows what was held.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub async fn drop_unused_content(&self) -> Result<(), LedgerError> {
        if self.lost().is_some() {
            return Ok(());
        }
        let unused: Vec<String> = {
            let state = self.state();
            let used = used(&state.records);
            let names = state.content.stored.keys();
            names.filter(|name| state.content.is_unused(name, &used)).cloned().collect()
        };
        for name in unused {
            // Nothing is stored while something is deleted; what was stored since is looked at anew.
            let _turn = self.content_turn().await;
            let still = {
                let state = self.state();
                state.content.is_unused(&name, &used(&state.records))
            };
            if still {
                // Before: an error does not say that it is still there.
                self.state().content.confirmed.remove(&name);
                failpoint::reach("before-content-delete");
                self.api().delete_own(&path(&name)).await.map_err(LedgerError::Api)?;
                failpoint::reach("after-content-delete");
                self.state().content.stored.remove(&name);
            }
        }
        Ok(())
    }
}

/// All content Secrets, without their bodies.
pub(super) async fn list(api: &ApiServer) -> Result<Index, ApiError> {
    let all = format!("{}?labelSelector={RECORD_LABEL}%3Dcontent", collection());
    Ok(Index::of(&api.get_metadata(&all).await?))
}

/// The packs that the records name.
fn used(records: &Records) -> BTreeSet<String> {
    records.values().flat_map(Record::plans).flat_map(stems).collect()
}

fn stems(held: &Held) -> impl Iterator<Item = String> {
    packs(held).into_iter().map(|(name, _)| stem(name))
}

fn stem(name: Digest) -> String {
    format!("attest-content-{}", name.hex().chars().take(40).collect::<String>())
}

fn piece_name(name: Digest, index: usize) -> String {
    format!("{}-{index}", stem(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::fake::FakeApi;
    use crate::metrics::Metrics;
    use crate::pace::Budget;

    fn random_bytes(length: usize, mut seed: u64) -> Bytes {
        let mut next = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        (0..length.div_ceil(8)).flat_map(|_| next().to_le_bytes()).collect()
    }

    fn held(envelope: &Bytes, content: &Bytes) -> (Held, BTreeMap<Digest, Bytes>) {
        let (plan, content_digest) = (Digest::of(envelope), Digest::of(content));
        let held = Held {
            plan,
            plan_digest: Digest::of(b"signed"),
            release: plan,
            receipts: Vec::new(),
            content: content_digest,
        };
        (held, [(plan, envelope.clone()), (content_digest, content.clone())].into())
    }

    #[test]
    fn content_that_could_not_be_loaded_again_is_refused_before_it_is_stored() {
        let envelope = Bytes::from_static(b"plan");
        let packed = |content: Bytes| {
            let (held, blobs) = held(&envelope, &content);
            pack(&held, &blobs)
        };
        assert_eq!(packed(random_bytes(2 * PIECE_BYTES_MAX, 1)).unwrap().len(), 1 + 3);

        let zeros = Bytes::from(vec![0; usize::try_from(CONTENT_BYTES_MAX).unwrap()]);
        assert_eq!(packed(zeros).unwrap_err().reason(), "Limit");

        let incompressible = random_bytes(PIECE_BYTES_MAX * PIECES_MAX + 1, 2);
        assert_eq!(packed(incompressible).unwrap_err().reason(), "Limit");
    }

    #[tokio::test]
    async fn the_same_rendering_in_another_envelope_is_written_once_and_stays_while_one_names_it() {
        let fake = FakeApi::start().await;
        let ledger = Ledger::load(fake.open().await, Metrics::new().unwrap(), 0).await.unwrap();
        let content = random_bytes(PIECE_BYTES_MAX * 2, 3);
        let (first, blobs) = held(&Bytes::from_static(b"plan"), &content);
        let kept = ledger.keep_content(&first);
        ledger.store_content(&first, &blobs).await.unwrap();
        let before = ledger.state().content.stored.clone();

        let (second, more) = held(&Bytes::from_static(b"plan, and noise"), &content);
        let kept_too = ledger.keep_content(&second);
        ledger.store_content(&second, &more).await.unwrap();

        let new: u64 = ledger
            .state()
            .content
            .stored
            .iter()
            .filter(|(name, _)| !before.contains_key(*name))
            .map(|(_, bytes)| bytes)
            .sum();
        assert!(new > 0 && new < 100, "{new}");
        drop(kept);
        ledger.drop_unused_content().await.unwrap();
        let loaded = ledger.load_content(&second, |_| true).await.unwrap();
        assert_eq!(loaded, [Bytes::from_static(b"plan, and noise"), content]);
        assert!(ledger.load_content(&first, |digest| *digest == first.plan).await.is_err());
        drop(kept_too);
        ledger.drop_unused_content().await.unwrap();
        assert!(ledger.state().content.stored.is_empty());
    }

    /// Creates that the API server was asked for.
    fn creates(fake: &FakeApi) -> usize {
        fake.asked().iter().filter(|asked| **asked == collection()).count()
    }

    #[tokio::test]
    async fn content_that_is_there_is_not_sent_again_and_all_that_is_sent_is_charged() {
        let fake = FakeApi::start().await;
        let open = async || Ledger::load(fake.open().await, Metrics::new().unwrap(), 0).await;
        let content = random_bytes(PIECE_BYTES_MAX, 4);
        let spent = |ledger: &Ledger| Budget::of_writes().left() - ledger.writes().left();
        let ledger = open().await.unwrap();
        let (first, blobs) = held(&Bytes::from_static(b"plan"), &content);
        fake.lose_answers(1);
        assert!(ledger.store_content(&first, &blobs).await.is_err());
        let (sent, charged) = (creates(&fake), spent(&ledger));
        assert!(charged > 0);

        ledger.store_content(&first, &blobs).await.unwrap();
        assert!(creates(&fake) > sent && spent(&ledger) > charged, "what became of it was unknown");
        let (sent, charged) = (creates(&fake), spent(&ledger));
        for noise in 0..20 {
            let (again, more) = held(&Bytes::from(format!("plan {noise}")), &content);
            ledger.store_content(&again, &more).await.unwrap();
        }
        assert_eq!(creates(&fake), sent + 20, "the envelopes");
        assert!(spent(&ledger) - charged < 20 * 100);

        let after = open().await.unwrap();
        after.store_content(&first, &blobs).await.unwrap();
        assert!(spent(&after) > i128::try_from(PIECE_BYTES_MAX).unwrap());
        let sent = creates(&fake);
        after.store_content(&first, &blobs).await.unwrap();
        assert_eq!(creates(&fake), sent);
    }

    #[tokio::test]
    async fn content_that_somebody_deleted_is_stored_again_once_it_was_missed() {
        let fake = FakeApi::start().await;
        let ledger = Ledger::load(fake.open().await, Metrics::new().unwrap(), 0).await.unwrap();
        let (held, blobs) = held(&Bytes::from_static(b"plan"), &random_bytes(100, 5));
        ledger.store_content(&held, &blobs).await.unwrap();
        for name in [held.plan, held.content] {
            ledger.api().delete_own(&path(&piece_name(name, 0))).await.unwrap();
        }

        let missed = ledger.load_content(&held, |_| true).await.unwrap_err();
        ledger.store_content(&held, &blobs).await.unwrap();

        assert_eq!(missed.reason(), "ContentLost");
        assert!(ledger.load_content(&held, |_| true).await.is_ok());
    }

    #[tokio::test]
    async fn content_whose_deletion_was_not_answered_is_stored_again() {
        let fake = FakeApi::start().await;
        let ledger = Ledger::load(fake.open().await, Metrics::new().unwrap(), 0).await.unwrap();
        let (held, blobs) = held(&Bytes::from_static(b"plan"), &random_bytes(100, 6));
        ledger.store_content(&held, &blobs).await.unwrap();
        fake.lose_answers(1);
        assert!(ledger.drop_unused_content().await.is_err());

        ledger.store_content(&held, &blobs).await.unwrap();

        assert!(ledger.load_content(&held, |_| true).await.is_ok());
    }

    #[test]
    fn all_content_of_a_cluster_has_one_bound_and_what_is_there_counts_once() {
        let max = CONTENT_TOTAL_BYTES_MAX;
        let index = Index { stored: [("a-0".to_owned(), max - 10)].into(), ..Index::default() };
        let (old, new) = ("a-0".to_owned(), "b-0".to_owned());

        assert!(index.has_room([(&old, max), (&new, 10)].into_iter()));
        assert!(!index.has_room([(&new, 11)].into_iter()));
    }

    #[test]
    fn content_of_a_plan_in_flight_is_not_unused() {
        let plan = Digest::of(b"plan");
        let name = piece_name(plan, 0);
        let mut index = Index::default();
        assert!(index.is_unused(&name, &BTreeSet::new()));
        assert!(!index.is_unused(&name, &BTreeSet::from([stem(plan)])));

        index.kept.insert(stem(plan), 1);
        assert!(!index.is_unused(&name, &BTreeSet::new()));
        assert!(index.is_unused("attest-content-other-0", &BTreeSet::new()));
    }

    #[test]
    fn a_secret_that_does_not_tell_its_size_counts_as_full() {
        let list = json!({"items": [
            {"metadata": {"name": "a-0", "annotations": {BYTES: "7"}}},
            {"metadata": {"name": "b-0"}},
        ]});

        let sizes: Vec<u64> = Index::of(&list).stored.into_values().collect();
        assert_eq!(sizes, [7, PIECE_BYTES_MAX as u64]);
    }
}
