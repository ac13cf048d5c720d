//! Identity of this spoke: the Secret `attest-identity` of its own cluster.
//!
//! The identity key is generated once and kept; its hash is the cluster id. TLS key and certificate are
//! replaced on every renewal, and `generation` counts them. The number of recorded destinations is stored
//! here too, apart from the records, so that lost records are detected.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use attest_certs::{Bundle, peer_identity};
use attest_common::basics::ids::ClusterId;
use attest_common::basics::keys::PrivateKey;
use attest_common::basics::reason::Reason;
use attest_common::record::custody::{
    IDENTITY_CHAIN_KEY as CHAIN, IDENTITY_CLUSTER_ID_KEY as CLUSTER_ID,
    IDENTITY_DESTINATIONS_KEY as DESTINATIONS, IDENTITY_GENERATION_KEY as GENERATION,
    IDENTITY_PRIVATE_KEY as KEY, IDENTITY_SECRET as SECRET, IDENTITY_TLS_KEY as TLS_KEY,
};
use attest_runtime::failpoint;
use k8s_openapi::api::core::v1::Secret;
use zeroize::Zeroizing;

use super::secrets::{self, Swapped, resource_version};
use crate::SPOKE_NAMESPACE;
use crate::cluster::client::ApiServer;
use crate::cluster::error::ApiError;

/// Longest wait for the stored identity before a session.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(5);
/// Most attempts to write a certificate against newer versions of the Secret.
const SWAP_ATTEMPTS: u32 = 3;

/// The identity, with the certificate once the cluster has joined.
#[derive(Debug)]
pub struct Identity {
    pub key: PrivateKey,
    pub cluster: ClusterId,
    pub tls: Option<Tls>,
    /// Number of destinations that this identity has recorded.
    pub destinations: u64,
    resource_version: String,
}

/// A certificate and its generation.
#[derive(Clone, Debug)]
pub struct Tls {
    pub bundle: Bundle,
    pub generation: u64,
}

impl Tls {
    /// Returns when the certificate expires.
    pub fn expires_at(&self) -> Option<SystemTime> {
        peer_identity(self.bundle.chain()).ok().map(|peer| peer.not_after)
    }

    /// Returns whether the hub issued this certificate after `other`.
    fn is_newer_than(&self, other: Option<&Self>) -> bool {
        issued_generation(self) > other.map_or(0, issued_generation)
    }
}

/// Generation that the hub wrote into the certificate; 0 for none.
fn issued_generation(tls: &Tls) -> u64 {
    peer_identity(tls.bundle.chain()).map_or(0, |peer| peer.generation)
}

/// Membership of this spoke in the fleet, by its certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Membership {
    /// It has no certificate yet.
    New,
    Member,
    /// Its certificate has expired: it needs a new join token.
    Expired,
}

impl Identity {
    /// Returns the membership that follows from the certificate.
    pub fn membership(&self, now: SystemTime) -> Membership {
        match &self.tls {
            None => Membership::New,
            Some(tls) if tls.expires_at().is_none_or(|at| at <= now) => Membership::Expired,
            Some(_) => Membership::Member,
        }
    }

    /// Reads the identity, or generates and stores one. It is stored before it is used.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub async fn load_or_create(api: &ApiServer) -> Result<Self, IdentityError> {
        if let Some(secret) = api.read_optional(&path()).await.map_err(IdentityError::Api)? {
            return Self::read(&secret);
        }
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut()).map_err(|_| IdentityError::Randomness)?;
        let key = PrivateKey::from_seed(&seed).map_err(|_| IdentityError::Randomness)?;
        let cluster = ClusterId::of_identity_key(key.public().bytes());
        let identity =
            Self { key, cluster, tls: None, destinations: 0, resource_version: String::new() };
        failpoint::reach("before-identity-write");
        let body = identity.secret(None)?;
        let written = secrets::swap(api, &body, |found| same(found, &body)).await;
        failpoint::reach("after-identity-write");
        match written.map_err(IdentityError::Api)? {
            // A concurrent process of this spoke stored one first; there is one identity.
            Swapped::Done(secret) | Swapped::Overtaken(Some(secret)) => Self::read(&secret),
            Swapped::Overtaken(None) => Err(IdentityError::Overtaken),
        }
    }

    /// Adopts the stored certificate if it is newer: another process of this spoke may have renewed it, or a write that
    /// seemed to fail was completed. A certificate that a newer one has replaced must not be presented, because the hub
    /// would conclude that the identity was copied. Without an answer the certificate in use stays.
    pub async fn refresh(&mut self, api: &ApiServer) {
        let read = tokio::time::timeout(REFRESH_TIMEOUT, api.read_optional(&path())).await;
        let Ok(Ok(Some(secret))) = read else { return };
        if let Ok(found) = Self::read(&secret) {
            self.adopt_newer(&found);
        }
    }

    /// Takes over the certificate of the same identity if it is newer. Returns whether it is.
    fn adopt_newer(&mut self, found: &Self) -> bool {
        let newer = found.tls.as_ref().filter(|tls| tls.is_newer_than(self.tls.as_ref()));
        let Some(tls) = newer.filter(|_| found.cluster == self.cluster) else { return false };
        self.tls = Some(tls.clone());
        self.resource_version.clone_from(&found.resource_version);
        self.destinations = found.destinations;
        true
    }

    /// Stores a new certificate. A stored one that is newer is kept and used instead.
    ///
    /// # Errors
    /// [`IdentityError`]; the previous certificate then stays in use.
    pub async fn store_tls(
        &mut self,
        api: &ApiServer,
        bundle: Bundle,
    ) -> Result<(), IdentityError> {
        let generation = self.tls.as_ref().map_or(0, |tls| tls.generation) + 1;
        let tls = Tls { bundle, generation };
        for _ in 0..SWAP_ATTEMPTS {
            let body = self.secret(Some(&tls))?;
            failpoint::reach("before-certificate-write");
            let swapped = secrets::swap(api, &body, |found| same(found, &body)).await;
            failpoint::reach("after-certificate-write");
            match swapped.map_err(IdentityError::Api)? {
                Swapped::Done(written) => {
                    self.resource_version = resource_version(&written);
                    self.tls = Some(tls);
                    return Ok(());
                }
                Swapped::Overtaken(Some(found)) => {
                    let found = Self::read(&found)?;
                    if found.cluster != self.cluster {
                        return Err(IdentityError::Overtaken);
                    }
                    if found.tls.as_ref().is_some_and(|stored| stored.is_newer_than(Some(&tls)))
                        && self.adopt_newer(&found)
                    {
                        return Ok(());
                    }
                    // The same identity: only the version was out of date.
                    self.resource_version = found.resource_version;
                    self.destinations = found.destinations;
                }
                Swapped::Overtaken(None) => return Err(IdentityError::Overtaken),
            }
        }
        Err(IdentityError::Overtaken)
    }

    /// Stores the number of recorded destinations; it never decreases.
    ///
    /// # Errors
    /// [`IdentityError`]; the caller retries.
    pub async fn note_destinations(api: &ApiServer, count: u64) -> Result<(), IdentityError> {
        for _ in 0..SWAP_ATTEMPTS {
            let mut identity = Self::read(&api.read(&path()).await.map_err(IdentityError::Api)?)?;
            if identity.destinations >= count {
                return Ok(());
            }
            identity.destinations = count;
            let body = identity.secret(identity.tls.as_ref())?;
            failpoint::reach("before-count-write");
            let swapped = secrets::swap(api, &body, |found| same(found, &body)).await;
            failpoint::reach("after-count-write");
            match swapped.map_err(IdentityError::Api)? {
                Swapped::Done(_) => return Ok(()),
                Swapped::Overtaken(_) => {}
            }
        }
        Err(IdentityError::Overtaken)
    }

    fn read(secret: &Secret) -> Result<Self, IdentityError> {
        let text = |name: &'static str| {
            String::from_utf8(secrets::bytes(secret, name)?.to_vec()).ok().map(Zeroizing::new)
        };
        let required = |name: &'static str| text(name).ok_or(IdentityError::Malformed(name));
        let key =
            PrivateKey::from_pem(&required(KEY)?).map_err(|_| IdentityError::Malformed(KEY))?;
        let cluster = ClusterId::of_identity_key(key.public().bytes());
        if required(CLUSTER_ID)?.as_str() != cluster.as_str() {
            return Err(IdentityError::Malformed(CLUSTER_ID));
        }
        let tls = match (text(CHAIN), text(TLS_KEY)) {
            (Some(chain), Some(key)) => {
                let bundle =
                    Bundle::from_pem(&chain, &key).map_err(|_| IdentityError::Malformed(CHAIN))?;
                let generation = text(GENERATION).and_then(|g| g.parse().ok()).unwrap_or(1);
                Some(Tls { bundle, generation })
            }
            (None | Some(_), _) => None,
        };
        let resource_version = resource_version(secret);
        let destinations = match text(DESTINATIONS) {
            Some(count) => count.parse().map_err(|_| IdentityError::Malformed(DESTINATIONS))?,
            None => 0,
        };
        Ok(Self { key, cluster, tls, destinations, resource_version })
    }

    /// Returns the Secret with this certificate, to replace the version that was last read.
    fn secret(&self, tls: Option<&Tls>) -> Result<Secret, IdentityError> {
        let pem = self.key.to_pem().map_err(|_| IdentityError::Malformed(KEY))?;
        let cluster = Zeroizing::new(self.cluster.to_string());
        let mut data = BTreeMap::from([(KEY, pem), (CLUSTER_ID, cluster)]);
        if let Some(Tls { bundle, generation }) = tls {
            data.insert(CHAIN, Zeroizing::new(bundle.chain_pem()));
            data.insert(TLS_KEY, bundle.key_pem());
            data.insert(GENERATION, Zeroizing::new(generation.to_string()));
        }
        if self.destinations > 0 {
            data.insert(DESTINATIONS, Zeroizing::new(self.destinations.to_string()));
        }
        let data = data.iter().map(|(key, text)| (*key, text.as_str())).collect();
        Ok(secrets::secret(SECRET, &self.resource_version, &data))
    }
}

fn path() -> String {
    secrets::path(SECRET)
}

fn same(found: &Secret, wanted: &Secret) -> bool {
    found.data == wanted.data
}

/// Error of reading or writing the identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    #[error("failed to read or write Secret {SPOKE_NAMESPACE}/{SECRET}")]
    Api(#[source] ApiError),
    #[error(
        "Secret {SPOKE_NAMESPACE}/{SECRET} has a missing or unusable `{0}`; \
         delete the Secret and register the cluster again"
    )]
    Malformed(&'static str),
    #[error("Secret {SPOKE_NAMESPACE}/{SECRET} was deleted or holds another identity")]
    Overtaken,
    #[error("no randomness available from the system")]
    Randomness,
}

impl IdentityError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Api(error) => error.reason(),
            Self::Malformed(_) => Reason::IdentityMalformed,
            Self::Overtaken => Reason::IdentityConflict,
            Self::Randomness => Reason::Randomness,
        }
    }
}

#[cfg(test)]
mod tests {
    use attest_certs::{Authority, SigningRequest};
    use k8s_openapi::ByteString;

    use super::*;
    use crate::cluster::fake::FakeApi;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn bundle(identity: &Identity) -> Bundle {
        generation(identity, 1)
    }

    fn generation(identity: &Identity, generation: u64) -> Bundle {
        let authority = Authority::create("fleet.test").unwrap();
        let request = SigningRequest::generate().unwrap();
        let issued = authority
            .issue_spoke(&request.csr_der, identity.cluster.as_str(), generation, DAY)
            .unwrap();
        Bundle::from_pem(&issued.chain_pem(), &request.key_pem).unwrap()
    }

    async fn stored_chain(api: &ApiServer) -> String {
        let stored = Identity::load_or_create(api).await.unwrap();
        stored.tls.unwrap().bundle.chain_pem()
    }

    #[test]
    fn an_identity_reads_back_and_a_foreign_cluster_id_is_refused() {
        let key = PrivateKey::from_seed(&[9; 32]).unwrap();
        let cluster = ClusterId::of_identity_key(key.public().bytes());
        let identity =
            Identity { key, cluster, tls: None, destinations: 0, resource_version: String::new() };

        let mut secret = identity.secret(None).unwrap();
        assert_eq!(Identity::read(&secret).unwrap().cluster, identity.cluster);

        let other = ByteString(b"c-0000000000000000".to_vec());
        secret.data.as_mut().unwrap().insert(CLUSTER_ID.to_owned(), other);
        assert_eq!(Identity::read(&secret).unwrap_err().reason().as_str(), "IdentityMalformed");
    }

    #[tokio::test]
    async fn a_spoke_is_a_member_until_the_moment_its_certificate_ends() {
        let fake = FakeApi::start().await;
        let api = fake.open().await;
        let mut identity = Identity::load_or_create(&api).await.unwrap();
        let now = SystemTime::now();
        assert_eq!(identity.membership(now), Membership::New);
        let certificate = bundle(&identity);

        identity.store_tls(&api, certificate).await.unwrap();

        let end = identity.tls.as_ref().unwrap().expires_at().unwrap();
        assert_eq!(identity.membership(now), Membership::Member);
        assert_eq!(identity.membership(end - Duration::from_secs(1)), Membership::Member);
        assert_eq!(identity.membership(end), Membership::Expired);
    }

    #[tokio::test]
    async fn a_certificate_whose_answer_was_lost_counts_as_stored_and_the_next_one_is_too() {
        let fake = FakeApi::start().await;
        let api = fake.open().await;
        let mut identity = Identity::load_or_create(&api).await.unwrap();
        let (first, second) = (bundle(&identity), bundle(&identity));

        fake.lose_answers(1);
        identity.store_tls(&api, first.clone()).await.unwrap();
        assert_eq!(stored_chain(&api).await, first.chain_pem());

        identity.store_tls(&api, second.clone()).await.unwrap();
        assert_eq!(stored_chain(&api).await, second.chain_pem());
        assert_eq!(identity.tls.unwrap().generation, 2);
    }

    #[tokio::test]
    async fn of_two_processes_with_one_secret_both_use_the_newest_certificate() {
        let fake = FakeApi::start().await;
        let api = fake.open().await;
        let mut first = Identity::load_or_create(&api).await.unwrap();
        first.store_tls(&api, generation(&first, 10)).await.unwrap();
        let mut second = Identity::load_or_create(&api).await.unwrap();
        let newest = generation(&second, 30);
        second.store_tls(&api, newest.clone()).await.unwrap();

        // A renewal that was delayed replaces no newer one.
        first.store_tls(&api, generation(&first, 20)).await.unwrap();

        assert_eq!(first.tls.as_ref().unwrap().bundle.chain_pem(), newest.chain_pem());
        assert_eq!(stored_chain(&api).await, newest.chain_pem());
        let renewed = generation(&first, 40);
        first.store_tls(&api, renewed.clone()).await.unwrap();
        second.refresh(&api).await;
        assert_eq!(second.tls.as_ref().unwrap().bundle.chain_pem(), renewed.chain_pem());
    }

    #[tokio::test]
    async fn a_certificate_is_stored_over_a_newer_version_of_the_same_identity_only() {
        let fake = FakeApi::start().await;
        let api = fake.open().await;
        let mut identity = Identity::load_or_create(&api).await.unwrap();
        let certificate = bundle(&identity);

        fake.touch(&path());
        identity.store_tls(&api, certificate.clone()).await.unwrap();
        assert_eq!(stored_chain(&api).await, certificate.chain_pem());

        // What another part of the spoke noted meanwhile stays.
        Identity::note_destinations(&api, 7).await.unwrap();
        identity.store_tls(&api, bundle(&identity)).await.unwrap();
        Identity::note_destinations(&api, 3).await.unwrap();
        assert_eq!(Identity::load_or_create(&api).await.unwrap().destinations, 7);

        api.delete_own(&path()).await.unwrap();
        Identity::load_or_create(&api).await.unwrap();
        let refused = identity.store_tls(&api, bundle(&identity)).await.unwrap_err();
        assert_eq!(refused.reason().as_str(), "IdentityConflict");
    }
}
