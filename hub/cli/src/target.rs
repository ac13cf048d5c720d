//! The target cluster as its operator reaches it. The kubeconfig is used here and goes nowhere else.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use attest_common::record::custody::{
    IDENTITY_CHAIN_KEY, IDENTITY_CLUSTER_ID_KEY, IDENTITY_SECRET, SPOKE_NAME, SYSTEM_NAMESPACE,
};
use attest_common::trust::policy::POLICY_NAME;
use attest_install::apply::{self, Target};
use attest_install::namespaces;
use attest_install::namespaces::Stranger;
use k8s_openapi::api::authorization::v1::SelfSubjectAccessReview;
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::ApiResource;
use kube::{Api, Client, Config};
use serde_json::{Value, json};

use crate::human::quoted;
use crate::printer::Printer;

/// Oldest Kubernetes with everything an installation needs (ValidatingAdmissionPolicy `v1`).
pub(crate) const KUBERNETES_MINOR_MIN: u32 = 30;
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Which cluster.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct TargetArgs {
    /// Kubeconfig that reaches the cluster; it stays on this machine
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context within the kubeconfig; the current one when absent
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,
}

impl TargetArgs {
    /// The flags as given, for a line that the operator is to type; what to fill in when there were none.
    pub(crate) fn as_typed(&self) -> String {
        let Self { kubeconfig, context } = self;
        let kubeconfig = kubeconfig.as_ref().map(|file| format!("--kubeconfig {}", quoted(file)));
        let context = context.as_ref().map(|name| format!("--context {}", quoted(Path::new(name))));
        match (kubeconfig, context) {
            (Some(kubeconfig), Some(context)) => format!("{kubeconfig} {context}"),
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => "--kubeconfig F".to_owned(),
        }
    }
}

/// A cluster that can be asked, with the operator's rights.
pub(crate) struct TargetCluster {
    pub(crate) client: Client,
    /// Name of the context in use.
    pub(crate) context: String,
    /// Kubeconfig and context in use, as `kubectl` and `attest` take them.
    pub(crate) flags: String,
    /// Address of the API server.
    pub(crate) server: String,
    entry: kube::config::Cluster,
}

impl std::fmt::Debug for TargetCluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TargetCluster").field("context", &self.context).finish_non_exhaustive()
    }
}

/// What a look at the cluster tells.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) kubernetes_version: String,
    pub(crate) kube_system_uid: String,
    /// The spoke that lives there already.
    pub(crate) spoke: Option<SpokeSeen>,
    /// `spec` of the trust policy that is installed already.
    pub(crate) policy: Option<Value>,
}

/// A spoke's identity as its Secret shows it.
#[derive(Clone, Debug)]
pub(crate) struct SpokeSeen {
    pub(crate) cluster_id: String,
    /// True when the hub has given it a certificate.
    pub(crate) joined: bool,
}

impl TargetCluster {
    /// Reads the kubeconfig and prepares the connection. Nothing is sent yet.
    pub(crate) async fn open(args: &TargetArgs) -> anyhow::Result<Self> {
        attest_certs::install_provider();
        let (kubeconfig, shown) = match &args.kubeconfig {
            Some(path) => (
                Kubeconfig::read_from(path)
                    .with_context(|| format!("cannot use kubeconfig {}", path.display()))?,
                path.display().to_string(),
            ),
            None => (
                Kubeconfig::read().context("no kubeconfig; name one with --kubeconfig")?,
                "the kubeconfig".to_owned(),
            ),
        };
        let contexts: Vec<&str> =
            kubeconfig.contexts.iter().map(|context| context.name.as_str()).collect();
        let listed = || match contexts.as_slice() {
            [] => "it has none".to_owned(),
            some => format!("it has: {}", some.join(", ")),
        };
        let wanted = args.context.clone().or_else(|| kubeconfig.current_context.clone());
        let context = match wanted.filter(|name| !name.is_empty()) {
            Some(name) if contexts.contains(&name.as_str()) => name,
            Some(name) => bail!("{shown} has no context `{name}`; {}", listed()),
            None => bail!("{shown} has no current context; name one with --context; {}", listed()),
        };
        let entry = cluster_of(&kubeconfig, &context)
            .with_context(|| format!("context `{context}` of {shown} names no cluster"))?;
        if entry.insecure_skip_tls_verify == Some(true) {
            bail!(
                "context `{context}` of {shown} switches certificate checks off \
                 (insecure-skip-tls-verify); a cluster's trust cannot begin like that"
            );
        }
        let options =
            KubeConfigOptions { context: Some(context.clone()), ..KubeConfigOptions::default() };
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .with_context(|| format!("cannot use context `{context}` of {shown}"))?;
        config.connect_timeout = Some(CONNECT_WITHIN);
        config.read_timeout = Some(ANSWER_WITHIN);
        let server = entry.server.clone().unwrap_or_default();
        let client = Client::try_from(config)
            .with_context(|| format!("cannot use context `{context}` of {shown}"))?;
        let used =
            TargetArgs { kubeconfig: args.kubeconfig.clone(), context: Some(context.clone()) };
        Ok(Self { client, context, flags: used.as_typed(), server, entry })
    }

    /// Reaches the cluster and looks at what is there.
    pub(crate) async fn look(&self) -> anyhow::Result<Seen> {
        let version = self.client.apiserver_version().await.with_context(|| {
            format!("cannot reach the API server of context `{}` at {}", self.context, self.server)
        })?;
        if is_too_old(&version.major, &version.minor) {
            bail!(
                "the cluster runs Kubernetes {}; the oldest that works is 1.{KUBERNETES_MINOR_MIN}",
                version.git_version
            );
        }
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let system = namespaces
            .get("kube-system")
            .await
            .context("cannot read namespace kube-system, whose UID tells clusters apart")?;
        Ok(Seen {
            kubernetes_version: version.git_version,
            kube_system_uid: system.metadata.uid.unwrap_or_default(),
            spoke: self.spoke().await?,
            policy: self.policy().await?,
        })
    }

    /// The spoke's identity, once it has made one.
    pub(crate) async fn spoke(&self) -> anyhow::Result<Option<SpokeSeen>> {
        let secret = self.secrets().get_opt(IDENTITY_SECRET).await;
        let secret = secret
            .with_context(|| format!("cannot read Secret {SYSTEM_NAMESPACE}/{IDENTITY_SECRET}"))?;
        let Some(mut data) = secret.and_then(|secret| secret.data) else { return Ok(None) };
        let joined = data.contains_key(IDENTITY_CHAIN_KEY);
        let id = data.remove(IDENTITY_CLUSTER_ID_KEY);
        let id = id.and_then(|bytes| String::from_utf8(bytes.0).ok());
        Ok(id.map(|id| SpokeSeen { cluster_id: id.trim().to_owned(), joined }))
    }

    async fn policy(&self) -> anyhow::Result<Option<Value>> {
        let manifest = json!({"kind": "AttestTrustPolicy", "metadata": {"name": POLICY_NAME}});
        let target = Target::of(&manifest)?;
        match target.api(&self.client).get(POLICY_NAME).await {
            Ok(found) => Ok(found.data.get("spec").cloned()),
            // Neither the policy nor, on a new cluster, its definition.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => {
                Err(anyhow::Error::new(error)
                    .context("cannot read the cluster's AttestTrustPolicy"))
            }
        }
    }

    /// Secrets of the spoke's namespace.
    pub(crate) fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), SYSTEM_NAMESPACE)
    }

    /// Whether the operator may do all of this, which `purpose` needs.
    ///
    /// # Errors
    /// Names every right that is missing.
    pub(crate) async fn check_rights(&self, purpose: &str, asked: &[Right]) -> anyhow::Result<()> {
        let reviews: Api<SelfSubjectAccessReview> = Api::all(self.client.clone());
        let answers = asked.iter().map(|right| {
            let reviews = reviews.clone();
            async move {
                let review = serde_json::from_value(json!({
                    "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
                    "metadata": {}, "spec": {"resourceAttributes": right.attributes()}
                }))?;
                let answer = reviews.create(&PostParams::default(), &review).await;
                let answer = answer.context("cannot ask the API server for one's own rights")?;
                let allowed = answer.status.is_some_and(|status| status.allowed);
                anyhow::Ok((!allowed).then(|| right.to_string()))
            }
        });
        let missing: Vec<Option<String>> = futures::future::try_join_all(answers).await?;
        let missing: Vec<String> = missing.into_iter().flatten().collect();
        if !missing.is_empty() {
            bail!(
                "context `{}` may not do what {purpose} needs: {}",
                self.context,
                missing.join("; ")
            );
        }
        Ok(())
    }

    /// What somebody else has in the namespaces that these manifests are to have for themselves. A namespace
    /// that is not ours is refused, and what stands in one of ours too where no spoke has joined; later it
    /// is told.
    pub(crate) async fn check_namespaces(
        &self,
        manifests: &[Value],
        has_joined: bool,
        printer: &Printer,
    ) -> anyhow::Result<()> {
        let strangers = namespaces::strangers(&self.client, manifests).await?;
        let is_refused = |stranger: &&Stranger| !has_joined || stranger.is_namespace();
        let (refused, told): (Vec<_>, Vec<_>) = strangers.iter().partition(is_refused);
        told.iter().for_each(|stranger| printer.warning(&stranger.to_string()));
        if !refused.is_empty() {
            let all: Vec<String> = refused.iter().map(ToString::to_string).collect();
            bail!("context `{}` has what must be new: {}", self.context, all.join("; "));
        }
        Ok(())
    }

    /// Forgets the spoke's identity, so that it makes a new one and joins anew when it next starts.
    pub(crate) async fn forget_identity(&self) -> anyhow::Result<()> {
        let deleted = self.secrets().delete(IDENTITY_SECRET, &DeleteParams::default()).await;
        ignore_missing(deleted.map(|_| ())).context("cannot delete the spoke's old identity")
    }

    /// True when a pod of the spoke exists.
    pub(crate) async fn has_pods(&self) -> anyhow::Result<bool> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), SYSTEM_NAMESPACE);
        let listed = pods.list(&spoke_pods()).await.context("cannot list the spoke's pods")?;
        Ok(!listed.items.is_empty())
    }

    /// The line that shows the log of the spoke in the cluster.
    pub(crate) fn logs(&self) -> String {
        let flags = &self.flags;
        format!("kubectl {flags} -n {SYSTEM_NAMESPACE} logs deployment/{SPOKE_NAME}")
    }

    /// Deletes the spoke's pods; its Deployment makes new ones. Without a Deployment nothing happens.
    pub(crate) async fn restart_spoke(&self) -> anyhow::Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), SYSTEM_NAMESPACE);
        let deleted = pods.delete_collection(&DeleteParams::default(), &spoke_pods()).await;
        ignore_missing(deleted.map(|_| ())).context("cannot restart the spoke")
    }

    /// Why the spoke's pod does not run, as far as Kubernetes knows.
    pub(crate) async fn pod_trouble(&self) -> Option<String> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), SYSTEM_NAMESPACE);
        let listed = pods.list(&spoke_pods()).await.ok()?;
        let statuses = listed.items.into_iter().filter_map(|pod| pod.status);
        let containers = statuses.flat_map(|status| status.container_statuses.unwrap_or_default());
        containers.filter_map(|container| container.state?.waiting).find_map(|waiting| {
            let message = waiting.message.unwrap_or_default();
            waiting.reason.map(|reason| format!("{reason} {message}").trim().to_owned())
        })
    }

    /// A kubeconfig for this cluster with another token and nothing of the operator's.
    pub(crate) fn kubeconfig_with(&self, name: &str, token: &str) -> anyhow::Result<String> {
        let mut cluster = json!({"server": self.server});
        let authority =
            match (&self.entry.certificate_authority_data, &self.entry.certificate_authority) {
                (Some(data), _) => Some(data.clone()),
                (None, Some(path)) => {
                    let pem = std::fs::read(path).with_context(|| format!("cannot read {path}"))?;
                    Some(data_encoding::BASE64.encode(&pem))
                }
                (None, None) => None,
            };
        let more = [
            ("certificate-authority-data", authority),
            ("tls-server-name", self.entry.tls_server_name.clone()),
            ("proxy-url", self.entry.proxy_url.clone()),
        ];
        if let Value::Object(fields) = &mut cluster {
            fields.extend(
                more.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?.into()))),
            );
        }
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": name,
            "clusters": [{"name": name, "cluster": cluster}],
            "users": [{"name": SPOKE_NAME, "user": {"token": token}}],
            "contexts": [{"name": name, "context": {
                "cluster": name, "user": SPOKE_NAME, "namespace": SYSTEM_NAMESPACE
            }}]
        });
        Ok(serde_saphyr::to_string(&kubeconfig)?)
    }
}

/// Writes a file that only its owner may read, whole or not at all.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        crate::context::create_private_directory(parent)?;
    }
    attest_certs::bundle::write_private(path, bytes)
        .with_context(|| format!("cannot write {}", path.display()))
}

fn spoke_pods() -> ListParams {
    ListParams::default().labels(&format!("app.kubernetes.io/name={SPOKE_NAME}"))
}

fn cluster_of(kubeconfig: &Kubeconfig, context: &str) -> Option<kube::config::Cluster> {
    let context = kubeconfig.contexts.iter().find(|found| found.name == context)?;
    let name = &context.context.as_ref()?.cluster;
    kubeconfig.clusters.iter().find(|found| found.name == *name)?.cluster.clone()
}

fn ignore_missing(result: kube::Result<()>) -> kube::Result<()> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other,
    }
}

fn is_too_old(major: &str, minor: &str) -> bool {
    // Some say `30+`.
    let minor: String = minor.chars().take_while(char::is_ascii_digit).collect();
    major == "1" && minor.parse().is_ok_and(|minor: u32| minor < KUBERNETES_MINOR_MIN)
}

/// Something that the operator must be allowed to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Right {
    verb: &'static str,
    group: String,
    resource: String,
    subresource: &'static str,
    namespace: Option<String>,
}

impl Right {
    /// In the spoke's namespace, of the core group.
    pub(crate) fn of_spoke(
        verb: &'static str,
        resource: &'static str,
        subresource: &'static str,
    ) -> Self {
        let namespace = Some(SYSTEM_NAMESPACE.to_owned());
        Self { verb, group: String::new(), resource: resource.to_owned(), subresource, namespace }
    }

    /// On objects of the target's kind, where it is.
    pub(crate) fn of(verb: &'static str, target: &Target) -> Self {
        Self::to(verb, &target.resource, target.namespace.clone())
    }

    fn to(verb: &'static str, resource: &ApiResource, namespace: Option<String>) -> Self {
        let ApiResource { group, plural, .. } = resource;
        Self { verb, group: group.clone(), resource: plural.clone(), subresource: "", namespace }
    }

    fn attributes(&self) -> Value {
        let Self { verb, group, resource, subresource, namespace } = self;
        json!({
            "verb": verb, "group": group, "resource": resource, "subresource": subresource,
            "namespace": namespace
        })
    }
}

impl std::fmt::Display for Right {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { verb, group, resource, subresource, namespace } = self;
        write!(f, "{verb} {resource}")?;
        if !group.is_empty() {
            write!(f, ".{group}")?;
        }
        if !subresource.is_empty() {
            write!(f, "/{subresource}")?;
        }
        match namespace {
            Some(namespace) => write!(f, " in {namespace}"),
            None => Ok(()),
        }
    }
}

/// What [`TargetCluster::check_rights`] is asked of an installation for.
pub(crate) const INSTALLATION: &str = "an installation";

/// Everything that installing these manifests does to the cluster from the first write on, and `more`, so
/// that none of it stops half-way.
pub(crate) fn installation_rights(
    manifests: &[Value],
    more: &[Right],
) -> anyhow::Result<Vec<Right>> {
    let mut all = vec![Right::of_spoke("get", "secrets", "")];
    for manifest in manifests {
        let Target { resource, namespace, .. } = Target::of(manifest)?;
        all.extend(["create", "patch"].map(|verb| Right::to(verb, &resource, namespace.clone())));
        match resource.kind.as_str() {
            "CustomResourceDefinition" | "Namespace" => all.push(Right::to("get", &resource, None)),
            "AttestTrustPolicy" => {
                all.push(Right { subresource: "status", ..Right::to("patch", &resource, None) });
            }
            _ => {}
        }
    }
    for (kind, namespace) in namespaces::listed(manifests)? {
        all.push(Right::to("list", &kind, Some(namespace)));
    }
    for kind in apply::pruned_kinds() {
        all.extend(["list", "delete"].map(|verb| Right::to(verb, &kind, None)));
    }
    all.extend_from_slice(more);
    let mut asked: Vec<Right> = Vec::new();
    for right in all {
        if !asked.contains(&right) {
            asked.push(right);
        }
    }
    Ok(asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_line_names_the_cluster_as_it_was_given() {
        for (kubeconfig, context, typed) in [
            (Some("/home/me/prod"), Some("a"), "--kubeconfig /home/me/prod --context a"),
            (Some("my config"), None, "--kubeconfig 'my config'"),
            (None, Some("a b"), "--context 'a b'"),
            (None, None, "--kubeconfig F"),
        ] {
            let context = context.map(str::to_owned);
            let args = TargetArgs { kubeconfig: kubeconfig.map(PathBuf::from), context };
            assert_eq!(args.as_typed(), typed);
        }
    }

    #[test]
    fn a_version_without_admission_policies_is_too_old() {
        for (major, minor, expected) in [
            ("1", "29", true),
            ("1", "29+", true),
            ("1", "30", false),
            ("1", "30+", false),
            ("1", "137", false),
            ("1", "", false),
            ("2", "0", false),
        ] {
            assert_eq!(is_too_old(major, minor), expected, "{major}.{minor}");
        }
    }
}
