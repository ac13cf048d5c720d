//! `attest gitops cluster add`: preflight, installation, join, and waiting until the cluster is connected.
//!
//! The kubeconfig is used in this process only. The hub contributes a join token and nothing else: the policy,
//! its keys and pins, the image and the manifests come from the operator's side.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use attest_common::basics::ids::{ClusterId, Name};
use attest_common::trust::policy::Spec;
use attest_documents::{Cluster, List, TokenRequest};
use attest_install::apply::{self, ObjectRef};
use attest_install::permissions::registration_permissions;
use attest_install::registration::{
    RegistrationAction, RegistrationPlan, RegistrationRequest, plan_registration,
};
use attest_install::{Agent, Installation, SYSTEM_NAMESPACE, cluster, in_cluster_only};
use attest_supply::trust_policy;
use serde_json::Value;

use super::join_token::JoinToken;
use super::{POLL_EVERY, hub_entries, registered};
use crate::client::Client;
use crate::context::{self, Config, Hub};
use crate::hub_args::HubArgs;
use crate::human::{confirm, quoted};
use crate::printer::Printer;
use crate::target::{TargetArgs, TargetCluster, refused, show_objects, write_private};
use crate::trust::{Narrowing, generate_policy, read_policy};
use crate::wait::{Poll, Wait};

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

pub(super) async fn add(args: AddArgs, hub: &HubArgs, printer: &Printer) -> anyhow::Result<()> {
    let config = Config::load()?;
    let hub = config.hub(hub.hub.as_deref())?;
    let client = Client::new(hub)?;
    // Without a key nothing could ever run there: said before anything is asked or changed.
    let requested = requested_policy(&args, &config, hub)?;
    let cluster = TargetCluster::open(&args.target).await?;
    let facts = cluster.facts().await?;
    printer.note(&format!(
        "[preflight] reached {} ({}), Kubernetes {}",
        cluster.server, cluster.context, facts.version.git_version
    ));
    let policy = trust_policy::complete(requested, Some(&args.name), &facts.kube_system_uid)?;
    check_policy(&policy, hub, args.trust_policy.is_some(), printer)?;
    let clusters: List<Cluster> = client.get("/v1/clusters").await?;
    let request =
        RegistrationRequest { name: &args.name, replace: args.replace, ca_pin: &hub.ca_pin };
    let plan = plan_registration(&request, &hub_entries(&clusters.items), &facts)
        .map_err(|refusal| refused(&refusal, &cluster.flags))?;
    printer.note(&format!("[preflight] {}", plan_line(&plan, &args.name, &hub.name)));

    let superseded = match args.agent {
        AgentPlace::InCluster => Vec::new(),
        AgentPlace::External => {
            apply::existing_objects(&cluster.client, &in_cluster_only()).await?
        }
    };
    let registration = Registration {
        args: &args,
        action: &plan.action,
        policy: &policy,
        superseded,
        hub: &hub.spoke_address,
        client: &client,
        cluster: &cluster,
        printer,
    };
    registration.preflight().await?;
    registration.show()?;
    if args.dry_run {
        printer.line(&format!("cluster/{} can be registered (dry run)", args.name));
        return Ok(());
    }
    confirm(&format!("Install this into context {}?", cluster.context), args.yes, printer)?;
    registration.run().await?;
    if let Some(other) = plan.other_entry {
        printer.note(&format!(
            "the cluster is still listed as {} too; `attest gitops cluster rm {}` ends that",
            other.name, other.id
        ));
    }
    Ok(())
}

fn requested_policy(args: &AddArgs, config: &Config, hub: &Hub) -> anyhow::Result<Spec> {
    match &args.trust_policy {
        Some(file) => read_policy(file),
        None => {
            let environment = args.environment.as_ref().unwrap_or(&args.name);
            generate_policy(config, hub, environment, Some(&args.name), &args.narrowing)
        }
    }
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

fn plan_line(plan: &RegistrationPlan<'_>, name: &Name, hub: &str) -> String {
    match (&plan.other_entry, &plan.action) {
        (Some(other), _) => format!(
            "this cluster is registered as {} ({}, {}); it joins anew as {name}",
            other.name,
            other.id,
            other.status()
        ),
        (None, RegistrationAction::Install) => format!("the name {name} is free at hub {hub}"),
        (None, RegistrationAction::Update(id)) => format!("{name} is registered already, as {id}"),
        (None, RegistrationAction::Rejoin) => "the spoke there will join anew".to_owned(),
    }
}

/// A registration that has been decided.
struct Registration<'a> {
    args: &'a AddArgs,
    action: &'a RegistrationAction,
    policy: &'a Spec,
    /// Objects of a spoke in the cluster, which is to run outside from now on.
    superseded: Vec<ObjectRef>,
    /// `HOST:PORT` that spokes dial.
    hub: &'a str,
    client: &'a Client,
    cluster: &'a TargetCluster,
    printer: &'a Printer,
}

impl Registration<'_> {
    fn manifests(&self, token: Option<&str>) -> Vec<Value> {
        let agent = match self.args.agent {
            AgentPlace::InCluster => {
                Agent::InCluster { image: &self.args.spoke_image, hub: self.hub, token }
            }
            AgentPlace::External => Agent::External,
        };
        Installation { policy: self.policy, agent }.manifests()
    }

    /// The manifests as far as they are known before a token is issued.
    fn expected_manifests(&self) -> Vec<Value> {
        self.manifests(Some("token"))
    }

    fn is_external(&self) -> bool {
        self.args.agent == AgentPlace::External
    }

    /// Checks permissions, manifests and namespaces. Changes nothing.
    async fn preflight(&self) -> anyhow::Result<()> {
        let Self { action, superseded, cluster, printer, .. } = self;
        let additional = registration_permissions(action, superseded, self.is_external());
        let manifests = self.expected_manifests();
        cluster.check_installation(&manifests, &additional).await?;
        printer.note("[preflight] rights suffice");
        cluster.check_namespaces(&manifests, **action != RegistrationAction::Install, printer).await
    }

    fn show(&self) -> anyhow::Result<()> {
        show_objects(&self.expected_manifests(), self.printer)?;
        for object in &self.superseded {
            self.printer.note(&format!("to be removed, as the spoke runs outside: {object}"));
        }
        self.printer.note("with this trust policy:");
        for line in trust_policy::to_yaml(self.policy)?.lines() {
            self.printer.note(&format!("  {line}"));
        }
        Ok(())
    }

    async fn run(&self) -> anyhow::Result<()> {
        let Self { args: AddArgs { name, timeout, .. }, cluster, printer, .. } = self;
        let wait = Wait::new(*timeout, POLL_EVERY, printer);
        let token = if self.action.joins() { Some(self.issue_token().await?) } else { None };
        if let Err(error) = self.install(token.as_ref(), &wait).await {
            // Nobody will use it any more.
            if let Some(token) = &token {
                token.revoke(self.client).await;
            }
            return Err(error);
        }
        let id = match self.action {
            RegistrationAction::Update(id) => id.clone(),
            RegistrationAction::Install | RegistrationAction::Rejoin => {
                self.wait_joined(&wait).await?
            }
        };
        apply::write_cluster_id(&cluster.client, id.as_str()).await?;
        printer.note(&format!("[join] the trust policy is for {id}"));
        self.wait_connected(&id, &wait).await?;
        printer.line(&format!("cluster/{name} registered"));
        printer.note(&format!("{name} is connected as {id}, after {}", wait.elapsed()));
        printer.note("next:");
        printer.note("  attest gitops app apply -f APPLICATION.yaml");
        Ok(())
    }

    async fn issue_token(&self) -> anyhow::Result<JoinToken> {
        let request = TokenRequest {
            cluster: self.args.name.to_string(),
            ttl_seconds: self.args.timeout + TOKEN_SPARE_S,
            auto_accept: true,
            replace: self.args.replace,
            identity: None,
        };
        JoinToken::issue(self.client, &request).await
    }

    async fn install(&self, token: Option<&JoinToken>, wait: &Wait<'_>) -> anyhow::Result<()> {
        let client = &self.cluster.client;
        let secret = token.map(|token| token.secret.as_str());
        let manifests = self.manifests(secret);
        self.remove_superseded(wait).await?;
        if *self.action == RegistrationAction::Rejoin {
            cluster::delete_spoke_identity(client).await?;
        }
        let had_pods = cluster::has_spoke_pods(client).await?;
        apply::apply_manifests(client, &manifests).await?;
        self.printer.note(&format!("[install] {} objects applied", manifests.len()));
        self.cluster.prune(&manifests, "[install] ", self.printer).await?;
        if secret.is_some() && had_pods {
            // It holds an older token, or an identity that is gone.
            cluster::restart_spoke(client).await?;
        }
        if self.is_external() {
            self.write_external_files(secret).await?;
        }
        Ok(())
    }

    /// Ends the spoke in the cluster, before one outside has its identity.
    async fn remove_superseded(&self, wait: &Wait<'_>) -> anyhow::Result<()> {
        let client = &self.cluster.client;
        if self.superseded.is_empty() {
            return Ok(());
        }
        for object in &self.superseded {
            apply::delete_object(client, object).await?;
            self.printer.note(&format!("[install] {object} removed: the spoke runs outside"));
        }
        let poll = async || {
            let has_pods = cluster::has_spoke_pods(client).await?;
            Ok(if has_pods { Poll::Pending(String::new()) } else { Poll::Ready(()) })
        };
        let left = |_: &str| format!("pods of the former spoke still run in {SYSTEM_NAMESPACE}");
        wait.until("install", poll, left).await
    }

    /// Writes the files of a spoke outside the cluster, and prints the line that starts it.
    async fn write_external_files(&self, secret: Option<&str>) -> anyhow::Result<()> {
        let AddArgs { name, kubeconfig_output, token_output, .. } = self.args;
        let account_token = cluster::issue_account_token(&self.cluster.client, ACCOUNT_TOKEN_S)
            .await?
            .context("the API server gave no token")?;
        let kubeconfig = self.cluster.spoke_kubeconfig(name.as_str(), &account_token)?;
        let kubeconfig_file = spoke_file(name, kubeconfig_output.as_ref(), "kubeconfig")?;
        write_private(&kubeconfig_file, kubeconfig.as_bytes())?;
        let mut line =
            format!("attest-spoke --kubeconfig {} --hub {}", quoted(&kubeconfig_file), self.hub);
        if let Some(secret) = secret {
            let token_file = spoke_file(name, token_output.as_ref(), "join-token")?;
            write_private(&token_file, secret.as_bytes())?;
            line.push_str(&format!(" --join-token-file {}", quoted(&token_file)));
        }
        self.printer.note("start the spoke:");
        self.printer.line(&line);
        Ok(())
    }

    /// Waits for the identity that the spoke makes when it joins.
    async fn wait_joined(&self, wait: &Wait<'_>) -> anyhow::Result<ClusterId> {
        let client = &self.cluster.client;
        let poll = async || {
            if let Some(spoke) = cluster::spoke_identity(client).await? {
                let id = spoke.cluster_id.parse();
                return Ok(Poll::Ready(id.context("the spoke's identity Secret is malformed")?));
            }
            let problem = match self.args.agent {
                AgentPlace::InCluster => cluster::spoke_pod_problem(client).await,
                AgentPlace::External => None,
            };
            let state = problem.unwrap_or_else(|| "waiting for the spoke to join".to_owned());
            Ok(Poll::Pending(state))
        };
        wait.until("join", poll, |state| self.timed_out("started", state)).await
    }

    /// Waits until the hub has the spoke's session.
    async fn wait_connected(&self, id: &ClusterId, wait: &Wait<'_>) -> anyhow::Result<()> {
        let client = self.client.until(wait.deadline());
        let name = self.args.name.as_str();
        let poll = async || {
            Ok(match registered(&client, name).await? {
                Some(cluster) if cluster.id == *id && cluster.connected => Poll::Ready(()),
                Some(cluster) if cluster.id == *id => {
                    Poll::Pending(format!("{}, not connected yet", cluster.state))
                }
                Some(other) => {
                    Poll::Pending(format!("the hub knows {} by this name, not {id}", other.id))
                }
                None => Poll::Pending("the hub does not know the cluster yet".to_owned()),
            })
        };
        wait.until("connect", poll, |state| self.timed_out("connected", state)).await
    }

    /// The error of a wait that has ended, with the next step.
    fn timed_out(&self, awaited: &str, state: &str) -> String {
        let state = if state.is_empty() { "the hub has not answered yet" } else { state };
        let logs = match self.args.agent {
            AgentPlace::InCluster => format!("`{}` tells more", self.cluster.log_command()),
            AgentPlace::External => "its log tells more".to_owned(),
        };
        format!(
            "the spoke has not {awaited} within {} s: {state}. Does it reach {} over UDP? {logs}. \
             The same command goes on where this one stopped",
            self.args.timeout, self.hub,
        )
    }
}

/// Where a file for a spoke outside the cluster goes: as given, else into the operator's directory.
fn spoke_file(cluster: &Name, given: Option<&PathBuf>, name: &str) -> anyhow::Result<PathBuf> {
    match given {
        Some(file) => Ok(file.clone()),
        None => Ok(context::directory()?.join("spokes").join(cluster.as_str()).join(name)),
    }
}
