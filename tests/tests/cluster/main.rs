//! All tests against real API servers, in one program, so that they can share clusters.
#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests; Clippy excuses the test functions only"
)]

mod compromised_hub;
mod copied_identity;
mod crashes;
mod documents;
mod end_to_end;
mod harness;
mod in_cluster;
mod install;
mod operator;
mod product;
mod quiet;
mod refusals_reevaluated;
mod registration;
mod resources;
mod rollouts;
mod schema;
mod situations;
mod spoke;
mod workflow;
