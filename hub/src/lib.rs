//! The hub.

pub mod install;
pub mod recipe;
pub mod render;
pub mod source;
