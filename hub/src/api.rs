//! The hub's HTTPS API for operators.

pub mod documents;
