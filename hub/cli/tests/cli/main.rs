//! The CI side of `attest`, run as a program in Git repositories made from the sample application.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends where its world is not as it says"
)]
#![allow(clippy::print_stderr, reason = "a test that cannot run says so")]

mod bad_input;
mod flags;
mod hub;
mod isolation;
mod release;
mod run;
mod sandbox;
mod tools;
mod verify;
