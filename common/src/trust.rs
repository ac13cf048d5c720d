//! The trust policy that a cluster's operator installs.

pub mod policy;
