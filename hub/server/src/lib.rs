//! The hub: reads Git, verifies the signatures of CI, plans, signs, and sends directives to clusters.
//!
//! Each module imports only from those before it in this order: `core`, `home`, `kubernetes`, `rollouts`, `applications`,
//! `reconcile`, `spokes`, `in_cluster`, `webhooks`, `resources`, `api`, `process`. The flow from a commit to a directive
//! is `reconcile::pass`.

mod api;
mod applications;
pub mod core;
pub mod home;
mod in_cluster;
pub mod kubernetes;
pub mod process;
mod reconcile;
mod resources;
mod rollouts;
pub mod spokes;
mod webhooks;

pub use api::{API_HANDSHAKE_TIMEOUT, API_HANDSHAKES_MAX, ApiError};
