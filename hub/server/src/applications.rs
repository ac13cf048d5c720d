//! Applications as operators write them, as the hub uses them, and what is shown of them.

pub mod crd;
pub mod lower;
pub mod status;
