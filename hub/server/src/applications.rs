//! Applications: manifest, resolution of references and defaults, rules of applying and removing, and status.

pub(crate) mod changes;
pub(crate) mod crd;
mod delivery;
mod durations;
pub(crate) mod facts;
pub(crate) mod known;
pub(crate) mod lower;
pub(crate) mod rules;
pub(crate) mod status;
pub(crate) mod tally;
pub(crate) mod view;
pub(crate) mod views;
