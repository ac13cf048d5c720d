//! Creates join tokens, and deletes unusable ones. Blocks.

use attest_common::basics::ids::{ClusterId, Digest, Name};
use attest_common::session::join::{JoinToken, TOKEN_LIFETIME_MAX_S, TOKEN_RANDOM_BYTES};
use attest_runtime::clock::{after, now};

use super::{JoinError, Registration, TOKENS_KEPT_MAX, TOKENS_MAX};
use crate::core::store::StoreError;
use crate::core::store::records::{self, Change, ClusterState, Records, TokenRecord};

/// Parameters of a new join token.
#[derive(Clone, Debug)]
pub(crate) struct TokenSpec {
    pub(crate) cluster: Name,
    pub(crate) lifetime_s: u64,
    /// Accepts the cluster without a decision of an operator.
    pub(crate) auto_accept: bool,
    /// Replaces a registered cluster of this name.
    pub(crate) replace: bool,
    /// The registered cluster of this name that receives a new certificate; no other may use the token.
    pub(crate) identity: Option<ClusterId>,
}

impl Registration {
    /// Creates a token. Its text is returned only here.
    ///
    /// # Errors
    /// When the name is taken, or does not belong to the given identity, the lifetime is too long, or the write fails.
    /// Blocks.
    pub(crate) fn make_token(&self, spec: TokenSpec) -> Result<(TokenRecord, String), JoinError> {
        let TokenSpec { cluster, lifetime_s, auto_accept, replace, identity } = spec;
        if lifetime_s == 0 || lifetime_s > TOKEN_LIFETIME_MAX_S {
            return Err(JoinError::Lifetime);
        }
        let taken = self.core.directory.named(&cluster);
        let living = taken.filter(|taken| taken.state != ClusterState::Revoked);
        match (&identity, &living) {
            (Some(id), Some(living)) if living.id == *id => {}
            (Some(_), _) => return Err(JoinError::NoCluster(cluster)),
            (None, Some(_)) if !replace => return Err(JoinError::NameTaken(cluster)),
            (None, _) => {}
        }
        let mut random = [0; TOKEN_RANDOM_BYTES];
        getrandom::fill(&mut random).map_err(JoinError::Randomness)?;
        let token = JoinToken::from_random(&random);
        let created_at = now();
        let lifetime_ms = i64::try_from(lifetime_s.saturating_mul(1_000)).unwrap_or(i64::MAX);
        let record = TokenRecord {
            id: token.id().to_owned(),
            cluster,
            secret_sha256: Digest::from_raw(*token.key()),
            created_at,
            expires_at: after(created_at, lifetime_ms),
            auto_accept,
            replace,
            identity,
            failures: 0,
            revoked: false,
            used: None,
        };
        let mut changes = outdated(&self.core.records)?;
        changes.push(records::put_new(&record));
        self.core.records.commit("token", &changes)?;
        Ok((record, token.text().to_string()))
    }
}

/// Returns deletions of the oldest unusable tokens, when there are more than [`TOKENS_MAX`].
fn outdated(records: &Records) -> Result<Vec<Change>, StoreError> {
    if records.count::<TokenRecord>()? < TOKENS_MAX {
        return Ok(Vec::new());
    }
    let all: Vec<TokenRecord> = records.all()?;
    let excess = (all.len() + 1).saturating_sub(TOKENS_KEPT_MAX);
    let time = now();
    let mut dead: Vec<&TokenRecord> = all
        .iter()
        .filter(|t| t.revoked || time >= t.expires_at)
        .filter(|t| t.used.as_ref().is_none_or(|used| used.chain_pem.is_some()))
        .collect();
    dead.sort_by_key(|token| token.created_at);
    Ok(dead.into_iter().take(excess).map(records::delete).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::core::store::{Store, Table};

    /// A store that counts its records and has no other operation.
    #[derive(Debug)]
    struct OnlyCounts(u64);

    impl Store for OnlyCounts {
        fn count(&self, _: Table) -> Result<u64, StoreError> {
            Ok(self.0)
        }

        fn commit(&self, _: &str, _: &[Change]) -> Result<(), StoreError> {
            unreachable!("commit")
        }

        fn get(&self, _: Table, _: &str) -> Result<Option<Vec<u8>>, StoreError> {
            unreachable!("get")
        }

        fn number(&self, _: &str) -> Result<u64, StoreError> {
            unreachable!("number")
        }

        fn scan(&self, _: Table, _: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
            unreachable!("scan")
        }

        fn keys(&self, _: Table, _: &str, _: usize) -> Result<Vec<String>, StoreError> {
            unreachable!("keys")
        }

        fn page(&self, _: Table, _: &str, _: usize) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
            unreachable!("page")
        }

        fn destinations(&self) -> Result<Vec<String>, StoreError> {
            unreachable!("destinations")
        }

        fn heads(&self, _: &str) -> Result<Vec<(String, u64, Vec<u8>)>, StoreError> {
            unreachable!("heads")
        }

        fn ledger(&self, _: &str, _: usize) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
            unreachable!("ledger")
        }
    }

    #[test]
    fn a_new_token_reads_no_other_token() {
        for tokens in [0, 1, TOKENS_MAX - 1] {
            let tokens = u64::try_from(tokens).unwrap();
            let records = Records::new(Arc::new(OnlyCounts(tokens)));
            assert!(outdated(&records).unwrap().is_empty());
        }
    }
}
