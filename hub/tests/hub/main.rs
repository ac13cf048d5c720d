//! The hub as a whole, without Kubernetes: real HTTPS, real QUIC, real Git, and a scripted spoke.

mod api;
mod ci;
mod crash;
mod fixture;
mod joining;
mod session;
mod spoke;
