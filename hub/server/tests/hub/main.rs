//! The hub as a whole, without Kubernetes: real HTTPS, real QUIC, real Git, and a scripted spoke.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    clippy::cast_possible_truncation,
    reason = "a helper of a test fails the test"
)]

mod api;
mod applications;
mod ci;
mod clusters;
mod command;
mod crash;
mod fixture;
mod joining;
mod operators;
mod rendering;
mod repositories;
mod rollouts;
mod session;
mod spoke;
#[path = "../../../supply/tests/source/web.rs"]
#[allow(dead_code, reason = "another test asks it for more")]
mod web;
mod webhooks;
