//! The hub: reads Git, verifies what CI signed, plans, signs, and sends each cluster its directives.
//!
//! Folders lie in this order; each imports from those before it only: `core`, `home`, `applications`, `reconcile`,
//! `spokes`, `api`, `process`.

pub mod api;
pub mod applications;
pub mod core;
pub mod home;
pub mod process;
pub mod reconcile;
pub mod spokes;
