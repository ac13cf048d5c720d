//! Shared parts of tests, demo and benches: real clusters, child processes, polling.
//!
//! Nothing here is part of the product. The parts are real programs (kube-apiserver, etcd, Git); only
//! nodes and pods are simulated, by [`cluster::fakelet`].

pub mod api;
pub mod bench;
pub mod cluster;
pub mod compromised_hub;
pub mod demo;
pub mod fleet;
pub mod fuzz;
pub mod git_server;
pub mod helm;
pub mod kube_reader;
pub mod process;
pub mod real;
pub mod simulator;
pub mod testbed;
pub mod wait;
pub mod workload;
