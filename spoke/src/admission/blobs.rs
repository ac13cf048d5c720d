//! Blobs between their arrival and a decision: by digest, in memory, bounded. The loss of one costs a request.

use std::collections::{BTreeMap, VecDeque};

use attest_common::basics::ids::Digest;
use attest_common::record::Held;
use bytes::Bytes;

/// Most bytes kept; beyond it the oldest blobs are dropped.
pub const BLOBS_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Blobs by digest. The caller of [`Self::insert`] has checked the digests.
#[derive(Debug, Default)]
pub struct Blobs {
    by_digest: BTreeMap<Digest, Bytes>,
    oldest_first: VecDeque<Digest>,
    bytes: usize,
}

impl Blobs {
    /// Adds a blob under the digest of its bytes.
    pub fn insert(&mut self, digest: Digest, bytes: Bytes) {
        if self.by_digest.contains_key(&digest) {
            return;
        }
        self.bytes += bytes.len();
        self.by_digest.insert(digest, bytes);
        self.oldest_first.push_back(digest);
        while self.bytes > BLOBS_BYTES_MAX {
            let Some(oldest) = self.oldest_first.pop_front() else { return };
            self.forget(&oldest);
        }
    }

    /// Returns a blob, if present.
    pub fn get(&self, digest: &Digest) -> Option<&Bytes> {
        self.by_digest.get(digest)
    }

    /// Returns the present blobs of `held`, each once.
    pub fn of(&self, held: &Held) -> BTreeMap<Digest, Bytes> {
        let here = held.blobs().filter_map(|digest| Some((*digest, self.get(digest)?.clone())));
        here.collect()
    }

    /// Drops blobs that are stored elsewhere.
    pub fn remove<'a>(&mut self, digests: impl IntoIterator<Item = &'a Digest>) {
        for digest in digests {
            self.forget(digest);
        }
        self.oldest_first.retain(|digest| self.by_digest.contains_key(digest));
    }

    fn forget(&mut self, digest: &Digest) {
        if let Some(bytes) = self.by_digest.remove(digest) {
            self.bytes -= bytes.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_blobs_give_way_when_the_room_is_used_up() {
        let mut blobs = Blobs::default();
        let of = |byte: u8| Bytes::from(vec![byte; BLOBS_BYTES_MAX / 2]);
        for byte in 1..=3 {
            blobs.insert(Digest::of(&of(byte)), of(byte));
        }

        assert!(blobs.get(&Digest::of(&of(1))).is_none());
        assert!(blobs.get(&Digest::of(&of(3))).is_some());

        blobs.remove([&Digest::of(&of(2)), &Digest::of(&of(3))]);
        assert_eq!((blobs.bytes, blobs.oldest_first.len()), (0, 0));
    }
}
