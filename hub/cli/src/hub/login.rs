//! `attest hub login`: credentials for a hub in a cluster, with the permissions of a kubeconfig.
//!
//! The private key is made here and stays here. RBAC of the cluster decides who may approve the request.

use std::time::Duration;

use anyhow::{Context as _, bail};
use attest_certs::bundle::chain_from_pem;
use attest_certs::{Bundle, OperatorRole, Pin, SigningRequest, peer_identity};
use attest_common::basics::ids::Timestamp;
use attest_documents::login::{
    CONFIG_MAP, HubFacts, LIFETIME_DEFAULT_S, LIFETIME_MAX_S, LIFETIME_MIN_S, NAMESPACE,
    OPERATOR_SIGNER, USAGES, VIEWER_SIGNER,
};
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition,
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::PostParams;
use serde_json::json;

use super::operator::{context_name_of, renewed};
use crate::client::block_on;
use crate::context::{Context, ForwardTarget, HubContext, path as context_path};
use crate::human::until;
use crate::printer::Printer;
use crate::target::{TargetArgs, TargetCluster};
use crate::wait::{Poll, Wait};

/// Interval between reads of the request.
const POLL_EVERY: Duration = Duration::from_millis(300);
/// Prefix of the names of requests.
const REQUEST_PREFIX: &str = "attest-login-";

#[derive(Debug, clap::Args)]
pub(super) struct LoginArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Namespace of the hub
    #[arg(short, long, default_value = NAMESPACE)]
    namespace: String,
    /// Name of the hub in your context; the name that your context has for this hub, else `main`
    #[arg(long)]
    name: Option<String>,
    /// operator, or viewer for one who reads and changes nothing
    #[arg(long, value_name = "ROLE", default_value_t)]
    role: OperatorRole,
    /// Lifetime of the certificate, in seconds
    #[arg(
        long, value_name = "SECONDS", default_value_t = LIFETIME_DEFAULT_S,
        value_parser = clap::value_parser!(u32).range(i64::from(LIFETIME_MIN_S)..=i64::from(LIFETIME_MAX_S))
    )]
    lifetime: u32,
    /// Maximum time to wait for approval and certificate, in seconds
    #[arg(long, default_value_t = 300, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
}

pub(super) fn login(args: &LoginArgs, printer: &Printer) -> anyhow::Result<()> {
    block_on(run(args, printer))
}

async fn run(args: &LoginArgs, printer: &Printer) -> anyhow::Result<()> {
    let cluster = TargetCluster::open(&args.target).await?;
    let facts = hub_facts(&cluster, &args.namespace).await?;
    check_authority(&facts)?;
    // Checked before a certificate is issued that could not be saved.
    let context = Context::load()?;
    let name = context_name_of(args.name.clone(), Some(&context), &facts.ca_pin)?;
    let key = SigningRequest::generate().context("failed to generate a key")?;
    let chain = certificate(args, &cluster, &key, printer).await?;
    let identity = check_certificate(args.role, &facts, &chain, &key)?;

    let hub = HubContext {
        name: name.clone(),
        api_url: facts.api_url,
        forward: Some(ForwardTarget {
            kubeconfig: args.target.kubeconfig.clone().map(std::path::absolute).transpose()?,
            context: cluster.context.clone(),
            namespace: args.namespace.clone(),
        }),
        spoke_address: facts.spoke_address,
        ca_pin: facts.ca_pin,
        hub_key_id: facts.hub_key_id,
        hub_key: facts.hub_key,
        operator_chain: chain,
        operator_key: key.key_pem.to_string(),
    };
    let mut context = renewed(context, hub);
    context.current_hub = Some(name.clone());
    context.save()?;
    let expires_at = Timestamp::try_from(identity.not_after).unwrap_or_default();
    printer.line(&format!(
        "hub/{name} logged in as {}, valid for {}",
        args.role,
        until(expires_at)
    ));
    printer.note(&format!("saved in {}", context_path()?.display()));
    Ok(())
}

/// Reads what the hub publishes in its cluster.
async fn hub_facts(cluster: &TargetCluster, namespace: &str) -> anyhow::Result<HubFacts> {
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), namespace);
    let found = maps.get_opt(CONFIG_MAP).await;
    let found = found.with_context(|| {
        format!(
            "failed to read ConfigMap {CONFIG_MAP} in namespace {namespace} of {}",
            cluster.server
        )
    })?;
    let Some(map) = found else {
        bail!(
            "namespace {namespace} of context `{}` contains no hub; pass --context or --namespace, or install one \
             with `helm install attest-gitops attest/gitops-controller -n {namespace} --create-namespace`",
            cluster.context
        )
    };
    HubFacts::from_data(&map.data.unwrap_or_default()).map_err(|key| {
        anyhow::anyhow!(
            "ConfigMap {CONFIG_MAP} in namespace {namespace} has no `{key}`: the hub has not started yet; see \
             `kubectl {} -n {namespace} logs deployment/attest-gitops-controller`",
            cluster.flags
        )
    })
}

/// Checks that the published certificate authority has the published pin.
fn check_authority(facts: &HubFacts) -> anyhow::Result<()> {
    let chain = chain_from_pem(&facts.ca_certificate).context("invalid ca.crt of the hub")?;
    let authority = chain.first().context("ca.crt of the hub contains no certificate")?;
    let pin = Pin::of_certificate(authority).context("invalid ca.crt of the hub")?;
    if pin.to_string() != facts.ca_pin {
        bail!(
            "ConfigMap {CONFIG_MAP} contradicts itself: the key of ca.crt has the pin {pin}, not {}",
            facts.ca_pin
        );
    }
    Ok(())
}

/// Requests a certificate, approves the request if allowed to, and waits for the certificate.
async fn certificate(
    args: &LoginArgs,
    cluster: &TargetCluster,
    key: &SigningRequest,
    printer: &Printer,
) -> anyhow::Result<String> {
    let requests: Api<CertificateSigningRequest> = Api::all(cluster.client.clone());
    let request: CertificateSigningRequest = serde_json::from_value(json!({
        "metadata": {"generateName": REQUEST_PREFIX},
        "spec": {
            "signerName": signer_of(args.role),
            "request": data_encoding::BASE64.encode(key.csr_pem().as_bytes()),
            "usages": USAGES,
            "expirationSeconds": args.lifetime,
        },
    }))?;
    let created = requests.create(&PostParams::default(), &request).await;
    let created = created.context("failed to create a CertificateSigningRequest")?;
    let name = created.metadata.name.clone().unwrap_or_default();
    if !approve(&requests, &name, created).await? {
        printer.note("waiting for approval; to be run by someone who may approve:");
        printer.note(&format!("  kubectl certificate approve {name}"));
    }
    let wait = Wait::new(args.timeout, POLL_EVERY, printer);
    wait.until("", async || poll(&requests, &name).await, |_| {
        format!(
            "request {name} was not answered within {} s; check that it is approved (`kubectl get csr {name}`) and \
             that the hub is running",
            args.timeout
        )
    })
    .await
}

/// Approves a request. Returns false when the operator may not.
async fn approve(
    requests: &Api<CertificateSigningRequest>,
    name: &str,
    mut request: CertificateSigningRequest,
) -> anyhow::Result<bool> {
    let approval = CertificateSigningRequestCondition {
        type_: "Approved".to_owned(),
        status: "True".to_owned(),
        reason: Some("AttestLogin".to_owned()),
        message: Some("approved by `attest hub login` of the requester".to_owned()),
        ..CertificateSigningRequestCondition::default()
    };
    request.status.get_or_insert_default().conditions.get_or_insert_default().push(approval);
    let parameters = PostParams::default();
    match requests.replace_subresource("approval", name, &parameters, &request).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(false),
        Err(error) => {
            Err(anyhow::Error::new(error).context(format!("failed to approve the request {name}")))
        }
    }
}

async fn poll(
    requests: &Api<CertificateSigningRequest>,
    name: &str,
) -> anyhow::Result<Poll<String>> {
    let request = requests.get(name).await;
    answer(&request.with_context(|| format!("failed to read the request {name}"))?)
}

/// The certificate of a request, or its state.
fn answer(request: &CertificateSigningRequest) -> anyhow::Result<Poll<String>> {
    let status = request.status.clone().unwrap_or_default();
    for condition in status.conditions.iter().flatten() {
        if condition.type_ == "Denied" || condition.type_ == "Failed" {
            bail!(
                "the request was refused ({}): {}",
                condition.reason.as_deref().unwrap_or(&condition.type_),
                condition.message.as_deref().unwrap_or("no message")
            );
        }
    }
    match status.certificate {
        Some(pem) => {
            Ok(Poll::Ready(String::from_utf8(pem.0).context("the certificate is not PEM")?))
        }
        None => Ok(Poll::Pending(String::new())),
    }
}

/// Checks that the certificate is for this key and role, and under the hub's authority.
fn check_certificate(
    role: OperatorRole,
    facts: &HubFacts,
    chain_pem: &str,
    key: &SigningRequest,
) -> anyhow::Result<attest_certs::PeerIdentity> {
    let bundle = Bundle::from_pem(chain_pem, &key.key_pem).context("invalid certificate")?;
    let pin: Pin = facts.ca_pin.parse().context("invalid caPin of the hub")?;
    // Fails when the certificate is not for this key.
    attest_certs::tls::operator_https(&[pin], &bundle).context("invalid certificate")?;
    let identity = peer_identity(bundle.chain()).context("invalid certificate")?;
    let authority = bundle.chain().get(1).map(Pin::of_certificate).transpose()?;
    if authority.map(|pin| pin.to_string()).as_deref() != Some(facts.ca_pin.as_str()) {
        bail!("the certificate was not issued by the hub that is published in the cluster");
    }
    if OperatorRole::of(identity.id.role()) != Some(role) {
        bail!("the certificate is for {}, not for a {role}", identity.id);
    }
    Ok(identity)
}

fn signer_of(role: OperatorRole) -> &'static str {
    match role {
        OperatorRole::Operator => OPERATOR_SIGNER,
        OperatorRole::Viewer => VIEWER_SIGNER,
    }
}
