//! The same six Deployments, written by a client that checks and records nothing: the cost of the writes
//! alone for API servers, etcd and this machine. Not part of the product; a baseline for its figures.

use std::time::Instant;

use anyhow::Context;
use futures::TryStreamExt;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Namespace;
use kube::Api as KubeApi;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::figures::Figures;
use crate::fleet::processor_us;
use crate::real::RealFleet;
use crate::workload;

const NAMESPACE: &str = "plain";
const MANAGER: &str = "plain";

/// The client and its measurements.
#[derive(Debug)]
pub struct Plain {
    clusters: Vec<KubeApi<Deployment>>,
    deployments: Vec<Value>,
    /// Milliseconds from the first request to the last answer.
    pub total: Figures,
    /// CPU time of an API server for one of the writes, in milliseconds, as the mean of a round.
    pub each: Figures,
}

impl Plain {
    /// Writes the Deployments for the first time, into a separate namespace and without pods.
    ///
    /// # Errors
    /// When an API server refuses.
    pub async fn start(fleet: &RealFleet, tag: &str) -> anyhow::Result<Self> {
        let mut clusters = Vec::new();
        for site in fleet.sites() {
            let client = site.cluster.client().await?;
            let namespace = json!({
                "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE},
            });
            let namespaces: KubeApi<Namespace> = KubeApi::all(client.clone());
            let parameters = PatchParams::apply(MANAGER);
            namespaces.patch(NAMESPACE, &parameters, &Patch::Apply(&namespace)).await?;
            clusters.push(KubeApi::namespaced(client, NAMESPACE));
        }
        let mut deployments = workload::deployments(fleet.repository().tree())?;
        for deployment in &mut deployments {
            let spec = deployment.get_mut("spec").context("a Deployment without spec")?;
            spec["replicas"] = json!(0);
            spec["paused"] = json!(true);
        }
        let (total, each) = Default::default();
        let plain = Self { clusters, deployments, total, each };
        plain.write(tag).await?;
        Ok(plain)
    }

    /// Writes all of them to all clusters concurrently, with another tag, while the controllers are
    /// stopped.
    ///
    /// # Errors
    /// When an API server refuses.
    pub async fn round(&mut self, fleet: &RealFleet, tag: &str) -> anyhow::Result<()> {
        fleet.sites().iter().for_each(|site| site.cluster.freeze_controllers());
        let before = api_servers_us(fleet)?;
        let started = Instant::now();
        let written = self.write(tag).await;
        self.total.add(started.elapsed().as_secs_f64() * 1e3);
        fleet.sites().iter().for_each(|site| site.cluster.thaw_controllers());
        let writes = self.clusters.len() * self.deployments.len();
        #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
        self.each.add((api_servers_us(fleet)? - before) as f64 / 1e3 / writes as f64);
        written
    }

    async fn write(&self, tag: &str) -> anyhow::Result<()> {
        let parameters = PatchParams::apply(MANAGER).force();
        let requests = FuturesUnordered::new();
        for cluster in &self.clusters {
            for deployment in &self.deployments {
                let mut deployment = deployment.clone();
                let image = deployment
                    .pointer_mut("/spec/template/spec/containers/0/image")
                    .context("a Deployment without image")?;
                *image = json!(format!("plain.example/web:{tag}"));
                let name = deployment.pointer("/metadata/name").and_then(Value::as_str);
                let name = name.context("a Deployment without name")?.to_owned();
                let parameters = &parameters;
                requests.push(async move {
                    cluster.patch(&name, parameters, &Patch::Apply(&deployment)).await
                });
            }
        }
        let _: Vec<Deployment> = requests.try_collect().await?;
        Ok(())
    }
}

fn api_servers_us(fleet: &RealFleet) -> anyhow::Result<u64> {
    fleet.sites().iter().map(|site| processor_us(site.cluster.process_ids()[1])).sum()
}
