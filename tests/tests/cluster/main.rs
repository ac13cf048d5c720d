//! Everything that is tested against real API servers, in one program, so that its tests can share
//! clusters.

mod harness;
