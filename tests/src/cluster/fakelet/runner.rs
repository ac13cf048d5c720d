//! Runs a local program for a pod, from the pod's own template: arguments, environment, mounted
//! Secrets, ConfigMaps and account tokens.
//!
//! Nothing can be mounted at a path inside a pod here, so each volume becomes a directory, and arguments
//! and variables that name a path below a mount are rewritten to it. A claim's directory outlives its pods.
//! No address of the cluster exists on this machine either: `HOST:PORT` of a Service is rewritten to where
//! the process of its pod listens. `ATTEST_SERVICE_ACCOUNT_DIR` names
//! the account's directory, whose path is fixed in a real pod.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::Context;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, EnvVarSource, KeyToPath, ObjectFieldSelector, Pod, ProjectedVolumeSource,
    Secret, Service, ServiceAccount, ServiceAccountTokenProjection,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use super::{Condition, NodePod, NodeState, RETRY_EVERY};
use crate::process::{Process, Spec};

/// Names the directory that replaces `/var/run/secrets/kubernetes.io/serviceaccount`.
pub const SERVICE_ACCOUNT_VARIABLE: &str = "ATTEST_SERVICE_ACCOUNT_DIR";

const SERVICE_ACCOUNT_MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Directory of the claims, below that of the node.
const CLAIMS: &str = "claims";
/// Beginning of the addresses of Services.
const SERVICE_ADDRESSES: &str = "10.96.";
const TOKEN_LIFETIME: Duration = Duration::from_secs(3607);
/// Share of its lifetime after which a kubelet renews a token.
const TOKEN_RENEWAL_PERCENT: u32 = 80;
const ALIVE_AFTER: Duration = Duration::from_millis(200);
const LOOK_EVERY: Duration = Duration::from_millis(50);
const RESTART_DELAY: Duration = Duration::from_millis(200);
const RESTART_DELAY_MAX: Duration = Duration::from_secs(5);
const STOP_WITHIN: Duration = Duration::from_secs(2);

/// The program that replaces an image.
#[derive(Clone, Debug)]
pub struct Runner {
    image: String,
    program: PathBuf,
    environment: Vec<(OsString, OsString)>,
    /// Container port → address of this machine.
    listens: BTreeMap<u16, String>,
}

impl Runner {
    /// Runs `program` for containers whose image is named `image`, in any registry and with any tag or
    /// digest.
    pub fn new(image: &str, program: impl Into<PathBuf>) -> Self {
        Self {
            image: image.to_owned(),
            program: program.into(),
            environment: Vec::new(),
            listens: BTreeMap::new(),
        }
    }

    /// Sets a variable in addition to those of the pod.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// The process listens on `address` for the container port `port`, because `variable` says so.
    #[must_use]
    pub fn listen(mut self, port: u16, variable: &str, address: &str) -> Self {
        self.listens.insert(port, address.to_owned());
        self.env(variable, address)
    }

    /// Address of this machine for a container port.
    pub(super) fn address(&self, port: u16) -> Option<&str> {
        self.listens.get(&port).map(String::as_str)
    }

    pub(super) fn runs(&self, image: &str) -> bool {
        let name = image.split_once('@').map_or(image, |(name, _)| name);
        let last = name.rsplit('/').next().unwrap_or(name);
        last.split(':').next() == Some(self.image.as_str())
    }
}

/// Keeps the pod's process running until this future is dropped or the pod no longer exists.
pub(super) async fn supervise(
    client: Client,
    node: &NodeState,
    server: &str,
    pod: &NodePod,
    runner: &Runner,
    container: &Container,
) {
    let job = Job { client, node, server, pod, runner, container };
    let mut restarts = 0;
    let mut delay = RESTART_DELAY;
    loop {
        if !pod.write_status(Condition::Unready { restarts }).await {
            return;
        }
        let started = Instant::now();
        // Like a kubelet, retry when a Secret is missing.
        match job.run_once(restarts).await {
            Ok(status) if job.runs_once() => {
                let end = if status.success() { Condition::Succeeded } else { Condition::Failed };
                pod.write_status(end).await;
                return;
            }
            Ok(_) => restarts += 1,
            Err(_) => {}
        }
        delay = if started.elapsed() > RESTART_DELAY_MAX {
            RESTART_DELAY
        } else {
            (delay * 2).min(RESTART_DELAY_MAX)
        };
        tokio::time::sleep(delay).await;
    }
}

struct Job<'a> {
    client: Client,
    node: &'a NodeState,
    server: &'a str,
    pod: &'a NodePod,
    runner: &'a Runner,
    container: &'a Container,
}

impl Job<'_> {
    fn runs_once(&self) -> bool {
        let policy = self.pod.pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
        policy == Some("Never")
    }

    async fn run_once(&self, restarts: u32) -> anyhow::Result<ExitStatus> {
        let directory = self.directory();
        let mounts = self.mount(&directory).await?;
        let spec = self.spec(&directory, &mounts).await?;
        let mut running =
            Running { process: Process::spawn(spec)?, node: self.node, pod: self.pod_path() };
        self.node.processes.lock().insert(running.pod.clone(), running.process.id());
        let started = Instant::now();
        let mut token_age = Instant::now();
        let mut is_reported = false;
        loop {
            if let Some(status) = running.process.ended()? {
                return Ok(status);
            }
            if !is_reported && started.elapsed() >= ALIVE_AFTER && self.is_ready().await {
                is_reported = self.pod.write_status(Condition::Ready { restarts }).await;
            }
            if token_age.elapsed() > TOKEN_LIFETIME * TOKEN_RENEWAL_PERCENT / 100 {
                match self.mount(&directory).await {
                    Ok(_) => token_age = Instant::now(),
                    Err(_) => tokio::time::sleep(RETRY_EVERY).await,
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Asks the process as its readiness probe says, where it is known where it listens.
    async fn is_ready(&self) -> bool {
        let probe =
            self.container.readiness_probe.as_ref().and_then(|probe| probe.http_get.as_ref());
        let address = probe
            .and_then(|probe| self.runner.address(container_port(self.container, &probe.port)?));
        let (Some(probe), Some(address)) = (probe, address) else { return true };
        let path = probe.path.as_deref().unwrap_or("/");
        let Ok(client) = reqwest::Client::builder().no_proxy().build() else { return false };
        let answer = client.get(format!("http://{address}{path}")).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    /// Rewrites `HOST:PORT` of a Service, alone or as the value of a `--flag=`.
    async fn resolve(&self, text: &str) -> String {
        let (flag, value) = match text.split_once('=') {
            Some((flag, value)) if flag.starts_with('-') => (Some(flag), value),
            Some(_) | None => (None, text),
        };
        let found = self.service_address(value).await.unwrap_or_default();
        let resolved = found.unwrap_or_else(|| value.to_owned());
        flag.map_or_else(|| resolved.clone(), |flag| format!("{flag}={resolved}"))
    }

    /// The address on this machine of a Service's `HOST:PORT`.
    async fn service_address(&self, text: &str) -> anyhow::Result<Option<String>> {
        let Some((host, port)) = text.rsplit_once(':') else { return Ok(None) };
        let Ok(port) = port.parse::<i32>() else { return Ok(None) };
        if !host.ends_with(".svc") && !host.starts_with(SERVICE_ADDRESSES) {
            return Ok(None);
        }
        let services: Api<Service> = Api::all(self.client.clone());
        let services = services.list(&ListParams::default()).await?;
        let service = services.items.iter().find(|service| is_at(service, host));
        let Some(service) = service else { return Ok(None) };
        let spec = service.spec.as_ref().context("a Service without spec")?;
        let selector = spec.selector.iter().flatten();
        let labels: Vec<String> = selector.map(|(key, value)| format!("{key}={value}")).collect();
        let pods: Api<Pod> =
            Api::namespaced(self.client.clone(), &service.namespace().unwrap_or_default());
        let pods = pods.list(&ListParams::default().labels(&labels.join(","))).await?;
        let ports = spec.ports.iter().flatten();
        let target =
            ports.filter(|known| known.port == port).find_map(|known| known.target_port.clone());
        let Some(target) = target else { return Ok(None) };
        Ok(pods.items.iter().find_map(|pod| {
            let (runner, container) = self.node.runner(pod)?;
            Some(runner.address(container_port(&container, &target)?)?.to_owned())
        }))
    }

    fn pod_path(&self) -> String {
        format!("{}/{}", self.namespace(), self.pod.pod.name_any())
    }

    fn namespace(&self) -> String {
        self.pod.pod.namespace().unwrap_or_default()
    }

    fn directory(&self) -> PathBuf {
        self.node.directory.join(self.pod_path().replace('/', "_"))
    }

    async fn spec(&self, directory: &Path, mounts: &Mounts) -> anyhow::Result<Spec> {
        let mut variables: BTreeMap<String, String> = BTreeMap::new();
        for variable in self.container.env.iter().flatten() {
            let value = match (&variable.value, &variable.value_from) {
                (Some(value), _) => expand(value, &variables),
                (None, Some(source)) => self.variable(source).await?.unwrap_or_default(),
                (None, None) => String::new(),
            };
            let value = self.resolve(&mounts.rewrite(&value)).await;
            variables.insert(variable.name.clone(), value);
        }
        let (host, port) = self
            .server
            .rsplit_once('/')
            .and_then(|(_, authority)| authority.rsplit_once(':'))
            .context("the API server's address has no port")?;

        let command = self.container.command.iter().flatten().skip(1);
        let arguments = command.chain(self.container.args.iter().flatten());
        let mut resolved = Vec::new();
        for argument in arguments {
            let argument = mounts.rewrite(&expand(argument, &variables));
            resolved.push(self.resolve(&argument).await);
        }
        let log = directory.with_extension("log");
        let mut spec = Spec::new(&self.runner.program, log).args(resolved);
        // As in a container, nothing is inherited from this process.
        spec.inherit_environment = false;
        spec.environment
            .extend(variables.into_iter().map(|(name, value)| (name.into(), value.into())));
        spec = spec
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", directory)
            .env("TMPDIR", directory)
            .env("HOSTNAME", self.pod.pod.name_any())
            .env("KUBERNETES_SERVICE_HOST", host)
            .env("KUBERNETES_SERVICE_PORT", port)
            .env("KUBERNETES_SERVICE_PORT_HTTPS", port);
        if let Some(account) = mounts.0.get(SERVICE_ACCOUNT_MOUNT) {
            spec = spec.env(SERVICE_ACCOUNT_VARIABLE, account);
        }
        spec.environment.extend(self.runner.environment.iter().cloned());
        Ok(spec)
    }

    async fn variable(&self, source: &EnvVarSource) -> anyhow::Result<Option<String>> {
        if let Some(field) = &source.field_ref {
            return self.field(field).map(Some);
        }
        if let Some(reference) = &source.secret_key_ref {
            let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace());
            let secret = secrets.get_opt(&reference.name).await?;
            let value = secret.and_then(|secret| secret.data?.remove(&reference.key));
            return match value {
                Some(value) => Ok(Some(String::from_utf8(value.0)?)),
                None if reference.optional == Some(true) => Ok(None),
                None => anyhow::bail!("no key {} in Secret {}", reference.key, reference.name),
            };
        }
        if let Some(reference) = &source.config_map_key_ref {
            let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace());
            let map = maps.get_opt(&reference.name).await?;
            let value = map.and_then(|map| map.data?.remove(&reference.key));
            return match value {
                Some(value) => Ok(Some(value)),
                None if reference.optional == Some(true) => Ok(None),
                None => anyhow::bail!("no key {} in ConfigMap {}", reference.key, reference.name),
            };
        }
        Ok(None)
    }

    fn field(&self, field: &ObjectFieldSelector) -> anyhow::Result<String> {
        let pod = &self.pod.pod;
        let spec = pod.spec.as_ref();
        Ok(match field.field_path.as_str() {
            "metadata.name" => pod.name_any(),
            "metadata.namespace" => self.namespace(),
            "metadata.uid" => pod.uid().unwrap_or_default(),
            "spec.nodeName" => super::NODE.to_owned(),
            "spec.serviceAccountName" => {
                spec.and_then(|spec| spec.service_account_name.clone()).unwrap_or_default()
            }
            "status.podIP" => self.pod.address.clone(),
            "status.hostIP" => super::NODE_ADDRESS.to_owned(),
            other => anyhow::bail!("fieldRef {other} is not implemented"),
        })
    }

    /// Writes every volume into a directory; returns the directory of each mount.
    async fn mount(&self, directory: &Path) -> anyhow::Result<Mounts> {
        let volumes = self.pod.pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        let mut places: BTreeMap<&str, PathBuf> = BTreeMap::new();
        for volume in volumes {
            let place = match (&volume.persistent_volume_claim, &volume.host_path) {
                (Some(claim), _) => {
                    let name = format!("{}_{}", self.namespace(), claim.claim_name);
                    self.node.directory.join(CLAIMS).join(name)
                }
                (None, Some(host)) => PathBuf::from(&host.path),
                (None, None) => directory.join(&volume.name),
            };
            std::fs::create_dir_all(&place)?;
            if let Some(secret) = &volume.secret {
                let name = secret.secret_name.as_deref().unwrap_or_default();
                let optional = secret.optional == Some(true);
                self.put_secret(&place, name, secret.items.as_deref(), optional).await?;
            } else if let Some(map) = &volume.config_map {
                let optional = map.optional == Some(true);
                self.put_config_map(&place, &map.name, map.items.as_deref(), optional).await?;
            } else if let Some(projected) = &volume.projected {
                self.put_projected(&place, projected).await?;
            }
            places.insert(&volume.name, place);
        }
        let mounts = self.container.volume_mounts.iter().flatten();
        Ok(Mounts(
            mounts
                .filter_map(|mount| {
                    let place = places.get(mount.name.as_str())?;
                    let place = match &mount.sub_path {
                        Some(sub_path) => place.join(sub_path),
                        None => place.clone(),
                    };
                    Some((mount.mount_path.trim_end_matches('/').to_owned(), place))
                })
                .collect(),
        ))
    }

    async fn put_projected(
        &self,
        place: &Path,
        projected: &ProjectedVolumeSource,
    ) -> anyhow::Result<()> {
        for source in projected.sources.iter().flatten() {
            if let Some(token) = &source.service_account_token {
                self.put_token(place, token).await?;
            }
            if let Some(secret) = &source.secret {
                let optional = secret.optional == Some(true);
                self.put_secret(place, &secret.name, secret.items.as_deref(), optional).await?;
            }
            if let Some(map) = &source.config_map {
                let optional = map.optional == Some(true);
                self.put_config_map(place, &map.name, map.items.as_deref(), optional).await?;
            }
            for item in source.downward_api.iter().flat_map(|api| api.items.iter().flatten()) {
                if let Some(field) = &item.field_ref {
                    put(place, &item.path, self.field(field)?.as_bytes())?;
                }
            }
        }
        Ok(())
    }

    async fn put_token(
        &self,
        place: &Path,
        token: &ServiceAccountTokenProjection,
    ) -> anyhow::Result<()> {
        let pod = &self.pod.pod;
        let account = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.service_account_name.as_deref())
            .unwrap_or("default");
        let lifetime_s = token
            .expiration_seconds
            .unwrap_or_else(|| i64::try_from(TOKEN_LIFETIME.as_secs()).unwrap_or(i64::MAX));
        let audiences: Vec<_> = token.audience.iter().collect();
        let request: TokenRequest = serde_json::from_value(json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {},
            "spec": {
                "audiences": audiences, "expirationSeconds": lifetime_s,
                "boundObjectRef": {
                    "apiVersion": "v1", "kind": "Pod", "name": pod.name_any(), "uid": pod.uid()
                }
            }
        }))?;
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &self.namespace());
        let answer =
            accounts.create_token_request(account, &PostParams::default(), &request).await?;
        let text = answer.status.and_then(|status| status.token);
        let text = text.context("the API server issued no token")?;
        put(place, &token.path, text.as_bytes())
    }

    async fn put_secret(
        &self,
        place: &Path,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: bool,
    ) -> anyhow::Result<()> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace());
        let Some(secret) = secrets.get_opt(name).await? else {
            anyhow::ensure!(optional, "no Secret {name}");
            return Ok(());
        };
        let data = secret.data.unwrap_or_default();
        put_all(place, data.iter().map(|(key, value)| (key.as_str(), value.0.as_slice())), items)
    }

    async fn put_config_map(
        &self,
        place: &Path,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: bool,
    ) -> anyhow::Result<()> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace());
        let Some(map) = maps.get_opt(name).await? else {
            anyhow::ensure!(optional, "no ConfigMap {name}");
            return Ok(());
        };
        let data = map.data.unwrap_or_default();
        put_all(place, data.iter().map(|(key, value)| (key.as_str(), value.as_bytes())), items)
    }
}

/// A process that is listed on the node while it runs, and that gets time to stop before it is killed.
struct Running<'a> {
    process: Process,
    node: &'a NodeState,
    pod: String,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.node.processes.lock().remove(&self.pod);
        self.process.terminate();
        let asked = Instant::now();
        while asked.elapsed() < STOP_WITHIN && matches!(self.process.ended(), Ok(None)) {
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// The number of a container's port, which may be given by its name.
fn container_port(container: &Container, port: &IntOrString) -> Option<u16> {
    match port {
        IntOrString::Int(number) => u16::try_from(*number).ok(),
        IntOrString::String(name) => {
            let ports = container.ports.iter().flatten();
            let mut named = ports.filter(|port| port.name.as_deref() == Some(name));
            u16::try_from(named.next()?.container_port).ok()
        }
    }
}

/// Returns whether a Service has this cluster IP, or the name `NAME.NAMESPACE.svc`.
fn is_at(service: &Service, host: &str) -> bool {
    let ip = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref());
    let name = format!("{}.{}.svc", service.name_any(), service.namespace().unwrap_or_default());
    ip == Some(host) || name == host
}

fn put_all<'a>(
    place: &Path,
    data: impl Iterator<Item = (&'a str, &'a [u8])>,
    items: Option<&[KeyToPath]>,
) -> anyhow::Result<()> {
    for (key, value) in data {
        match items {
            None => put(place, key, value)?,
            Some(items) => {
                for item in items.iter().filter(|item| item.key == key) {
                    put(place, &item.path, value)?;
                }
            }
        }
    }
    Ok(())
}

fn put(place: &Path, name: &str, content: &[u8]) -> anyhow::Result<()> {
    let path = place.join(name);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    Ok(attest_certs::bundle::write_private(&path, content)?)
}

/// Mount path → directory.
struct Mounts(BTreeMap<String, PathBuf>);

impl Mounts {
    /// Rewrites a path below a mount, alone or as the value of a `--flag=`.
    fn rewrite(&self, text: &str) -> String {
        if text.starts_with('-')
            && let Some((flag, value)) = text.split_once('=')
        {
            return format!("{flag}={}", self.rewrite(value));
        }
        // The most specific mount is last in order and takes precedence.
        for (mount, place) in self.0.iter().rev() {
            match text.strip_prefix(mount.as_str()) {
                Some("") => return place.display().to_string(),
                Some(rest) if rest.starts_with('/') => return format!("{}{rest}", place.display()),
                Some(_) | None => {}
            }
        }
        text.to_owned()
    }
}

/// Expands `$(NAME)` to the variable's value and `$$(NAME)` to `$(NAME)`, as Kubernetes does.
fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(escaped) = after.strip_prefix('$') {
            out.push('$');
            rest = escaped;
            continue;
        }
        let reference = after.strip_prefix('(').and_then(|inner| inner.split_once(')'));
        match reference.and_then(|(name, tail)| Some((variables.get(name)?, tail))) {
            Some((value, tail)) => {
                out.push_str(value);
                rest = tail;
            }
            None => {
                out.push('$');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runner_knows_its_image_in_any_registry_and_version() {
        let runner = Runner::new("attest-spoke", "/bin/true");

        for image in [
            "attest-spoke",
            "attest-spoke:0.1.0",
            "ghcr.io/attest-ci/attest-spoke:0.1.0@sha256:00",
            "localhost:5000/attest-spoke@sha256:00",
        ] {
            assert!(runner.runs(image), "{image}");
        }
        assert!(!runner.runs("ghcr.io/attest-ci/attest-spoke-debug:1"));
        assert!(!runner.runs("attest-spoke/other:1"));
    }

    #[test]
    fn paths_below_a_mount_are_rewritten_and_nothing_else_is() {
        let mounts = Mounts(BTreeMap::from([
            ("/etc/attest".to_owned(), PathBuf::from("/tmp/a")),
            ("/etc/attest/join".to_owned(), PathBuf::from("/tmp/j")),
        ]));

        for (text, expected) in [
            ("/etc/attest/policy.yaml", "/tmp/a/policy.yaml"),
            ("/etc/attest", "/tmp/a"),
            ("--token-file=/etc/attest/join/token", "--token-file=/tmp/j/token"),
            ("/etc/attestation", "/etc/attestation"),
            ("hub.example:4433", "hub.example:4433"),
        ] {
            assert_eq!(mounts.rewrite(text), expected);
        }
    }

    #[test]
    fn variables_expand_as_in_kubernetes() {
        let variables = BTreeMap::from([("NAME".to_owned(), "spoke".to_owned())]);

        for (text, expected) in [
            ("--name=$(NAME)", "--name=spoke"),
            ("$$(NAME)", "$(NAME)"),
            ("$(MISSING)", "$(MISSING)"),
            ("a$", "a$"),
            ("$(NAME", "$(NAME"),
        ] {
            assert_eq!(expand(text, &variables), expected);
        }
    }
}
