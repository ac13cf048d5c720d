//! The hub: reads Git, checks who signed what, plans, signs, and hands each cluster its directives.
//!
//! Also the library behind `attest`: what CI renders and signs is read by the same code that the hub uses.

mod failpoint;

pub mod api;
pub mod ci;
pub mod crd;
pub mod home;
pub mod install;
pub mod lower;
pub mod recipe;
pub mod render;
pub mod source;
pub mod store;
