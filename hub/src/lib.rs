//! The hub.

pub mod recipe;
pub mod render;
pub mod source;
