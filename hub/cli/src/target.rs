//! The target cluster, reached with the operator's kubeconfig. The kubeconfig is used in this process only.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use attest_common::record::custody::{SPOKE_NAME, SPOKE_NAMESPACE};
use attest_install::apply::{self, ObjectRef};
use attest_install::cluster::ClusterFacts;
use attest_install::namespaces::{ForeignObject, foreign_objects};
use attest_install::permissions::{Permission, installation_permissions, missing_permissions};
use attest_install::registration::{RegistrationRefusal, check_version};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};

use crate::human::quoted;
use crate::printer::Printer;

/// Placeholder in a printed command whose kubeconfig is not known.
pub(crate) const ANY_KUBECONFIG: &str = "--kubeconfig F";
/// Connection timeout.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Timeout of a request.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// The flags that select a target cluster, to be flattened into arguments.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct TargetArgs {
    /// Kubeconfig of the cluster; it is not sent to the hub
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Kubeconfig context to use; the current one by default
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,
}

impl TargetArgs {
    /// Returns true if one of the flags is given.
    pub(crate) fn is_given(&self) -> bool {
        self.kubeconfig.is_some() || self.context.is_some()
    }

    /// The flags as text, for a command that the operator is to type. Without flags, [`ANY_KUBECONFIG`].
    pub(crate) fn to_flags(&self) -> String {
        let Self { kubeconfig, context } = self;
        let kubeconfig = kubeconfig.as_ref().map(|file| format!("--kubeconfig {}", quoted(file)));
        let context = context.as_ref().map(|name| format!("--context {}", quoted(Path::new(name))));
        match (kubeconfig, context) {
            (Some(kubeconfig), Some(context)) => format!("{kubeconfig} {context}"),
            (Some(flag), None) | (None, Some(flag)) => flag,
            (None, None) => ANY_KUBECONFIG.to_owned(),
        }
    }
}

/// A connection to a cluster with the operator's permissions.
pub(crate) struct TargetCluster {
    pub(crate) client: Client,
    /// Name of the context in use.
    pub(crate) context: String,
    /// Kubeconfig and context in use, as flags of `kubectl` and `attest`.
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

impl TargetCluster {
    /// Reads the kubeconfig and creates a client. Sends no request.
    pub(crate) async fn open(args: &TargetArgs) -> anyhow::Result<Self> {
        attest_certs::install_provider();
        let (kubeconfig, shown) = read_kubeconfig(args.kubeconfig.as_deref())?;
        let context = selected_context(&kubeconfig, &shown, args.context.as_deref())?;
        let entry = cluster_of(&kubeconfig, &context).with_context(|| {
            format!("context `{context}` of {shown} does not refer to a cluster")
        })?;
        if entry.insecure_skip_tls_verify == Some(true) {
            bail!(
                "context `{context}` of {shown} disables certificate verification; remove \
                 insecure-skip-tls-verify and set certificate-authority-data"
            );
        }
        let client = connect(kubeconfig, &context)
            .await
            .with_context(|| format!("failed to use context `{context}` of {shown}"))?;
        let used =
            TargetArgs { kubeconfig: args.kubeconfig.clone(), context: Some(context.clone()) };
        let server = entry.server.clone().unwrap_or_default();
        Ok(Self { client, context, flags: used.to_flags(), server, entry })
    }

    /// Reads the facts of the cluster and checks its version.
    pub(crate) async fn facts(&self) -> anyhow::Result<ClusterFacts> {
        let facts = ClusterFacts::read(&self.client).await.with_context(|| {
            format!("failed to read cluster {} of context `{}`", self.server, self.context)
        })?;
        check_version(&facts.version).map_err(|refusal| refusal_error(&refusal, &self.flags))?;
        Ok(facts)
    }

    /// Checks that the operator has these permissions, which `purpose` requires.
    ///
    /// # Errors
    /// Lists every missing permission.
    pub(crate) async fn check_permissions(
        &self,
        purpose: &str,
        needed: &[Permission],
    ) -> anyhow::Result<()> {
        let missing = missing_permissions(&self.client, needed).await?;
        if !missing.is_empty() {
            let missing: Vec<String> = missing.iter().map(ToString::to_string).collect();
            bail!(
                "context `{}` lacks permissions required for {purpose}: {}",
                self.context,
                missing.join("; ")
            );
        }
        Ok(())
    }

    /// Checks that the manifests can be installed. Changes nothing.
    pub(crate) async fn check_installation(
        &self,
        manifests: &[Value],
        additional: &[Permission],
    ) -> anyhow::Result<()> {
        let needed = installation_permissions(manifests, additional)?;
        self.check_permissions("an installation", &needed).await?;
        Ok(apply::dry_run(&self.client, manifests).await?)
    }

    /// Checks that the reserved namespaces contain no foreign objects. A foreign namespace is an error; an object
    /// in a namespace of ours is an error until a spoke has joined, and a warning afterwards.
    pub(crate) async fn check_namespaces(
        &self,
        manifests: &[Value],
        has_joined: bool,
        printer: &Printer,
    ) -> anyhow::Result<()> {
        let (tolerated, refused): (Vec<ForeignObject>, Vec<ForeignObject>) =
            foreign_objects(&self.client, manifests)
                .await?
                .into_iter()
                .partition(|object| has_joined && !object.is_namespace());
        tolerated.iter().for_each(|object| printer.warning(&object.to_string()));
        if !refused.is_empty() {
            let all: Vec<String> = refused.iter().map(ToString::to_string).collect();
            bail!("context `{}` contains foreign objects: {}", self.context, all.join("; "));
        }
        Ok(())
    }

    /// Removes the objects that only an earlier policy needed, and prints each.
    pub(crate) async fn prune(
        &self,
        manifests: &[Value],
        stage: &str,
        printer: &Printer,
    ) -> anyhow::Result<()> {
        for object in apply::prune(&self.client, manifests).await? {
            printer.note(&format!("{stage}{object} removed: the policy no longer requires it"));
        }
        Ok(())
    }

    /// The command that prints the log of the spoke in the cluster.
    pub(crate) fn log_command(&self) -> String {
        let flags = &self.flags;
        format!("kubectl {flags} -n {SPOKE_NAMESPACE} logs deployment/{SPOKE_NAME}")
    }

    /// A kubeconfig for this cluster with the spoke's token and without the operator's credentials.
    pub(crate) fn spoke_kubeconfig(&self, name: &str, token: &str) -> anyhow::Result<String> {
        let authority =
            match (&self.entry.certificate_authority_data, &self.entry.certificate_authority) {
                (Some(data), _) => Some(data.clone()),
                (None, Some(path)) => {
                    let pem =
                        std::fs::read(path).with_context(|| format!("failed to read {path}"))?;
                    Some(data_encoding::BASE64.encode(&pem))
                }
                (None, None) => None,
            };
        let mut cluster = json!({"server": self.server});
        for (key, value) in [
            ("certificate-authority-data", authority),
            ("tls-server-name", self.entry.tls_server_name.clone()),
            ("proxy-url", self.entry.proxy_url.clone()),
        ] {
            if let (Some(value), Value::Object(fields)) = (value, &mut cluster) {
                fields.insert(key.to_owned(), value.into());
            }
        }
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": name,
            "clusters": [{"name": name, "cluster": cluster}],
            "users": [{"name": SPOKE_NAME, "user": {"token": token}}],
            "contexts": [{"name": name, "context": {
                "cluster": name, "user": SPOKE_NAME, "namespace": SPOKE_NAMESPACE
            }}]
        });
        Ok(serde_saphyr::to_string(&kubeconfig)?)
    }
}

/// The error of a command for a refusal, with its remedy.
pub(crate) fn refusal_error(refusal: &RegistrationRefusal, flags: &str) -> anyhow::Error {
    anyhow!("{refusal}; {}", refusal.remedy(flags))
}

/// Prints the objects that will be installed.
pub(crate) fn print_objects(manifests: &[Value], printer: &Printer) -> anyhow::Result<()> {
    printer.note("to be installed:");
    for manifest in manifests {
        printer.note(&format!("  {}", ObjectRef::from_manifest(manifest)?));
    }
    Ok(())
}

/// Writes a file atomically, readable by its owner only.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        crate::context::create_private_directory(parent)?;
    }
    attest_certs::bundle::write_private(path, bytes)
        .with_context(|| format!("failed to write {}", path.display()))
}

/// The kubeconfig, with its name in messages.
fn read_kubeconfig(file: Option<&Path>) -> anyhow::Result<(Kubeconfig, String)> {
    match file {
        Some(path) => {
            let shown = path.display().to_string();
            let read = Kubeconfig::read_from(path);
            Ok((read.with_context(|| format!("failed to read kubeconfig {shown}"))?, shown))
        }
        None => {
            let read = Kubeconfig::read()
                .context("failed to read the default kubeconfig; pass --kubeconfig")?;
            Ok((read, "the kubeconfig".to_owned()))
        }
    }
}

fn selected_context(
    kubeconfig: &Kubeconfig,
    shown: &str,
    requested: Option<&str>,
) -> anyhow::Result<String> {
    let names: Vec<&str> = kubeconfig.contexts.iter().map(|one| one.name.as_str()).collect();
    let listed = match names.as_slice() {
        [] => "it contains no contexts".to_owned(),
        some => format!("available contexts: {}", some.join(", ")),
    };
    let selected = requested.or(kubeconfig.current_context.as_deref());
    match selected.filter(|name| !name.is_empty()) {
        Some(name) if names.contains(&name) => Ok(name.to_owned()),
        Some(name) => bail!("context `{name}` not found in {shown}; {listed}"),
        None => bail!("no current context in {shown}; pass --context; {listed}"),
    }
}

fn cluster_of(kubeconfig: &Kubeconfig, context: &str) -> Option<kube::config::Cluster> {
    let context = kubeconfig.contexts.iter().find(|found| found.name == context)?;
    let name = &context.context.as_ref()?.cluster;
    kubeconfig.clusters.iter().find(|found| found.name == *name)?.cluster.clone()
}

async fn connect(kubeconfig: Kubeconfig, context: &str) -> anyhow::Result<Client> {
    let options =
        KubeConfigOptions { context: Some(context.to_owned()), ..KubeConfigOptions::default() };
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
    config.connect_timeout = Some(CONNECT_WITHIN);
    config.read_timeout = Some(ANSWER_WITHIN);
    Ok(Client::try_from(config)?)
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
            assert_eq!(args.to_flags(), typed);
        }
    }
}
