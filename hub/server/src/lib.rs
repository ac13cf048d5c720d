//! The hub: reads Git, verifies what CI signed, plans, signs, and sends each cluster its directives.
//!
//! Folders lie in this order, and each imports from those before it only: `core`, `home`, `applications`, `reconcile`,
//! `spokes`, `api`, `process`. The flow from a commit to a directive is `reconcile::pass`.

mod api;
mod applications;
pub mod core;
pub mod home;
pub mod process;
mod reconcile;
pub mod spokes;

pub use api::{API_HANDSHAKE_TIMEOUT, API_HANDSHAKES_MAX, ApiError};
