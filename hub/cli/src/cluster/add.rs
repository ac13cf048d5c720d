//! `attest gitops cluster add`: preflight, installation, join, and waiting until the cluster is connected.
//!
//! The kubeconfig is used in this process only. The hub contributes only the join token: the policy, its keys and
//! pins, the image and the manifests come from the operator.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use attest_common::basics::ids::{ClusterId, Name};
use attest_common::objects::difference::Difference;
use attest_common::trust::policy::Spec;
use attest_documents::{Cluster, List, TokenRequest};
use attest_install::apply::{self, ObjectRef};
use attest_install::permissions::registration_permissions;
use attest_install::registration::{
    RegistrationAction, RegistrationPlan, RegistrationRequest, plan_registration, policy_changes,
};
use attest_install::{Installation, SPOKE_NAMESPACE, SpokePlacement, cluster, in_cluster_only};
use attest_supply::trust_policy;
use serde_json::Value;

use super::join_token::JoinToken;
use super::{LabelChange, POLL_EVERY, hub_entries, registered, spoke_address};
use crate::client::Client;
use crate::context::{self, Context, HubContext};
use crate::hub_args::HubArgs;
use crate::human::{confirm, confirm_with, quoted};
use crate::printer::Printer;
use crate::target::{TargetArgs, TargetCluster, print_objects, refusal_error, write_private};
use crate::trust::{PolicyOptions, generate_policy, read_policy};
use crate::wait::{Poll, Wait};

/// Validity of the join token beyond the end of the wait, in seconds.
const TOKEN_SPARE_S: u64 = 300;
/// Validity of the account token in the kubeconfig of an external spoke, in seconds. The spoke renews it.
const ACCOUNT_TOKEN_S: i64 = 24 * 60 * 60;

/// The default image of the spoke, determined when this program is built.
pub(super) const SPOKE_IMAGE: &str = match option_env!("ATTEST_SPOKE_IMAGE") {
    Some(image) => image,
    None => concat!("ghcr.io/attest-ci/attest-spoke:", env!("CARGO_PKG_VERSION")),
};

#[derive(Debug, clap::Args)]
pub(crate) struct ClusterAddArgs {
    /// Name of the cluster within the fleet
    name: Name,
    #[command(flatten)]
    target: TargetArgs,
    /// Trust policy to install; generated from the context's keys by default
    #[arg(long, value_name = "FILE", conflicts_with_all = ["names", "repos", "namespaces", "allow_remove"])]
    trust_policy: Option<PathBuf>,
    /// Environment whose releases may run in the cluster; the cluster's name by default
    #[arg(long, conflicts_with = "trust_policy")]
    environment: Option<Name>,
    #[command(flatten)]
    policy_options: PolicyOptions,
    /// Label of the cluster at the hub, KEY=VALUE; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = attest_common::basics::labels::parse_pair)]
    labels: Vec<(String, String)>,
    /// Location of the spoke
    #[arg(long, value_enum, default_value_t = AgentPlace::InCluster)]
    agent: AgentPlace,
    /// Image of the spoke, with --agent in-cluster; the image of this release by default
    #[arg(long, value_name = "REF")]
    spoke_image: Option<String>,
    /// File for the spoke's kubeconfig, with --agent external
    #[arg(long, value_name = "FILE")]
    kubeconfig_output: Option<PathBuf>,
    /// File for the join token, with --agent external
    #[arg(long, value_name = "FILE")]
    token_output: Option<PathBuf>,
    /// Replace a different trust policy that is installed in the cluster; required without a terminal
    #[arg(long)]
    replace_policy: bool,
    /// Replace a registered cluster with this name, or a registration of this cluster under another name or with another hub
    #[arg(long)]
    replace: bool,
    /// Run all checks and print what would be installed, without making changes
    #[arg(long)]
    dry_run: bool,
    /// Skip the confirmation prompt
    #[arg(short, long)]
    yes: bool,
    /// Maximum time to wait for the spoke, in seconds
    #[arg(long, default_value_t = 300, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
}

/// Location of the spoke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum AgentPlace {
    /// As a Deployment in the cluster
    InCluster,
    /// Outside the cluster; prints the command line that starts the spoke
    External,
}

pub(super) async fn add(
    args: ClusterAddArgs,
    hub: &HubArgs,
    printer: &Printer,
) -> anyhow::Result<()> {
    check_agent_flags(&args)?;
    let context = Context::load()?;
    let hub = context.hub(hub.hub.as_deref())?;
    let client = Client::new(hub)?;
    // Fails without a CI key, since nothing could run in the cluster; no request is sent before.
    let requested = requested_policy(&args, &context, hub)?;
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
        .map_err(|refusal| refusal_error(&refusal, &cluster.flags))?;
    printer.note(&format!("[preflight] {}", describe_plan(&plan, &args.name, &hub.name)));

    let spoke_address = spoke_address(&client, &facts.kube_system_uid).await?;
    let policy_changes = match &facts.policy {
        Some(installed) => policy_changes(installed, &policy)?,
        None => Vec::new(),
    };
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
        hub: &spoke_address,
        client: &client,
        cluster: &cluster,
        printer,
    };
    registration.preflight().await?;
    registration.print_plan()?;
    print_policy_changes(&policy_changes, printer);
    if args.dry_run {
        printer.line(&format!("cluster/{} can be registered (dry run)", args.name));
        return Ok(());
    }
    confirm_policy_changes(&policy_changes, &args, printer)?;
    confirm(&format!("Install these objects in context {}?", cluster.context), args.yes, printer)?;
    registration.run().await?;
    if let Some(other) = plan.other_entry {
        printer.note(&format!(
            "the cluster is also registered as {}; remove that entry with `attest gitops cluster rm {}`",
            other.name, other.id
        ));
    }
    Ok(())
}

/// Refuses flags that have no effect for the place where the spoke runs.
fn check_agent_flags(args: &ClusterAddArgs) -> anyhow::Result<()> {
    let ClusterAddArgs { agent, spoke_image, kubeconfig_output, token_output, .. } = args;
    let (flags, other) = match agent {
        AgentPlace::InCluster => {
            let given = [
                ("--kubeconfig-output", kubeconfig_output.is_some()),
                ("--token-output", token_output.is_some()),
            ];
            (given.to_vec(), "external")
        }
        AgentPlace::External => (vec![("--spoke-image", spoke_image.is_some())], "in-cluster"),
    };
    match flags.iter().find(|(_, is_given)| *is_given) {
        Some((flag, _)) => bail!("{flag} has no effect here: remove it, or pass --agent {other}"),
        None => Ok(()),
    }
}

fn print_policy_changes(changes: &[Difference], printer: &Printer) {
    if changes.is_empty() {
        return;
    }
    printer.warning("the trust policy installed in the cluster differs and would be replaced:");
    for change in changes {
        printer.note(&format!("  {}", change.field));
        for (sign, side) in [("-", &change.signed), ("+", &change.found)] {
            if let Some(value) = side {
                printer.note(&format!("  {sign} {value}"));
            }
        }
    }
}

/// Asks before an installed policy is replaced. `--yes` does not confirm it: the policy may have been restricted by
/// its operator since the cluster was registered.
fn confirm_policy_changes(
    changes: &[Difference],
    args: &ClusterAddArgs,
    printer: &Printer,
) -> anyhow::Result<()> {
    if changes.is_empty() || args.replace_policy {
        return Ok(());
    }
    confirm_with("Replace the trust policy of the cluster?", "--replace-policy", printer)
}

fn requested_policy(
    args: &ClusterAddArgs,
    context: &Context,
    hub: &HubContext,
) -> anyhow::Result<Spec> {
    match &args.trust_policy {
        Some(file) => read_policy(file),
        None => {
            let environment = args.environment.as_ref().unwrap_or(&args.name);
            generate_policy(context, hub, environment, Some(&args.name), &args.policy_options)
        }
    }
}

/// Checks that the policy is for this hub: otherwise the cluster would reject everything that the hub sends.
pub(super) fn check_policy(
    policy: &Spec,
    hub: &HubContext,
    from_file: bool,
    printer: &Printer,
) -> anyhow::Result<()> {
    let loaded = policy.load().context("invalid trust policy")?;
    if !loaded.hub_keys.keys().any(|id| id.to_string() == hub.hub_key_id) {
        bail!(
            "the trust policy does not contain the signing key of hub `{}`, {}",
            hub.name,
            hub.hub_key_id
        );
    }
    if !loaded.ca_pins.contains(&hub.ca_pin) {
        bail!(
            "the trust policy does not contain the certificate authority of hub `{}`, {}",
            hub.name,
            hub.ca_pin
        );
    }
    if from_file && loaded.ci_keys().is_empty() {
        printer.warning(&format!(
            "the trust policy contains no CI key for environment {}; every release will be refused",
            policy.environment
        ));
    }
    Ok(())
}

fn describe_plan(plan: &RegistrationPlan<'_>, name: &Name, hub: &str) -> String {
    match (&plan.other_entry, &plan.action) {
        (Some(other), _) => format!(
            "this cluster is registered as {} ({}, {}); it will join again as {name}",
            other.name,
            other.id,
            other.status()
        ),
        (None, RegistrationAction::Install) => format!("the name {name} is available on hub {hub}"),
        (None, RegistrationAction::Update(id)) => format!("{name} is already registered as {id}"),
        (None, RegistrationAction::Rejoin) => "the spoke in the cluster will join again".to_owned(),
    }
}

/// A registration that has been decided and is to be carried out.
struct Registration<'a> {
    args: &'a ClusterAddArgs,
    action: &'a RegistrationAction,
    policy: &'a Spec,
    /// Objects of a spoke in the cluster that will be replaced by one outside.
    superseded: Vec<ObjectRef>,
    /// `HOST:PORT` of the hub's listener for spokes.
    hub: &'a str,
    client: &'a Client,
    cluster: &'a TargetCluster,
    printer: &'a Printer,
}

impl Registration<'_> {
    fn manifests(&self, token: Option<&str>) -> Vec<Value> {
        let placement = match self.args.agent {
            AgentPlace::InCluster => SpokePlacement::InCluster {
                image: self.args.spoke_image.as_deref().unwrap_or(SPOKE_IMAGE),
                hub: self.hub,
                token,
            },
            AgentPlace::External => SpokePlacement::External,
        };
        Installation { policy: self.policy, placement }.manifests()
    }

    /// The manifests with a placeholder for the token, which is issued later.
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
        printer.note("[preflight] permissions are sufficient");
        cluster.check_namespaces(&manifests, **action != RegistrationAction::Install, printer).await
    }

    fn print_plan(&self) -> anyhow::Result<()> {
        print_objects(&self.expected_manifests(), self.printer)?;
        for object in &self.superseded {
            self.printer.note(&format!(
                "to be removed, because the spoke will run outside the cluster: {object}"
            ));
        }
        self.printer.note("trust policy:");
        for line in trust_policy::to_yaml(self.policy)?.lines() {
            self.printer.note(&format!("  {line}"));
        }
        Ok(())
    }

    async fn run(&self) -> anyhow::Result<()> {
        let Self { args: ClusterAddArgs { name, timeout, .. }, cluster, printer, .. } = self;
        let wait = Wait::new(*timeout, POLL_EVERY, printer);
        let token = if self.action.joins() { Some(self.issue_token().await?) } else { None };
        if let Err(error) = self.install(token.as_ref(), &wait).await {
            // No spoke will use it.
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
        printer.note(&format!("[join] cluster id {id} written to the trust policy"));
        self.wait_connected(&id, &wait).await?;
        self.label(&id).await?;
        printer.line(&format!("cluster/{name} registered"));
        printer.note(&format!("{name} is connected as {id}, after {}", wait.elapsed()));
        printer.note("next:");
        printer.note("  attest gitops app apply -f APPLICATION.yaml");
        Ok(())
    }

    /// Gives the cluster the labels of the command line, beside those that it has.
    async fn label(&self, id: &ClusterId) -> anyhow::Result<()> {
        let changes: Vec<LabelChange> =
            self.args.labels.iter().cloned().map(LabelChange::from).collect();
        if changes.is_empty() {
            return Ok(());
        }
        super::label(self.client, id.as_str(), &changes).await
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
            // The running spoke has an older token or a deleted identity.
            cluster::restart_spoke(client).await?;
        }
        if self.is_external() {
            self.write_external_files(secret).await?;
        }
        Ok(())
    }

    /// Removes the spoke in the cluster before one outside uses its identity.
    async fn remove_superseded(&self, wait: &Wait<'_>) -> anyhow::Result<()> {
        let client = &self.cluster.client;
        if self.superseded.is_empty() {
            return Ok(());
        }
        for object in &self.superseded {
            apply::delete_object(client, object).await?;
            self.printer.note(&format!(
                "[install] {object} removed: the spoke will run outside the cluster"
            ));
        }
        wait.until(
            "install",
            async || {
                let has_pods = cluster::has_spoke_pods(client).await?;
                Ok(if has_pods { Poll::Pending(String::new()) } else { Poll::Ready(()) })
            },
            |_| format!("timed out waiting for the spoke pods in {SPOKE_NAMESPACE} to terminate"),
        )
        .await
    }

    /// Writes the files for a spoke outside the cluster, and prints the command line that starts it.
    async fn write_external_files(&self, secret: Option<&str>) -> anyhow::Result<()> {
        let ClusterAddArgs { name, kubeconfig_output, token_output, .. } = self.args;
        let account_token = cluster::issue_account_token(&self.cluster.client, ACCOUNT_TOKEN_S)
            .await?
            .context("the API server's response contains no token")?;
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

    /// Waits for the identity that the spoke creates when it joins.
    async fn wait_joined(&self, wait: &Wait<'_>) -> anyhow::Result<ClusterId> {
        wait.until(
            "join",
            async || self.poll_joined().await,
            |state| self.timeout_message("join", state),
        )
        .await
    }

    async fn poll_joined(&self) -> anyhow::Result<Poll<ClusterId>> {
        let client = &self.cluster.client;
        if let Some(spoke) = cluster::spoke_identity(client).await? {
            let id = spoke.cluster_id.parse();
            return Ok(Poll::Ready(id.context("malformed cluster id in the spoke's identity")?));
        }
        let problem =
            if self.is_external() { None } else { cluster::spoke_pod_problem(client).await };
        Ok(Poll::Pending(problem.unwrap_or_else(|| "waiting for the spoke to join".to_owned())))
    }

    /// Waits until the spoke has a session at the hub.
    async fn wait_connected(&self, id: &ClusterId, wait: &Wait<'_>) -> anyhow::Result<()> {
        let client = self.client.with_deadline(wait.deadline());
        wait.until(
            "connect",
            async || self.poll_connected(&client, id).await,
            |state| self.timeout_message("connect", state),
        )
        .await
    }

    async fn poll_connected(&self, client: &Client, id: &ClusterId) -> anyhow::Result<Poll<()>> {
        let name = &self.args.name;
        Ok(match registered(client, name.as_str()).await? {
            Some(entry) if entry.id == *id && entry.connected => Poll::Ready(()),
            Some(entry) if entry.id == *id => {
                Poll::Pending(format!("{}, not connected yet", entry.state))
            }
            Some(entry) => {
                Poll::Pending(format!("the hub's entry {name} is for {}, not {id}", entry.id))
            }
            None => Poll::Pending("the hub has no entry for the cluster yet".to_owned()),
        })
    }

    /// The error of a wait that timed out, with the next steps.
    fn timeout_message(&self, awaited: &str, state: &str) -> String {
        let state = if state.is_empty() { "no response from the hub yet" } else { state };
        let log = match self.args.agent {
            AgentPlace::InCluster => format!("`{}`", self.cluster.log_command()),
            AgentPlace::External => "its log".to_owned(),
        };
        format!(
            "timed out after {} s waiting for the spoke to {awaited}: {state}; check that it can reach {} over UDP, \
             and see {log}; repeat the command to continue",
            self.args.timeout, self.hub,
        )
    }
}

/// The path of a file for a spoke outside the cluster: as given, or in the operator's configuration directory.
fn spoke_file(cluster: &Name, given: Option<&PathBuf>, name: &str) -> anyhow::Result<PathBuf> {
    match given {
        Some(file) => Ok(file.clone()),
        None => Ok(context::directory()?.join("spokes").join(cluster.as_str()).join(name)),
    }
}
