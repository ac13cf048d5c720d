//! The hub: reads Git, checks who signed what, plans, signs, and hands each cluster its directives.
//!
//! Also the library behind `attest`: what CI renders and signs is read by the same code that the hub uses.

mod crowd;
mod failpoint;
mod join;

pub mod api;
pub mod ci;
pub mod config;
pub mod crd;
pub mod directory;
pub mod fleet;
pub mod home;
pub mod http;
pub mod hub;
pub mod install;
pub mod link;
pub mod log;
pub mod lower;
pub mod metrics;
pub mod pipeline;
pub mod planner;
pub mod recipe;
pub mod render;
pub mod run;
pub mod signer;
pub mod source;
pub mod status;
pub mod store;
