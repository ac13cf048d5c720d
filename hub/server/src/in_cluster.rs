//! A hub in a cluster: its configuration and addresses there, the data that it publishes for `attest hub login`, and the certificates of
//! operators who prove to the cluster's API server who they are.

mod configuration;
mod decision;
mod published;
mod service;
mod signer;

pub(crate) use configuration::follow_configuration;
pub(crate) use published::publish;
pub(crate) use service::{SPOKES_SERVICE, follow_service};
pub(crate) use signer::LoginSigner;
