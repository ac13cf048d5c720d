//! What tests, the demo and the benches share: real clusters, child processes, waiting.
//!
//! Nothing here is part of the product. Parts are real programs (kube-apiserver, etcd, Git); only
//! nodes and pods are played, by [`cluster::fakelet`].

pub mod api;
pub mod bench;
pub mod cluster;
pub mod demo;
pub mod evil_hub;
pub mod fleet;
pub mod process;
pub mod real;
pub mod simulator;
pub mod wait;
pub mod workload;
