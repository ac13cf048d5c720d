//! From Git to signed bytes: reads repositories, renders manifests, and makes and verifies what CI signs.
//!
//! The hub and the command line share this code. It holds no state of a fleet and contacts no cluster.

mod image_change;
mod text;

pub mod ci;
pub mod recipe;
pub mod render;
pub mod source;
pub mod trust_policy;
pub mod yaml;

pub use image_change::ImageChange;
