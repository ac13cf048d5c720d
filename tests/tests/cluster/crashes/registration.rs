//! Registration, operators' decisions and renewal, with hub or spoke exiting at each durable write.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail, ensure};
use attest_certs::Bundle;
use attest_tests::cluster::Cluster;
use attest_tests::fleet::program;
use attest_tests::process::{Process, Spec};
use attest_tests::real::{Agents, RealFleet};
use attest_tests::simulator::{self, Dial, Identity, Session};
use attest_tests::wait::{POLL_EVERY, until};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::{CONVERGED_WITHIN, EXITS_WITHIN, last_lines};
use crate::registration::certify;

/// Longer than a renewal, shorter than the idle timeout of a connection.
const INTERRUPTED_WITHIN: Duration = Duration::from_secs(2);

/// Remaining lifetime of a certificate that begins five minutes ago: more than three quarters have
/// passed.
const NEARLY_OVER: Duration = Duration::from_secs(60);

/// The process that exits during a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exiting {
    Hub,
    Spoke,
}

/// Every durable write of a registration.
const JOIN_WRITES: [(Exiting, &str); 14] = [
    (Exiting::Hub, "before-token-commit"),
    (Exiting::Hub, "after-token-commit"),
    (Exiting::Hub, "before-join-commit"),
    (Exiting::Hub, "after-join-commit"),
    (Exiting::Hub, "before-introduction-commit"),
    (Exiting::Hub, "after-introduction-commit"),
    (Exiting::Hub, "before-accept-commit"),
    (Exiting::Hub, "after-accept-commit"),
    (Exiting::Spoke, "before-identity-write"),
    (Exiting::Spoke, "after-identity-write"),
    (Exiting::Spoke, "before-certificate-write"),
    (Exiting::Spoke, "after-certificate-write"),
    (Exiting::Spoke, "before-join-delete"),
    (Exiting::Spoke, "after-join-delete"),
];

/// A hub and a cluster that is registered repeatedly.
struct Registration {
    // Ends before the cluster it serves.
    spoke: Option<Process>,
    fleet: RealFleet,
    cluster: Cluster,
    client: Client,
    kubeconfig: PathBuf,
    token: PathBuf,
}

impl Registration {
    async fn set() -> anyhow::Result<Option<Self>> {
        let mut ignore_progress = |_| {};
        let started = RealFleet::start_with(&[], Agents::External, &mut ignore_progress);
        let (fleet, cluster) = tokio::try_join!(started, Cluster::start("staging"))?;
        let (Some(fleet), Some(cluster)) = (fleet, cluster) else { return Ok(None) };
        let [policy_file, kubeconfig, token] =
            ["policy.yaml", "spoke.kubeconfig", "token"].map(|name| fleet.directory().join(name));
        let public = fleet.key().with_extension("pub").display().to_string();
        let policy = policy_file.display().to_string();
        let admin = cluster.kubeconfig().display().to_string();
        for arguments in [
            &["trust", "key", "add", "ci", &public, "--environment", "staging"][..],
            &[
                "trust",
                "new",
                "--environment",
                "staging",
                "--cluster-name",
                "staging",
                "-o",
                &policy,
            ],
            &["trust", "install", &policy, "--kubeconfig", &admin, "-y"],
        ] {
            fleet.operator().attest(arguments)?;
        }
        let client = cluster.client().await?;
        std::fs::write(&kubeconfig, spoke_kubeconfig(&cluster, &account_token(&client).await?))?;
        Ok(Some(Self { spoke: None, fleet, cluster, client, kubeconfig, token }))
    }

    fn spec(&self) -> anyhow::Result<Spec> {
        let log = self.fleet.directory().join("spoke.log");
        Ok(Spec::new(program("attest-spoke")?, log)
            .args(["--kubeconfig".to_owned(), self.kubeconfig.display().to_string()])
            .args(["--join-token-file".to_owned(), self.token.display().to_string()])
            .args(["--hub".to_owned(), self.fleet.hub_address()])
            .args(["--listen-health", "127.0.0.1:0", "--listen-metrics", "127.0.0.1:0"]))
    }

    async fn registered(&self) -> anyhow::Result<Option<Value>> {
        let answer: Value = self.fleet.api().call("GET", "/v1/clusters", None).await?;
        let all = answer["items"].as_array().context("no items")?;
        Ok(all.iter().find(|c| c["name"] == "staging" && c["state"] != "Revoked").cloned())
    }

    async fn tokens(&self) -> anyhow::Result<BTreeSet<String>> {
        until("the list of tokens", EXITS_WITHIN, || async {
            let answer: Value = self.fleet.api().call("GET", "/v1/tokens", None).await?;
            let items = answer["items"].as_array().context("no items")?;
            Ok(Some(items.iter().map(|token| token["id"].to_string()).collect()))
        })
        .await
    }

    async fn cluster_id(&self) -> anyhow::Result<Option<String>> {
        let secrets = self.secrets();
        let Some(secret) = secrets.get_opt("attest-identity").await? else { return Ok(None) };
        let data = secret.data.unwrap_or_default();
        Ok(data.get("cluster-id").map(|id| String::from_utf8_lossy(&id.0).into_owned()))
    }

    async fn restart_hub(&mut self, failpoint: Option<&str>) -> anyhow::Result<()> {
        self.fleet.hub().process().kill();
        self.fleet.hub().respawn(failpoint)?;
        self.fleet.hub().listens().await
    }

    /// Registers the cluster with a new identity and restarts the process that exits. Returns the number
    /// of exits.
    async fn register(&mut self, exit: Option<(Exiting, &str)>) -> anyhow::Result<u32> {
        let what = exit.map_or("nothing", |(_, point)| point);
        let previous_id = self.registered().await?.map(|cluster| cluster["id"].to_string());
        self.spoke = None;
        let secrets = self.secrets();
        if secrets.get_opt("attest-identity").await?.is_some() {
            secrets.delete("attest-identity", &kube::api::DeleteParams::default()).await?;
        }
        let (hub_failpoint, spoke_failpoint) = match exit {
            Some((Exiting::Hub, point)) => (Some(point), None),
            Some((Exiting::Spoke, point)) => (None, Some(point)),
            None => (None, None),
        };
        self.restart_hub(hub_failpoint).await?;
        let before = self.tokens().await?;
        let accepts = !what.contains("accept");
        let request = json!({"cluster": "staging", "ttlSeconds": 600, "autoAccept": accepts, "replace": true});
        let start = Instant::now();
        let mut exits = 0;
        let token: Value = loop {
            match self.fleet.api().call("POST", "/v1/tokens", Some(&request)).await {
                Ok(token) => break token,
                Err(error) => {
                    ensure!(start.elapsed() < EXITS_WITHIN, error.context(what.to_owned()))
                }
            }
            if self.fleet.hub().process().ended()?.is_some() {
                exits += 1;
                self.fleet.hub().restart().await?;
            }
            tokio::time::sleep(POLL_EVERY).await;
        };
        std::fs::write(&self.token, token["token"].as_str().context("no token")?)?;
        let mut spoke = Process::spawn(self.spec()?.with_failpoint(spoke_failpoint))?;
        let start = Instant::now();
        loop {
            if start.elapsed() > CONVERGED_WITHIN {
                let seen = self.fleet.operator().attest(&["gitops", "cluster", "list"]);
                let hub = last_lines(&self.fleet.hub().process().output());
                bail!("{what}: not registered\n{seen:?}\n{}\n{hub}", last_lines(&spoke.output()));
            }
            tokio::time::sleep(POLL_EVERY).await;
            if self.fleet.hub().process().ended()?.is_some() {
                exits += 1;
                if what.starts_with("after") {
                    // Both are killed: neither may remember more than what is durable.
                    spoke.kill();
                    spoke = spoke.respawn_with_failpoint(None)?;
                }
                self.fleet.hub().restart().await?;
            }
            if spoke.ended()?.is_some() {
                exits += 1;
                spoke = spoke.respawn_with_failpoint(None)?;
            }
            let Ok(Some(cluster)) = self.registered().await else { continue };
            if Some(cluster["id"].to_string()) == previous_id {
                continue;
            }
            if cluster["state"] == "Pending" {
                let request = json!({"fingerprint": cluster["fingerprint"]});
                let accept = "/v1/clusters/staging/accept";
                let _ = self.fleet.api().call::<Value>("POST", accept, Some(&request)).await;
            } else if cluster["connected"] == true {
                let id = self.cluster_id().await?;
                ensure!(cluster["id"].as_str() == id.as_deref(), "{what}: {cluster} is not {id:?}");
                break;
            }
        }
        let after = self.tokens().await?;
        let acknowledged = token["id"].to_string();
        ensure!(before.is_subset(&after) && after.contains(&acknowledged), "{what}: {after:?}");
        self.spoke = Some(spoke);
        Ok(exits)
    }

    /// Revokes, evicts or removes the registered cluster, with the hub exiting at `point`.
    async fn decide(&mut self, point: &str) -> anyhow::Result<()> {
        self.restart_hub(Some(point)).await?;
        // By id: revoked clusters keep the name.
        let id = self.cluster_id().await?.context("no id")?;
        let base = format!("/v1/clusters/{id}");
        let (method, path, body) = if point.contains("revoke") {
            ("POST", format!("{base}/revoke"), Some(json!({"reason": "test"})))
        } else if point.contains("evict") {
            ("POST", format!("{base}/evict"), None)
        } else {
            ("DELETE", base, None)
        };
        let answer = self.fleet.api().call::<Value>(method, &path, body.as_ref()).await;
        ensure!(answer.is_err(), "{point}: {answer:?}");
        self.await_hub_exit(point).await
    }

    /// Waits until the hub has exited, and starts it again without a failpoint.
    async fn await_hub_exit(&mut self, point: &str) -> anyhow::Result<()> {
        let start = Instant::now();
        while self.fleet.hub().process().ended()?.is_none() {
            ensure!(start.elapsed() < EXITS_WITHIN, "the hub did not exit at {point}");
            tokio::time::sleep(POLL_EVERY).await;
        }
        self.fleet.hub().restart().await
    }

    async fn is_connected(&self, when: &str) -> anyhow::Result<()> {
        until(when, CONVERGED_WITHIN, || async {
            let cluster = self.registered().await?;
            Ok(cluster.filter(|cluster| cluster["connected"] == true).map(|_| ()))
        })
        .await
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), "attest-spoke")
    }

    /// Requests a new certificate with the one that the cluster keeps.
    async fn renew(&self) -> anyhow::Result<Bundle> {
        let data = self.secrets().get("attest-identity").await?.data.context("no data")?;
        let identity = Identity {
            cluster: text(&data, "cluster-id")?.parse()?,
            bundle: Bundle::from_pem(&text(&data, "tls.chain")?, &text(&data, "tls.key")?)?,
        };
        let policy = super::policies(&self.client).get("local").await?;
        let policy = serde_json::from_value(policy.data["spec"].clone())?;
        let dial = Dial {
            hub: self.fleet.hub_address().parse()?,
            pin: self.fleet.api().pin,
            policy: &policy,
            arrivals: None,
        };
        let mut session = Session::open(&simulator::endpoint()?, &identity, dial).await?;
        tokio::time::timeout(EXITS_WITHIN, session.renew()).await?
    }

    /// The hub exits when it issues a certificate, and when one is used for the first time.
    async fn renewal(&mut self, point: &str) -> anyhow::Result<()> {
        self.spoke = None;
        self.restart_hub(Some(point)).await?;
        let interrupted = tokio::time::timeout(INTERRUPTED_WITHIN, self.renew()).await;
        ensure!(
            !matches!(interrupted, Ok(Ok(_))),
            "{point}: a certificate was issued before it was durable"
        );
        self.await_hub_exit(point).await?;
        self.spoke = Some(Process::spawn(self.spec()?)?);
        self.is_connected("the certificate in use to be good").await?;

        self.spoke = None;
        let renewed = self.renew().await?;
        let patch = json!({"stringData": {
            "tls.chain": renewed.chain_pem(), "tls.key": renewed.key_pem().as_str(),
        }});
        let patch = Patch::Merge(patch);
        self.secrets().patch("attest-identity", &PatchParams::default(), &patch).await?;
        self.restart_hub(Some(point)).await?;
        self.spoke = Some(Process::spawn(self.spec()?)?);
        self.await_hub_exit(point).await?;
        self.is_connected("the renewed certificate to be good").await
    }

    /// The spoke exits at `point` and is started again; it must be accepted with the same identity.
    async fn spoke_exits_at(&mut self, point: &str) -> anyhow::Result<()> {
        let id = self.cluster_id().await?;
        self.spoke = None;
        let mut spoke = Process::spawn(self.spec()?.with_failpoint(Some(point)))?;
        let start = Instant::now();
        while spoke.ended()?.is_none() {
            if start.elapsed() > EXITS_WITHIN {
                bail!("the spoke did not die at {point}\n{}", last_lines(&spoke.output()));
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
        let spoke = spoke.respawn_with_failpoint(None)?;
        let connected = self.is_connected(point).await;
        connected.with_context(|| last_lines(&spoke.output()))?;
        self.spoke = Some(spoke);
        ensure!(self.cluster_id().await? == id, "{point}: another identity");
        Ok(())
    }

    /// The spoke renews the token of its kubeconfig.
    async fn account_token(&mut self, point: &str) -> anyhow::Result<()> {
        let stale = self.cluster.stale_spoke_token()?;
        let text = spoke_kubeconfig(&self.cluster, &stale);
        std::fs::write(&self.kubeconfig, text)?;

        self.spoke_exits_at(point).await?;

        until("the file to hold a fresh token", EXITS_WITHIN, || async {
            let text = std::fs::read_to_string(&self.kubeconfig)?;
            Ok((!text.contains(&stale)).then_some(()))
        })
        .await
    }

    /// The spoke stores a renewed certificate: its own is about to expire.
    async fn renewed_certificate(&mut self, point: &str) -> anyhow::Result<()> {
        self.spoke = None;
        // A hub that has just started has not limited the rate of renewals yet.
        self.restart_hub(None).await?;
        let home = self.fleet.hub().home().to_owned();
        certify(&self.client, &home, NEARLY_OVER).await?;

        self.spoke_exits_at(point).await
    }

    /// The spoke's certificate has expired, and it gets another token.
    async fn second_join(&mut self, point: &str) -> anyhow::Result<()> {
        self.spoke = None;
        let home = self.fleet.hub().home().to_owned();
        let ended = certify(&self.client, &home, Duration::from_secs(1)).await?;
        until("the certificate to end", EXITS_WITHIN, || async {
            Ok((ended.not_after <= SystemTime::now()).then_some(()))
        })
        .await?;
        std::fs::remove_file(&self.token)?;
        let file = self.token.display().to_string();
        let rejoin = ["gitops", "cluster", "rejoin", "staging", "--token-output", &file];
        until("the hub to know that the spoke is away", CONVERGED_WITHIN, || async {
            self.fleet.operator().attest(&rejoin)?;
            Ok(self.token.exists().then_some(()))
        })
        .await?;

        self.spoke_exits_at(point).await
    }
}

fn text(
    data: &std::collections::BTreeMap<String, ByteString>,
    key: &str,
) -> anyhow::Result<String> {
    Ok(String::from_utf8(data.get(key).with_context(|| key.to_owned())?.0.clone())?)
}

async fn account_token(client: &Client) -> anyhow::Result<String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "attest-spoke");
    let request = serde_json::from_value(json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {},
        "spec": {"audiences": [], "expirationSeconds": 3600}
    }))?;
    let made = accounts.create_token_request("attest-spoke", &Default::default(), &request).await?;
    made.status.and_then(|status| status.token).context("no token")
}

/// Creates a kubeconfig with a token of the spoke's account, as an installer would.
fn spoke_kubeconfig(cluster: &Cluster, token: &str) -> String {
    let authority = data_encoding::BASE64.encode(cluster.authority_pem().as_bytes());
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {
            "server": cluster.server(), "certificate-authority-data": authority
        }}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]
    });
    config.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registration_survives_an_exit_at_every_durable_write() -> anyhow::Result<()> {
    let Some(mut registration) = Registration::set().await? else { return Ok(()) };
    for (who, point) in JOIN_WRITES {
        let exits = registration.register(Some((who, point))).await?;
        ensure!(exits == 1, "{exits} died at {point}");
    }
    for what in ["revoke", "evict", "remove"] {
        // Not durable and not acknowledged: the cluster stays in the fleet.
        registration.decide(&format!("before-{what}-commit")).await?;
        let state = registration.registered().await?.map(|cluster| cluster["state"].clone());
        ensure!(state == Some(json!("Accepted")), "{what}: {state:?}");
    }
    registration.is_connected("the spoke to be connected again").await?;
    for (what, state) in [("revoke", "Revoked"), ("evict", "Evicted"), ("remove", "")] {
        registration.decide(&format!("after-{what}-commit")).await?;
        let answer: Value = registration.fleet.api().call("GET", "/v1/clusters", None).await?;
        let id = registration.cluster_id().await?.context("no id")?;
        let mine = answer["items"].as_array().context("items")?.iter().find(|c| c["id"] == *id);
        ensure!(
            mine.map_or("", |c| c["state"].as_str().unwrap_or_default()) == state,
            "{what}: {mine:?}"
        );
        ensure!(mine.is_none_or(|c| c["connected"] == false), "{what}: {mine:?}");
        registration.register(None).await?;
    }
    for point in ["before-certificate-commit", "after-certificate-commit"] {
        registration.renewal(point).await?;
    }
    for point in ["before-certificate-write", "after-certificate-write"] {
        registration.renewed_certificate(point).await?;
        registration.second_join(point).await?;
    }
    for point in ["before-token-write", "after-token-write"] {
        registration.account_token(point).await?;
    }
    registration.cluster.audit().check_spoke_requests()?;
    Ok(())
}
