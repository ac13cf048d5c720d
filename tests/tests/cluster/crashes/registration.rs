//! Registration, verdicts and renewal, with hub or spoke dying at each durable write.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail, ensure};
use attest_certs::Bundle;
use attest_hub::core::store::{Change, Expected, RedbStore, Store, Table};
use attest_tests::cluster::Cluster;
use attest_tests::fleet::program;
use attest_tests::process::{Process, Spec};
use attest_tests::real::{Agents, RealFleet};
use attest_tests::simulator::{self, Dial, Identity, Session};
use attest_tests::wait::{POLL_EVERY, until};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::{CONVERGED_WITHIN, DIES_WITHIN, last_lines};
use crate::registration::certify;

/// Longer than a renewal takes, shorter than the silence after which a connection counts as dead.
const LOST_WITHIN: Duration = Duration::from_secs(2);

/// What is left of a certificate that begins five minutes ago: more than three quarters are over.
const NEARLY_OVER: Duration = Duration::from_secs(60);

/// Who dies in a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Hub,
    Spoke,
}

/// Every durable write of a registration.
const JOIN_WRITES: [(Who, &str); 14] = [
    (Who::Hub, "before-token-commit"),
    (Who::Hub, "after-token-commit"),
    (Who::Hub, "before-join-commit"),
    (Who::Hub, "after-join-commit"),
    (Who::Hub, "before-introduction-commit"),
    (Who::Hub, "after-introduction-commit"),
    (Who::Hub, "before-accept-commit"),
    (Who::Hub, "after-accept-commit"),
    (Who::Spoke, "before-identity-write"),
    (Who::Spoke, "after-identity-write"),
    (Who::Spoke, "before-certificate-write"),
    (Who::Spoke, "after-certificate-write"),
    (Who::Spoke, "before-join-delete"),
    (Who::Spoke, "after-join-delete"),
];

/// A hub and a cluster that is registered again and again.
struct Door {
    // Ends before the cluster it serves.
    spoke: Option<Process>,
    fleet: RealFleet,
    cluster: Cluster,
    client: Client,
    kubeconfig: PathBuf,
    token: PathBuf,
}

impl Door {
    async fn set() -> anyhow::Result<Option<Self>> {
        let mut quiet = |_| {};
        let started = RealFleet::start_with(&[], Agents::External, &mut quiet);
        let (fleet, cluster) = tokio::try_join!(started, Cluster::start("staging"))?;
        let (Some(fleet), Some(cluster)) = (fleet, cluster) else { return Ok(None) };
        let at = |name: &str| fleet.directory().join(name);
        let public = fleet.key().with_extension("pub").display().to_string();
        let policy = at("policy.yaml").display().to_string();
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
        let kubeconfig = at("spoke.kubeconfig");
        std::fs::write(&kubeconfig, spoke_kubeconfig(&cluster, &account_token(&client).await?))?;
        let token = at("token");
        Ok(Some(Self { spoke: None, fleet, cluster, client, kubeconfig, token }))
    }

    fn spec(&self) -> anyhow::Result<Spec> {
        let log = self.fleet.directory().join("spoke.log");
        let file = |path: &Path| path.display().to_string();
        Ok(Spec::new(program("attest-spoke")?, log)
            .args(["--kubeconfig".to_owned(), file(&self.kubeconfig)])
            .args(["--join-token-file".to_owned(), file(&self.token)])
            .args(["--hub".to_owned(), self.fleet.hub_address()])
            .args(["--listen-health", "127.0.0.1:0", "--listen-metrics", "127.0.0.1:0"]))
    }

    async fn registered(&self) -> anyhow::Result<Option<Value>> {
        let answer: Value = self.fleet.api().call("GET", "/v1/clusters", None).await?;
        let all = answer["items"].as_array().context("no items")?;
        Ok(all.iter().find(|c| c["name"] == "staging" && c["state"] != "Revoked").cloned())
    }

    async fn tokens(&self) -> anyhow::Result<BTreeSet<String>> {
        until("the list of tokens", DIES_WITHIN, || async {
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

    async fn hub_restarts(&mut self, failpoint: Option<&str>) -> anyhow::Result<()> {
        self.fleet.hub().process().kill();
        self.fleet.hub().respawn(failpoint)?;
        self.fleet.hub().listens().await
    }

    /// Registers the cluster with a new identity; whoever dies is started again. Returns how many died.
    async fn register(&mut self, death: Option<(Who, &str)>) -> anyhow::Result<u32> {
        let what = death.map_or("nothing", |(_, point)| point);
        let former = self.registered().await?.map(|cluster| cluster["id"].to_string());
        self.spoke = None;
        let secrets = self.secrets();
        if secrets.get_opt("attest-identity").await?.is_some() {
            secrets.delete("attest-identity", &kube::api::DeleteParams::default()).await?;
        }
        let point_of = |who| death.filter(|(dies, _)| *dies == who).map(|(_, point)| point);
        self.hub_restarts(point_of(Who::Hub)).await?;
        let before = self.tokens().await?;
        let accepts = !what.contains("accept");
        let asked = json!({"cluster": "staging", "ttlSeconds": 600, "autoAccept": accepts, "replace": true});
        let start = Instant::now();
        let mut deaths = 0;
        let token: Value = loop {
            match self.fleet.api().call("POST", "/v1/tokens", Some(&asked)).await {
                Ok(token) => break token,
                Err(error) => {
                    ensure!(start.elapsed() < DIES_WITHIN, error.context(what.to_owned()))
                }
            }
            if self.fleet.hub().process().ended()?.is_some() {
                deaths += 1;
                self.fleet.hub().restart().await?;
            }
            tokio::time::sleep(POLL_EVERY).await;
        };
        std::fs::write(&self.token, token["token"].as_str().context("no token")?)?;
        let mut spoke = Process::spawn(self.spec()?.with_failpoint(point_of(Who::Spoke)))?;
        let start = Instant::now();
        loop {
            if start.elapsed() > CONVERGED_WITHIN {
                let seen = self.fleet.operator().attest(&["gitops", "cluster", "list"]);
                let hub = last_lines(&self.fleet.hub().process().output());
                bail!("{what}: not registered\n{seen:?}\n{}\n{hub}", last_lines(&spoke.output()));
            }
            tokio::time::sleep(POLL_EVERY).await;
            if self.fleet.hub().process().ended()?.is_some() {
                deaths += 1;
                if what.starts_with("after") {
                    // Both at once: neither remembers more than what is durable.
                    spoke.kill();
                    spoke = spoke.respawn_with_failpoint(None)?;
                }
                self.fleet.hub().restart().await?;
            }
            if spoke.ended()?.is_some() {
                deaths += 1;
                spoke = spoke.respawn_with_failpoint(None)?;
            }
            let Ok(Some(cluster)) = self.registered().await else { continue };
            if Some(cluster["id"].to_string()) == former {
                continue;
            }
            if cluster["state"] == "Pending" {
                let asked = json!({"fingerprint": cluster["fingerprint"]});
                let accept = "/v1/clusters/staging/accept";
                let _ = self.fleet.api().call::<Value>("POST", accept, Some(&asked)).await;
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
        Ok(deaths)
    }

    /// The operator's word on a registered cluster, and the hub dies over it.
    async fn judge(&mut self, point: &str) -> anyhow::Result<()> {
        self.hub_restarts(Some(point)).await?;
        // By its id: those that were shut out before it keep the name.
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
        self.hub_dies(point).await
    }

    /// Waits until the hub has died by itself, and starts it again to live.
    async fn hub_dies(&mut self, point: &str) -> anyhow::Result<()> {
        let start = Instant::now();
        while self.fleet.hub().process().ended()?.is_none() {
            ensure!(start.elapsed() < DIES_WITHIN, "the hub did not die at {point}");
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
        Api::namespaced(self.client.clone(), "attest-system")
    }

    /// A new certificate, asked for with the one that the cluster keeps.
    async fn renew(&self) -> anyhow::Result<Bundle> {
        let data = self.secrets().get("attest-identity").await?.data.context("no data")?;
        let text = |key: &str| -> anyhow::Result<String> {
            Ok(String::from_utf8(data.get(key).with_context(|| key.to_owned())?.0.clone())?)
        };
        let identity = Identity {
            cluster: text("cluster-id")?.parse()?,
            bundle: Bundle::from_pem(&text("tls.chain")?, &text("tls.key")?)?,
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
        tokio::time::timeout(DIES_WITHIN, session.renew()).await?
    }

    /// The hub dies when it gives out a certificate, and when one is used for the first time.
    async fn renewal(&mut self, point: &str) -> anyhow::Result<()> {
        self.spoke = None;
        self.hub_restarts(Some(point)).await?;
        let lost = self.renew();
        let lost = tokio::time::timeout(LOST_WITHIN, lost).await;
        ensure!(!matches!(lost, Ok(Ok(_))), "{point}: a certificate came before it was durable");
        self.hub_dies(point).await?;
        self.spoke = Some(Process::spawn(self.spec()?)?);
        self.is_connected("the certificate in use to be good").await?;

        self.spoke = None;
        let renewed = self.renew().await?;
        let encoded = |text: &str| data_encoding::BASE64.encode(text.as_bytes());
        let patch = json!({"data": {
            "tls.chain": encoded(&renewed.chain_pem()), "tls.key": encoded(&renewed.key_pem()),
        }});
        let patch = Patch::Merge(patch);
        self.secrets().patch("attest-identity", &PatchParams::default(), &patch).await?;
        self.hub_restarts(Some(point)).await?;
        self.spoke = Some(Process::spawn(self.spec()?)?);
        self.hub_dies(point).await?;
        self.is_connected("the renewed certificate to be good").await
    }

    /// The spoke dies at a point of its own, and is started again: it must be let in as it was.
    async fn spoke_dies_at(&mut self, point: &str) -> anyhow::Result<()> {
        let id = self.cluster_id().await?;
        self.spoke = None;
        let mut spoke = Process::spawn(self.spec()?.with_failpoint(Some(point)))?;
        let start = Instant::now();
        while spoke.ended()?.is_none() {
            if start.elapsed() > DIES_WITHIN {
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

        self.spoke_dies_at(point).await?;

        until("the file to hold a fresh token", DIES_WITHIN, || async {
            let text = std::fs::read_to_string(&self.kubeconfig)?;
            Ok((!text.contains(&stale)).then_some(()))
        })
        .await
    }

    /// The spoke stores a renewed certificate: the one it has is nearly over, and the hub knows it.
    async fn renewed_certificate(&mut self, point: &str) -> anyhow::Result<()> {
        let id = self.cluster_id().await?.context("no id")?;
        self.spoke = None;
        self.fleet.hub().process().kill();
        let home = self.fleet.hub().home().to_owned();
        let issued = certify(&self.client, &home, NEARLY_OVER).await?;
        let store = RedbStore::open(&home.join("hub.redb"))?;
        let record = store.get(Table::Clusters, &id)?.context("no record of the cluster")?;
        let mut record: Value = serde_json::from_slice(&record)?;
        record["serial"] = json!(issued.serial.to_string());
        let value = serde_json::to_vec(&record)?;
        let expected = Expected::Anything;
        store
            .commit("test", &[Change::Put { table: Table::Clusters, key: id, expected, value }])?;
        drop(store);
        self.fleet.hub().restart().await?;

        self.spoke_dies_at(point).await
    }

    /// The spoke's certificate has expired, and it is given another token.
    async fn second_join(&mut self, point: &str) -> anyhow::Result<()> {
        self.spoke = None;
        let home = self.fleet.hub().home().to_owned();
        let ended = certify(&self.client, &home, Duration::from_secs(1)).await?;
        until("the certificate to end", DIES_WITHIN, || async {
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

        self.spoke_dies_at(point).await
    }
}

async fn account_token(client: &Client) -> anyhow::Result<String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "attest-system");
    let request = serde_json::from_value(json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {},
        "spec": {"audiences": [], "expirationSeconds": 3600}
    }))?;
    let made = accounts.create_token_request("attest-spoke", &Default::default(), &request).await?;
    made.status.and_then(|status| status.token).context("no token")
}

/// A kubeconfig with a token of the spoke's account, as an installer would give it.
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
async fn a_registration_survives_a_death_at_every_durable_write() -> anyhow::Result<()> {
    let Some(mut door) = Door::set().await? else { return Ok(()) };
    for (who, point) in JOIN_WRITES {
        let deaths = door.register(Some((who, point))).await?;
        ensure!(deaths == 1, "{deaths} died at {point}");
    }
    for what in ["revoke", "evict", "remove"] {
        // Not durable, not answered: the cluster stays in the fleet.
        door.judge(&format!("before-{what}-commit")).await?;
        let state = door.registered().await?.map(|cluster| cluster["state"].clone());
        ensure!(state == Some(json!("Accepted")), "{what}: {state:?}");
    }
    door.is_connected("the spoke to be connected again").await?;
    for (what, state) in [("revoke", "Revoked"), ("evict", "Evicted"), ("remove", "")] {
        door.judge(&format!("after-{what}-commit")).await?;
        let answer: Value = door.fleet.api().call("GET", "/v1/clusters", None).await?;
        let id = door.cluster_id().await?.context("no id")?;
        let mine = answer["items"].as_array().context("items")?.iter().find(|c| c["id"] == *id);
        ensure!(
            mine.map_or("", |c| c["state"].as_str().unwrap_or_default()) == state,
            "{what}: {mine:?}"
        );
        ensure!(mine.is_none_or(|c| c["connected"] == false), "{what}: {mine:?}");
        door.register(None).await?;
    }
    for point in ["before-certificate-commit", "after-certificate-commit"] {
        door.renewal(point).await?;
    }
    for point in ["before-certificate-write", "after-certificate-write"] {
        door.renewed_certificate(point).await?;
        door.second_join(point).await?;
    }
    for point in ["before-token-write", "after-token-write"] {
        door.account_token(point).await?;
    }
    door.cluster.audit().check_spoke_requests()?;
    Ok(())
}
