//! Command-line flags of the spoke.

use std::path::PathBuf;

use attest_runtime::log::LogArgs;
use attest_runtime::probes::ListenAddress;
use attest_runtime::service_account::ServiceAccountArgs;
use clap::Parser;

/// Agent of an ATTEST fleet: verifies what its hub sends against the cluster's own trust policy,
/// applies it, reverts drift, and reports the state.
#[derive(Clone, Debug, Parser)]
#[command(name = "attest-spoke", version)]
pub struct Options {
    /// Address of the hub's listener for spokes, HOST:PORT
    #[arg(long, env = "ATTEST_HUB_ADDRESS", value_name = "HOST:PORT")]
    pub hub: String,

    /// Kubeconfig of the cluster; the pod's own service account by default
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    #[command(flatten)]
    pub service_account: ServiceAccountArgs,

    /// File with the single-use join token; read while the spoke has no valid certificate
    #[arg(long, value_name = "FILE")]
    pub join_token_file: Option<PathBuf>,

    /// Address of /health and /ready; port 0 selects a free port, which is logged
    #[arg(
        long,
        env = "ATTEST_LISTEN_HEALTH",
        value_name = "[ADDRESS]:PORT",
        default_value = "127.0.0.1:0"
    )]
    pub listen_health: ListenAddress,

    /// Address of /metrics; port 0 selects a free port, which is logged
    #[arg(
        long,
        env = "ATTEST_LISTEN_METRICS",
        value_name = "[ADDRESS]:PORT",
        default_value = "127.0.0.1:0"
    )]
    pub listen_metrics: ListenAddress,

    /// File to which the actual listen addresses are written as JSON, for use with port 0
    #[arg(long, value_name = "FILE")]
    pub addresses_file: Option<PathBuf>,

    #[command(flatten)]
    pub log: LogArgs,
}
