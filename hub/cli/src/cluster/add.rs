//! `attest gitops cluster add`: preflight, installation, join, and waiting until the cluster is connected.
//!
//! The kubeconfig is used in this process only. The hub contributes a join token and nothing else: the policy,
//! its keys and pins, the image and the manifests come from the operator's side.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use attest_common::basics::ids::{ClusterId, Name};
use attest_common::trust::policy::Spec;
use attest_documents::{Cluster, List, Token, TokenRequest};
use attest_install::apply::{self, Target};
use attest_install::{Agent, Installation, SPOKE_NAME, SYSTEM_NAMESPACE, in_cluster_only};
use attest_supply::trust_policy;
use k8s_openapi::api::authentication::v1::TokenRequest as AccountTokenRequest;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::PostParams;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{POLL_EVERY, has_expired, held_as_another, is_same, registered, rejoin_line, state};
use crate::client::Client;
use crate::context::{self, Config, Hub};
use crate::hub_args::HubArgs;
use crate::human::{confirm, duration, quoted};
use crate::printer::Printer;
use crate::target::{
    INSTALLATION, Right, Seen, TargetArgs, TargetCluster, installation_rights, write_private,
};
use crate::trust::{Narrowing, generate, read_policy};

/// How long the join token of `cluster add` is good for, in seconds, beyond the wait itself.
const TOKEN_SPARE_S: u64 = 300;
/// Life of the account token in an external agent's kubeconfig; the spoke renews it long before.
const ACCOUNT_TOKEN_S: i64 = 24 * 60 * 60;

/// The spoke's image when no flag names one: fixed when this program is built.
const SPOKE_IMAGE: &str = match option_env!("ATTEST_SPOKE_IMAGE") {
    Some(image) => image,
    None => concat!("ghcr.io/attest-ci/attest-spoke:", env!("CARGO_PKG_VERSION")),
};

#[derive(Debug, clap::Args)]
pub(crate) struct AddArgs {
    /// Name of the cluster within the fleet
    name: Name,
    #[command(flatten)]
    target: TargetArgs,
    /// Trust policy to install; made from the context's keys when absent
    #[arg(long, value_name = "FILE", conflicts_with_all = ["names", "repos", "namespaces", "allow_remove"])]
    trust_policy: Option<PathBuf>,
    /// Environment whose releases may run there; the cluster's name when absent
    #[arg(long)]
    environment: Option<Name>,
    #[command(flatten)]
    narrowing: Narrowing,
    /// Where the spoke runs
    #[arg(long, value_enum, default_value_t = AgentPlace::InCluster)]
    agent: AgentPlace,
    /// Image of the spoke
    #[arg(long, value_name = "REF", default_value = SPOKE_IMAGE)]
    spoke_image: String,
    /// With --agent external: where the spoke's kubeconfig goes
    #[arg(long, value_name = "FILE")]
    kubeconfig_output: Option<PathBuf>,
    /// With --agent external: where the join token goes
    #[arg(long, value_name = "FILE")]
    token_output: Option<PathBuf>,
    /// Replace a cluster of this name, or a registration that this cluster has elsewhere
    #[arg(long)]
    replace: bool,
    /// Check everything and show what would be installed; change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Longest wait for the spoke, in seconds
    #[arg(long, default_value_t = 300, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
}

/// Where the spoke runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum AgentPlace {
    /// As a Deployment of the cluster
    InCluster,
    /// Outside; the command prints how to start it
    External,
}

/// What the preflight found out about the two ends.
#[derive(Debug)]
enum Standing {
    /// Nothing there: a token is needed.
    New,
    /// This very registration exists; only the manifests are brought up to date.
    Same(ClusterId),
    /// The spoke there has an identity that does not count any more: it joins anew.
    Rejoin,
}

pub(super) async fn add(args: AddArgs, hub: &HubArgs, printer: &Printer) -> anyhow::Result<()> {
    let config = Config::load()?;
    let entry = config.hub(hub.hub.as_deref())?;
    let client = Client::new(entry)?;
    let environment = args.environment.clone().unwrap_or_else(|| args.name.clone());
    // Without a key nothing could ever run there: said before anything is asked or changed.
    let policy = match &args.trust_policy {
        Some(file) => read_policy(file)?,
        None => generate(&config, entry, &environment, Some(&args.name), &args.narrowing)?,
    };

    let cluster = TargetCluster::open(&args.target).await?;
    let seen = cluster.look().await?;
    printer.note(&format!(
        "[preflight] reached {} ({}), Kubernetes {}",
        cluster.server, cluster.context, seen.kubernetes_version
    ));
    let policy = trust_policy::complete(policy, Some(&args.name), &seen.kube_system_uid)?;
    check_policy(&policy, entry, args.trust_policy.is_some(), printer)?;
    let clusters: List<Cluster> = client.get("/v1/clusters").await?;
    let ends = Ends::of(&args.name, args.replace, &clusters.items, &seen, &entry.ca_pin)?;
    let standing = ends.standing(&cluster.flags)?;
    printer.note(&match &standing {
        Standing::New | Standing::Rejoin if let Some(other) = ends.elsewhere => format!(
            "[preflight] this cluster is registered as {} ({}, {}); it joins anew as {}",
            other.name,
            other.id,
            state(other),
            args.name
        ),
        Standing::New => {
            format!("[preflight] the name {} is free at hub {}", args.name, entry.name)
        }
        Standing::Same(id) => format!("[preflight] {} is registered already, as {id}", args.name),
        Standing::Rejoin => "[preflight] the spoke there will join anew".to_owned(),
    });
    let superseded = match args.agent {
        AgentPlace::InCluster => Vec::new(),
        AgentPlace::External => apply::present(&cluster.client, &in_cluster_only()).await?,
    };
    let plan = Plan { args: &args, policy: &policy, hub: &entry.spoke_address, superseded };
    let rehearsed = plan.manifests(Some("token"));
    let rights = installation_rights(&rehearsed, &plan.rights(&standing))?;
    cluster.check_rights(INSTALLATION, &rights).await?;
    apply::rehearse(&cluster.client, &rehearsed).await?;
    printer.note("[preflight] rights suffice");
    let has_joined = !matches!(standing, Standing::New);
    cluster.check_namespaces(&rehearsed, has_joined, printer).await?;

    plan.show(&rehearsed, printer)?;
    if args.dry_run {
        printer.line(&format!("cluster/{} can be registered (dry run)", args.name));
        return Ok(());
    }
    confirm(&format!("Install this into context {}?", cluster.context), args.yes, printer)?;
    Run { plan: &plan, client: &client, cluster: &cluster, printer }.register(&standing).await?;
    if let Some(other) = ends.elsewhere.filter(|_| !matches!(standing, Standing::Same(_))) {
        printer.note(&format!(
            "the cluster is still listed as {} too; `attest gitops cluster rm {}` ends that",
            other.name, other.id
        ));
    }
    Ok(())
}

/// A policy from a file must be for this hub, or the cluster would never listen to it.
fn check_policy(
    policy: &Spec,
    hub: &Hub,
    from_file: bool,
    printer: &Printer,
) -> anyhow::Result<()> {
    let loaded = policy.load().context("the trust policy cannot be used")?;
    if !loaded.hub_keys.keys().any(|id| id.to_string() == hub.hub_key_id) {
        bail!(
            "the trust policy does not list the signing key of hub `{}`, {}",
            hub.name,
            hub.hub_key_id
        );
    }
    if !loaded.ca_pins.contains(&hub.ca_pin) {
        bail!(
            "the trust policy does not list the certificate authority of hub `{}`, {}",
            hub.name,
            hub.ca_pin
        );
    }
    if from_file && loaded.ci_keys().is_empty() {
        printer.warning(&format!(
            "the trust policy has no CI key for environment {}: every release will be refused",
            policy.environment
        ));
    }
    Ok(())
}

/// What the hub and the cluster say of each other before anything changes.
struct Ends<'a> {
    name: &'a Name,
    replace: bool,
    /// The hub's entry of this name. The name of a cluster that was shut out is free again; its identity is not.
    known: Option<&'a Cluster>,
    /// The hub's entry of this very cluster under another name.
    elsewhere: Option<&'a Cluster>,
    /// The identity of the spoke there, once a hub has admitted it; before, an attempt just goes on.
    here: Option<ClusterId>,
    /// True when the policy there names this hub.
    our_hub: bool,
}

impl<'a> Ends<'a> {
    fn of(
        name: &'a Name,
        replace: bool,
        clusters: &'a [Cluster],
        seen: &Seen,
        ca_pin: &str,
    ) -> anyhow::Result<Self> {
        let known = clusters.iter().find(|c| c.name == name.as_str() && c.state != "Revoked");
        let here: Option<ClusterId> = match seen.spoke.as_ref().filter(|spoke| spoke.joined) {
            Some(spoke) => {
                let id = spoke.cluster_id.parse();
                Some(id.context("the cluster's identity Secret is malformed")?)
            }
            None => None,
        };
        let elsewhere = held_as_another(clusters, name, here.as_ref(), &seen.kube_system_uid);
        let pins = seen.policy.as_ref().and_then(|spec| spec.pointer("/hub/caPins"));
        let pins = pins.and_then(Value::as_array);
        let our_hub = pins.is_some_and(|pins| pins.iter().any(|pin| *pin == *ca_pin));
        Ok(Self { name, replace, known, elsewhere, here, our_hub })
    }

    /// `flags` are those that reach the cluster.
    fn standing(&self, flags: &str) -> anyhow::Result<Standing> {
        let Self { name, replace, known, elsewhere, ref here, our_hub } = *self;
        match (known, here) {
            (Some(known), Some(here)) if is_same(known, here) && known.state == "Accepted" => {
                if known.certificate_expires_at.is_some_and(has_expired) && !known.connected {
                    bail!(
                        "{name} is registered, and its certificate has expired: `{}`",
                        rejoin_line(&known.name, flags)
                    );
                }
                Ok(Standing::Same(here.clone()))
            }
            (Some(known), _) if known.state == "Evicted" && !replace => {
                bail!(
                    "{name} was evicted; to let it in again: `{}`",
                    rejoin_line(&known.name, flags)
                )
            }
            (Some(known), Some(here)) if is_same(known, here) && !replace => bail!(
                "{name} is registered and waits to be let in: `attest gitops cluster accept {name} \
                 --fingerprint {}`",
                known.fingerprint
            ),
            (Some(_), None) if replace => Ok(Standing::New),
            (Some(_), Some(_)) if replace => Ok(Standing::Rejoin),
            (Some(known), _) => bail!(
                "the name {name} is taken by cluster {} ({}); choose another name, remove that one \
                 with `attest gitops cluster rm {name}`, or replace it with --replace",
                known.id,
                known.state
            ),
            (None, _) if let Some(other) = elsewhere.filter(|_| !replace) => bail!(
                "this cluster is registered as {} already ({}, {}). Is it the wrong kubeconfig? \
                 --replace takes it from {} and registers it as {name}",
                other.name,
                other.id,
                state(other),
                other.name
            ),
            (None, None) => Ok(Standing::New),
            // The same hub has forgotten it: `cluster rm` came before.
            (None, Some(_)) if replace || our_hub => Ok(Standing::Rejoin),
            (None, Some(here)) => bail!(
                "this cluster is registered with another hub, as {here}; --replace takes it over"
            ),
        }
    }
}

/// What is to be installed.
struct Plan<'a> {
    args: &'a AddArgs,
    policy: &'a Spec,
    hub: &'a str,
    /// Objects of a spoke in the cluster, which is to run outside from now on.
    superseded: Vec<Target>,
}

impl Plan<'_> {
    fn manifests(&self, token: Option<&str>) -> Vec<Value> {
        let agent = match self.args.agent {
            AgentPlace::InCluster => {
                Agent::InCluster { image: &self.args.spoke_image, hub: self.hub, token }
            }
            AgentPlace::External => Agent::External,
        };
        Installation { policy: self.policy, agent }.manifests()
    }

    /// What is done beside applying manifests.
    fn rights(&self, standing: &Standing) -> Vec<Right> {
        let mut rights = vec![Right::of_spoke("list", "pods", "")];
        rights.extend(self.superseded.iter().map(|target| Right::of("delete", target)));
        if matches!(standing, Standing::New | Standing::Rejoin) {
            rights.push(Right::of_spoke("deletecollection", "pods", ""));
        }
        if matches!(standing, Standing::Rejoin) {
            rights.push(Right::of_spoke("delete", "secrets", ""));
        }
        if self.args.agent == AgentPlace::External {
            rights.push(Right::of_spoke("create", "serviceaccounts", "token"));
        }
        rights
    }

    fn show(&self, manifests: &[Value], printer: &Printer) -> anyhow::Result<()> {
        printer.note("to be installed:");
        for manifest in manifests {
            printer.note(&format!("  {}", Target::of(manifest)?));
        }
        for target in &self.superseded {
            printer.note(&format!("to be removed, as the spoke runs outside: {target}"));
        }
        printer.note("with this trust policy:");
        for line in trust_policy::to_yaml(self.policy)?.lines() {
            printer.note(&format!("  {line}"));
        }
        Ok(())
    }

    fn file(&self, given: Option<&PathBuf>, name: &str) -> anyhow::Result<PathBuf> {
        match given {
            Some(file) => Ok(file.clone()),
            None => {
                Ok(context::directory()?.join("spokes").join(self.args.name.as_str()).join(name))
            }
        }
    }
}

/// The part that changes things.
struct Run<'a> {
    plan: &'a Plan<'a>,
    client: &'a Client,
    cluster: &'a TargetCluster,
    printer: &'a Printer,
}

impl Run<'_> {
    async fn register(&self, standing: &Standing) -> anyhow::Result<()> {
        let Self { plan, cluster, printer, .. } = self;
        let name = &plan.args.name;
        let started = Instant::now();
        let token = match standing {
            Standing::Same(_) => None,
            Standing::New | Standing::Rejoin => Some(self.token().await?),
        };
        if let Err(error) = self.install(standing, token.as_ref()).await {
            // Nobody will use it any more.
            if let Some(token) = &token {
                let path = format!("/v1/tokens/{}", token.id);
                let _ = self.client.act(Method::DELETE, &path, None::<&()>).await;
            }
            return Err(error);
        }
        let id = match standing {
            Standing::Same(id) => id.clone(),
            Standing::New | Standing::Rejoin => self.identity(started).await?,
        };
        apply::write_cluster_id(&cluster.client, id.as_str()).await?;
        printer.note(&format!("[join] the trust policy is for {id}"));
        self.connected(started, &id).await?;
        printer.line(&format!("cluster/{name} registered"));
        printer.note(&format!("{name} is connected as {id}, after {}", elapsed(started)));
        printer.note("next:");
        printer.note("  attest gitops app apply -f APPLICATION.yaml");
        Ok(())
    }

    async fn token(&self) -> anyhow::Result<Token> {
        let request = TokenRequest {
            cluster: self.plan.args.name.to_string(),
            ttl_seconds: self.plan.args.timeout + TOKEN_SPARE_S,
            auto_accept: true,
            replace: self.plan.args.replace,
            identity: None,
        };
        self.client.post("/v1/tokens", &request).await.context("the hub gives no join token")
    }

    async fn install(&self, standing: &Standing, token: Option<&Token>) -> anyhow::Result<()> {
        let Self { plan, cluster, printer, .. } = self;
        let secret =
            token.map(|token| token.token.as_deref().context("the hub's answer has no token"));
        let secret = secret.transpose()?;
        let manifests = plan.manifests(secret);
        self.supersede().await?;
        if matches!(standing, Standing::Rejoin) {
            cluster.forget_identity().await?;
        }
        let had_pods = cluster.has_pods().await?;
        let total = manifests.len();
        apply::apply(&cluster.client, &manifests, |_| {}).await?;
        printer.note(&format!("[install] {total} objects applied"));
        for gone in apply::prune(&cluster.client, &manifests).await? {
            printer
                .note(&format!("[install] {gone} removed: the policy has no use for it any more"));
        }
        if secret.is_some() && had_pods {
            // It holds an older token, or an identity that is gone.
            cluster.restart_spoke().await?;
        }
        if plan.args.agent == AgentPlace::External {
            self.external(secret).await?;
        }
        Ok(())
    }

    /// Ends the spoke in the cluster, before one outside has its identity.
    async fn supersede(&self) -> anyhow::Result<()> {
        let Self { plan, cluster, printer, .. } = self;
        for target in &plan.superseded {
            apply::delete(&cluster.client, target).await?;
            printer.note(&format!("[install] {target} removed: the spoke runs outside"));
        }
        let until = Instant::now() + Duration::from_secs(plan.args.timeout);
        while !plan.superseded.is_empty() && cluster.has_pods().await? {
            if Instant::now() >= until {
                bail!("pods of the former spoke still run in {SYSTEM_NAMESPACE}");
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
        Ok(())
    }

    /// Files for a spoke outside the cluster, and the line that starts it.
    async fn external(&self, secret: Option<&str>) -> anyhow::Result<()> {
        let Self { plan, cluster, printer, .. } = self;
        let AddArgs { name, kubeconfig_output, token_output, .. } = plan.args;
        let kubeconfig_file = plan.file(kubeconfig_output.as_ref(), "kubeconfig")?;
        let kubeconfig = cluster.kubeconfig_with(name.as_str(), &self.account_token().await?)?;
        write_private(&kubeconfig_file, kubeconfig.as_bytes())?;
        let mut line =
            format!("attest-spoke --kubeconfig {} --hub {}", quoted(&kubeconfig_file), plan.hub);
        if let Some(secret) = secret {
            let token_file = plan.file(token_output.as_ref(), "join-token")?;
            write_private(&token_file, secret.as_bytes())?;
            line.push_str(&format!(" --join-token-file {}", quoted(&token_file)));
        }
        printer.note("start the spoke:");
        printer.line(&line);
        Ok(())
    }

    async fn account_token(&self) -> anyhow::Result<String> {
        let accounts: Api<ServiceAccount> =
            Api::namespaced(self.cluster.client.clone(), SYSTEM_NAMESPACE);
        let request: AccountTokenRequest = serde_json::from_value(json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {},
            "spec": {"audiences": [], "expirationSeconds": ACCOUNT_TOKEN_S}
        }))?;
        let answer =
            accounts.create_token_request(SPOKE_NAME, &PostParams::default(), &request).await;
        let answer = answer.context("cannot get a token of the spoke's account")?;
        answer.status.and_then(|status| status.token).context("the API server gave no token")
    }

    /// Waits for the identity that the spoke makes when it joins.
    async fn identity(&self, started: Instant) -> anyhow::Result<ClusterId> {
        let Self { cluster, printer, plan, .. } = self;
        let mut told = String::new();
        loop {
            if let Some(spoke) = cluster.spoke().await? {
                return spoke
                    .cluster_id
                    .parse()
                    .context("the spoke's identity Secret is malformed");
            }
            let trouble = match plan.args.agent {
                AgentPlace::InCluster => cluster.pod_trouble().await,
                AgentPlace::External => None,
            };
            let now = trouble.unwrap_or_else(|| "waiting for the spoke to join".to_owned());
            if now != told {
                printer.note(&format!("[join] {now} ({})", elapsed(started)));
                told = now;
            }
            if self.is_late(started) {
                return Err(self.late("started", &told));
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
    }

    /// Waits until the hub has the spoke's session.
    async fn connected(&self, started: Instant, id: &ClusterId) -> anyhow::Result<()> {
        let Self { client, printer, plan, .. } = self;
        let mut told = "the hub has not answered yet".to_owned();
        let until = started + Duration::from_secs(plan.args.timeout);
        let client = client.until(until.into_std());
        loop {
            let known = match registered(&client, plan.args.name.as_str()).await {
                Err(error) if self.is_late(started) => {
                    return Err(error.context(self.late("connected", &told)));
                }
                known => known?,
            };
            let now = match &known {
                Some(known) if is_same(known, id) && known.connected => return Ok(()),
                Some(known) if is_same(known, id) => format!("{}, not connected yet", known.state),
                Some(known) => format!("the hub knows {} by this name, not {id}", known.id),
                None => "the hub does not know the cluster yet".to_owned(),
            };
            if now != told {
                printer.note(&format!("[connect] {now} ({})", elapsed(started)));
                told = now;
            }
            if self.is_late(started) {
                return Err(self.late("connected", &told));
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
    }

    /// What to look at when the wait was in vain.
    fn late(&self, awaited: &str, told: &str) -> anyhow::Error {
        let Self { plan, cluster, .. } = self;
        let logs = match plan.args.agent {
            AgentPlace::InCluster => format!("`{}` tells more", cluster.logs()),
            AgentPlace::External => "its log tells more".to_owned(),
        };
        anyhow!(
            "the spoke has not {awaited} within {} s: {told}. Does it reach {} over UDP? {logs}. \
             The same command goes on where this one stopped",
            plan.args.timeout,
            plan.hub,
        )
    }

    fn is_late(&self, started: Instant) -> bool {
        started.elapsed() >= Duration::from_secs(self.plan.args.timeout)
    }
}

fn elapsed(started: Instant) -> String {
    duration(u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::super::tests::cluster;
    use super::*;
    use crate::target::SpokeSeen;

    const HERE: &str = "c-00000000000000aa";
    const UID: &str = "uid-of-staging";

    /// A cluster that this hub has admitted, or one whose spoke is gone.
    fn seen(with_spoke: bool) -> Seen {
        let spoke = SpokeSeen { cluster_id: HERE.to_owned(), joined: true };
        Seen {
            kubernetes_version: "v1.37.2".to_owned(),
            kube_system_uid: UID.to_owned(),
            spoke: with_spoke.then_some(spoke),
            policy: Some(json!({"hub": {"caPins": ["pin"]}})),
        }
    }

    fn standing_of(
        name: &str,
        replace: bool,
        clusters: &[Cluster],
        seen: &Seen,
    ) -> anyhow::Result<Standing> {
        Ends::of(&name.parse().unwrap(), replace, clusters, seen, "pin")?.standing("--context a")
    }

    #[test]
    fn a_cluster_that_is_registered_under_another_name_is_not_taken_over_without_replace() {
        let by_spoke = [cluster("staging", HERE, "Accepted", "another")];
        let by_uid = [cluster("staging", "c-00000000000000bb", "Accepted", UID)];

        for (clusters, seen) in
            [(&by_spoke, seen(true)), (&by_uid, seen(true)), (&by_uid, seen(false))]
        {
            let error = standing_of("qa", false, clusters, &seen).unwrap_err().to_string();

            assert!(error.contains("registered as staging already"), "{error}");
            assert!(error.contains("--replace"), "{error}");
        }
        let taken = standing_of("qa", true, &by_spoke, &seen(true));
        assert!(matches!(taken, Ok(Standing::Rejoin)));
        let taken = standing_of("qa", true, &by_uid, &seen(false));
        assert!(matches!(taken, Ok(Standing::New)));
    }

    #[test]
    fn a_cluster_that_the_hub_has_forgotten_or_shut_out_joins_anew() {
        let shut_out = [cluster("staging", HERE, "Revoked", UID)];
        let other = [cluster("production", "c-00000000000000bb", "Accepted", "another")];

        for clusters in [&[], shut_out.as_slice(), &other] {
            for name in ["qa", "staging"] {
                let standing = standing_of(name, false, clusters, &seen(true));
                assert!(matches!(standing, Ok(Standing::Rejoin)), "{standing:?}");
                let standing = standing_of(name, false, clusters, &seen(false));
                assert!(matches!(standing, Ok(Standing::New)), "{standing:?}");
            }
        }
    }

    #[test]
    fn the_same_name_goes_on_though_an_older_entry_names_the_same_cluster() {
        let clusters = [
            cluster("staging", "c-00000000000000bb", "Accepted", UID),
            cluster("qa", HERE, "Accepted", UID),
        ];

        let standing = standing_of("qa", false, &clusters, &seen(true));

        assert!(matches!(standing, Ok(Standing::Same(_))), "{standing:?}");
    }
}
