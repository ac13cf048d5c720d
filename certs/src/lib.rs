//! The PKI of a fleet: identities, certificates, and every TLS configuration of ATTEST.
//!
//! It issues and reads certificates and builds rustls configurations from them. It opens no socket,
//! keeps no list of revoked certificates (the hub does) and has no part in plans or receipts: their
//! signing keys are separate and belong to `attest-common`.

pub mod authority;
pub mod bundle;
pub mod identity;
pub mod request;
pub mod tls;

pub use authority::{Authority, AuthorityError, Issued};
pub use bundle::{Bundle, BundleError};
pub use identity::{
    IdentityError, OperatorRole, PeerIdentity, Pin, Role, Serial, SpiffeId, peer_identity,
};
pub use request::{RequestError, SigningRequest};
pub use tls::{TlsError, install_provider, provider};
