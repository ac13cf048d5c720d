//! From Git to signed bytes: reads repositories, renders manifests, and creates and verifies the signed files of CI.
//!
//! The hub and the command line share this code. It keeps no state of a fleet and contacts no cluster.

mod image_change;
mod regular;
mod text;

pub mod ci;
pub mod recipe;
pub mod render;
pub mod source;
pub mod trust_policy;
pub mod yaml;

pub use image_change::ImageChange;
