//! Applications: as operators write them, as the hub uses them, when they may be applied and removed, and their status.

pub(crate) mod crd;
pub(crate) mod facts;
pub(crate) mod lower;
pub(crate) mod rules;
pub(crate) mod status;
pub(crate) mod view;
pub(crate) mod views;
