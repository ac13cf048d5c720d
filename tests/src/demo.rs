//! The demo: a hub, two clusters, one signed commit, and what a compromised hub cannot do.
//!
//! Prints each step and, as its result, what an API server or the hub returned at that moment. A step
//! that fails ends the demo with an error. [`Sabotage`] breaks one step on purpose, for the test that
//! proves that the demo can fail.

use std::ffi::OsString;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::cluster::binaries::Binaries;
use crate::compromised_hub;
use crate::fleet::program;
use crate::real::{Agents, RealFleet, RealSite};
use crate::wait::until;

const SYNCED_WITHIN: Duration = Duration::from_secs(40);
const REFUSED_WITHIN: Duration = Duration::from_secs(20);
const REVERTED_WITHIN: Duration = Duration::from_secs(10);
const PATH_OF_A_TERMINAL: &str = "/usr/local/bin:/usr/bin:/bin";
const APPLICATION: &str = include_str!("../sample/application.yaml");
const APPLICATION_PATH: &str = "/v1/applications/web-app";

/// A step to break on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Sabotage {
    /// Revoke a cluster after its registration.
    Clusters,
    /// Let CI's test step fail.
    Sign,
    /// Edit the commit after signing.
    Deploy,
    /// Let CI sign the commit that should be refused.
    Unsigned,
    /// Let the compromised hub send what CI signed instead of a changed byte.
    Tampered,
    /// Stop the spokes before the edit by hand.
    Heal,
    /// Stop the spoke of production before the next release.
    Release,
    /// Write with a spoke's credential.
    Audit,
}

/// State of hub and clusters after the last step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// They keep running for the commands that are shown.
    Stay,
    /// They are stopped; the commands are run by the demo, and their output is shown.
    Go,
}

/// A demo in progress.
#[derive(Debug)]
pub struct Demo<'a> {
    fleet: RealFleet,
    sabotage: Option<Sabotage>,
    started: Instant,
    print: &'a fn(&str),
    /// The newest commit that CI signed and pushed.
    pushed: String,
}

/// Runs every step. Returns `None` without Kubernetes programs.
///
/// # Errors
/// When a step fails.
pub async fn run(
    sabotage: Option<Sabotage>,
    ending: Ending,
    print: &fn(&str),
) -> anyhow::Result<Option<RealFleet>> {
    let started = Instant::now();
    print("1. Two clusters, a hub, and a spoke in each cluster");
    let clusters = [("staging", "staging"), ("production", "production")];
    let mut print_indented = |line: String| print(&format!("   {line}"));
    let started_fleet =
        RealFleet::start_with(&clusters, Agents::External, &mut print_indented).await?;
    let Some(fleet) = started_fleet else { return Ok(None) };
    let mut demo = Demo { fleet, sabotage, started, print, pushed: String::new() };
    demo.show_clusters().await?;
    demo.sign()?;
    demo.deploy().await?;
    demo.refuse_unsigned().await?;
    demo.refuse_tampered().await?;
    demo.revert_drift().await?;
    demo.release_again().await?;
    demo.audit().await?;
    demo.show_commands(ending)?;
    Ok(Some(demo.fleet))
}

impl Demo<'_> {
    fn print_result(&self, line: &str) {
        (self.print)(&format!("   {line}"));
    }

    fn print_step(&self, title: &str) {
        (self.print)(&format!("\n{title}   [{:.0} s]", self.started.elapsed().as_secs_f64()));
    }

    fn run_attest(&self, arguments: &[&str]) -> anyhow::Result<()> {
        self.print_result(&format!("$ attest {}", arguments.join(" ")));
        for line in self.fleet.operator().attest(arguments)?.lines() {
            self.print_result(line);
        }
        Ok(())
    }

    async fn application(&self) -> anyhow::Result<Value> {
        self.fleet.api().call("GET", APPLICATION_PATH, None).await
    }

    async fn request_sync(&self) -> anyhow::Result<()> {
        let path = format!("{APPLICATION_PATH}/sync");
        let _: Value = self.fleet.api().call("POST", &path, None).await?;
        Ok(())
    }

    fn production(&self) -> anyhow::Result<&RealSite> {
        self.fleet.sites().iter().find(|site| site.name == "production").context("production")
    }

    async fn show_clusters(&self) -> anyhow::Result<()> {
        if self.sabotage == Some(Sabotage::Clusters) {
            let revoke =
                ["gitops", "cluster", "revoke", "production", "-y", "--reason", "sabotage"];
            self.fleet.operator().attest(&revoke)?;
            until("the hub to disconnect the spoke", REFUSED_WITHIN, || async {
                let list = self.fleet.operator().json(&["gitops", "cluster", "list"])?;
                Ok((connected(&list) < 2).then_some(()))
            })
            .await?;
        }
        self.run_attest(&["gitops", "cluster", "list"])?;
        let list = self.fleet.operator().json(&["gitops", "cluster", "list"])?;
        ensure!(connected(&list) == 2, "not both clusters are connected: {list}");
        Ok(())
    }

    fn sign(&mut self) -> anyhow::Result<()> {
        self.print_step("2. CI builds, tests, scans and signs");
        self.fleet.write_sample()?;
        let tree = self.fleet.repository().tree();
        if self.sabotage == Some(Sabotage::Sign) {
            std::fs::write(tree.join("test.sh"), "#!/bin/sh\nexit 1\n")?;
        }
        self.print_result("$ attest run --sign --verify && git commit && git push");
        let commit = self.fleet.release("v1")?;
        let receipts = tree.join(".attest/receipts/web-app");
        let mut names = Vec::new();
        for counter in std::fs::read_dir(receipts)? {
            for receipt in std::fs::read_dir(counter?.path())? {
                names.push(receipt?.file_name().to_string_lossy().into_owned());
            }
        }
        names.sort();
        ensure!(names.len() == 4, "expected a release and three receipts, found {names:?}");
        self.pushed = commit;
        Ok(())
    }

    async fn deploy(&self) -> anyhow::Result<()> {
        self.print_step("3. The hub reads the commit; both spokes verify it again and apply it");
        if self.sabotage == Some(Sabotage::Deploy) {
            self.edit_image("v1", "edited")?;
            self.fleet.repository().commit_and_push("Edited after signing")?;
        }
        let manifest = self.fleet.directory().join("application.yaml");
        let application =
            APPLICATION.replace("https://github.com/company/app", &self.fleet.repository().url());
        std::fs::write(&manifest, application)?;
        self.run_attest(&["gitops", "app", "apply", "-f", &manifest.display().to_string()])?;
        self.fleet.wait_synced("web-app", SYNCED_WITHIN).await?;
        self.show_synced("v1").await
    }

    /// Shows the application, and that the API servers have the images of `version`.
    async fn show_synced(&self, version: &str) -> anyhow::Result<()> {
        self.run_attest(&["gitops", "app", "get", "web-app"])?;
        let application = self.application().await?;
        for destination in destinations(&application) {
            let signers = destination.pointer("/running/signers").and_then(Value::as_array);
            ensure!(
                signers.is_some_and(|signers| !signers.is_empty()),
                "a destination names no signer: {destination}"
            );
        }
        let revision = text(&application, "revision");
        ensure!(revision == self.pushed, "the hub read {revision}, not {}", self.pushed);
        self.print_result(&format!(
            "the hub has read commit {}, the one that was pushed",
            short_commit(revision)
        ));
        for site in self.fleet.sites() {
            let image = image(site).await?;
            ensure!(image.contains(&format!(":{version}@sha256:")), "{}: {image}", site.name);
            self.print_result(&format!("{}: Deployment web-app has image {image}", site.name));
        }
        Ok(())
    }

    fn edit_image(&self, from: &str, to: &str) -> anyhow::Result<()> {
        let file = self.fleet.repository().tree().join("k8s/base/deployment.yaml");
        let text = std::fs::read_to_string(&file)?;
        let edited = text.replace(&format!("myapp:{from}"), &format!("myapp:{to}"));
        ensure!(edited != text, "no image myapp:{from} in {}", file.display());
        Ok(std::fs::write(file, edited)?)
    }

    async fn refuse_unsigned(&self) -> anyhow::Result<()> {
        self.print_step("4. A commit that CI did not sign");
        let commit = if self.sabotage == Some(Sabotage::Unsigned) {
            self.fleet.release("backdoor")?
        } else {
            self.edit_image("v1", "backdoor")?;
            self.fleet.repository().commit_and_push("Quick fix")?
        };
        self.print_result(
            "$ sed -i 's/myapp:v1/myapp:backdoor/' k8s/base/deployment.yaml && git commit && git push",
        );
        self.request_sync().await?;
        let refused = until("the hub to refuse the commit", REFUSED_WITHIN, || async {
            let application = self.application().await?;
            let is_read = text(&application, "revision") == commit;
            let destination = destinations(&application).next().cloned().unwrap_or_default();
            let is_refused = text(&destination, "phase") == "AwaitingReceipts";
            Ok((is_read && is_refused).then_some(destination))
        })
        .await?;
        let (reason, message) = (text(&refused, "reason"), text(&refused, "message"));
        ensure!(message.contains("myapp:backdoor"), "the hub does not name the image: {refused}");
        self.print_result(&format!("hub: {}: {reason}: {message}", short_commit(&commit)));
        self.show_unchanged().await?;
        self.fleet.repository().git(&["revert", "--no-edit", "HEAD"])?;
        self.fleet.repository().git(&["push", "-q", "origin", "HEAD:main"])?;
        Ok(())
    }

    async fn refuse_tampered(&mut self) -> anyhow::Result<()> {
        self.print_step(
            "5. A compromised hub: its signing key, certificate and directory are stolen",
        );
        let honest = self.sabotage == Some(Sabotage::Tampered);
        self.fleet.hub().process().kill();
        let attack = compromised_hub::tampered_plan(&mut self.fleet, "production", honest).await?;
        self.print_result(&attack.description);
        let kubeconfig = self.production()?.cluster.kubeconfig().display().to_string();
        let refusal = until("the spoke to refuse the plan", REFUSED_WITHIN, || async {
            let status =
                self.fleet.operator().json(&["spoke", "status", "--kubeconfig", &kubeconfig])?;
            let refusals = status.get("refusals").and_then(Value::as_array);
            let mut refusals = refusals.into_iter().flatten();
            let sequence = json!(attack.sequence);
            Ok(refusals.find(|refusal| refusal.get("sequence") == Some(&sequence)).cloned())
        })
        .await?;
        let (reason, message) = (text(&refusal, "reason"), text(&refusal, "message"));
        ensure!(reason == "ContentDigest", "refused, but as {reason}");
        self.print_result(&format!("production's spoke: {reason}: {message}"));
        self.show_unchanged().await?;
        attack.hub.end().await?;
        self.fleet.hub().restart().await?;
        let (status, body) = self.fleet.hub().ready().await?;
        ensure!(status == 200, "the real hub is not ready: {status} {body}");
        self.print_result(&format!("the real hub runs again: GET /ready returns {status} {body}"));
        let refused = until("the real hub to show the refusal", REFUSED_WITHIN, || async {
            let application = self.application().await?;
            let mut destinations = destinations(&application);
            let refused = destinations.find(|destination| {
                text(destination, "cluster") == "production"
                    && text(destination, "phase") == "Refused"
            });
            Ok(refused.cloned())
        })
        .await?;
        let (phase, reason) = (text(&refused, "phase"), text(&refused, "reason"));
        self.print_result(&format!("it shows production: {phase} ({reason})"));
        self.print_result("The refusal stays visible until production admits the next release.");
        Ok(())
    }

    async fn show_unchanged(&self) -> anyhow::Result<()> {
        for site in self.fleet.sites() {
            let image = image(site).await?;
            ensure!(image.contains(":v1@sha256:"), "{} runs {image}", site.name);
            self.print_result(&format!(
                "{}: Deployment web-app still has image {}",
                site.name,
                short_image(&image)
            ));
        }
        Ok(())
    }

    async fn revert_drift(&self) -> anyhow::Result<()> {
        self.print_step("6. A managed object is edited by hand");
        if self.sabotage == Some(Sabotage::Heal) {
            self.freeze_spokes(&["staging", "production"]);
        }
        let client = self.production()?.cluster.client().await?;
        let configs: Api<ConfigMap> = Api::namespaced(client, "app-production");
        let original = configs.get("web-app").await?;
        let (field, value) = original
            .data
            .and_then(|data| data.into_iter().next())
            .context("the ConfigMap is empty")?;
        let edit = Patch::Merge(json!({"data": {&field: "edited by hand"}}));
        let edited = configs.patch("web-app", &PatchParams::default(), &edit).await?;
        let edited_at = Instant::now();
        self.print_result(&format!(
            "production: {}.data.{field} is now \"{}\"",
            edited.name_any(),
            data_field(&edited, &field).unwrap_or_default()
        ));
        let reverted = until("the edit to be reverted", REVERTED_WITHIN, || async {
            let live = configs.get("web-app").await?;
            Ok((data_field(&live, &field) == Some(value.as_str())).then_some(live))
        })
        .await?;
        let restored = data_field(&reverted, &field).unwrap_or_default();
        self.print_result(&format!(
            "production: {field} is \"{}\" again after {} ms",
            restored.lines().next().unwrap_or_default(),
            edited_at.elapsed().as_millis()
        ));
        Ok(())
    }

    fn freeze_spokes(&self, clusters: &[&str]) {
        let sites = self.fleet.sites().iter();
        for site in sites.filter(|site| clusters.contains(&site.name.as_str())) {
            if let Some(spoke) = &site.spoke {
                spoke.freeze();
            }
        }
    }

    async fn release_again(&mut self) -> anyhow::Result<()> {
        self.print_step("7. CI signs the next release; both clusters take it");
        if self.sabotage == Some(Sabotage::Release) {
            self.freeze_spokes(&["production"]);
        }
        let page = self.fleet.repository().tree().join("src/index.html");
        let changed = std::fs::read_to_string(&page)?.replace("web-app<", "web-app 2<");
        std::fs::write(&page, changed)?;
        self.print_result("$ sed -i 's/web-app</web-app 2</' src/index.html");
        self.print_result("$ attest run --sign --verify && git commit && git push");
        self.pushed = self.fleet.release("v2")?;
        self.request_sync().await?;
        until("both clusters to be Synced on v2", SYNCED_WITHIN, || async {
            let application = self.application().await?;
            let is_read = text(&application, "revision") == self.pushed;
            let synced = destinations(&application).filter(|destination| runs(destination, "v2"));
            Ok((is_read && synced.count() == 2).then_some(()))
        })
        .await?;
        self.show_synced("v2").await
    }

    async fn audit(&self) -> anyhow::Result<()> {
        self.print_step("8. The audit logs of both API servers");
        if self.sabotage == Some(Sabotage::Audit) {
            self.write_as_the_spoke().await?;
        }
        for site in self.fleet.sites() {
            let objects = site.cluster.audit().check_spoke_requests()?;
            ensure!(objects > 0, "{}: no object was written", site.name);
            self.print_result(&format!(
                "{}: {objects} writes of application objects, all by the application's own account",
                site.name
            ));
        }
        Ok(())
    }

    /// Attempts a write with a spoke's stolen credential. Returns once the audit log contains it.
    async fn write_as_the_spoke(&self) -> anyhow::Result<()> {
        let config = self.fleet.operator().config();
        let home = config.parent().context("no directory")?;
        let kubeconfig = home.join("spokes/production/kubeconfig");
        let audit = self.production()?.cluster.audit();
        let kubectl = Binaries::find()?.context("no Kubernetes programs")?;
        // The API server forbids it; the audit log records the attempt.
        Command::new(kubectl.directory().join("kubectl"))
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(["create", "configmap", "backdoor", "--namespace", "app-production"])
            .output()?;
        until("the audit log to contain the attempt", REFUSED_WITHIN, || async {
            Ok(audit.check_spoke_requests().is_err().then_some(()))
        })
        .await
    }

    fn show_commands(&self, ending: Ending) -> anyhow::Result<()> {
        self.print_step("Try it yourself");
        let attest = program("attest")?;
        let programs = attest.parent().context("attest has no directory")?.display().to_string();
        let kubernetes = Binaries::find()?.context("no Kubernetes programs")?;
        let settings = [
            format!("export ATTEST_CONFIG={}", self.fleet.operator().config().display()),
            format!("export PATH={programs}:{}:$PATH", kubernetes.directory().display()),
            format!("cd {}", self.fleet.repository().tree().display()),
        ];
        for line in &settings {
            self.print_result(line);
        }
        let mut commands = vec![
            "attest gitops app get web-app".to_owned(),
            "attest gitops app history web-app".to_owned(),
        ];
        commands.extend(self.fleet.sites().iter().map(|site| {
            let kubeconfig = site.cluster.kubeconfig().display().to_string();
            format!("kubectl --kubeconfig {kubeconfig} get all -n app-{}", site.name)
        }));
        for command in &commands {
            self.print_result(command);
            if ending == Ending::Go {
                let script = [settings.join("\n"), command.clone()].join("\n");
                for line in run_in_a_terminal(&script)?.lines() {
                    self.print_result(&format!("  {line}"));
                }
            }
        }
        Ok(())
    }
}

/// Runs a script as a new terminal would, with nothing of this process's environment; returns its output.
fn run_in_a_terminal(script: &str) -> anyhow::Result<String> {
    let home = std::env::var_os("HOME").unwrap_or_default();
    let output = Command::new("sh")
        .args(["-euc", script])
        .env_clear()
        .envs([("PATH", OsString::from(PATH_OF_A_TERMINAL)), ("HOME", home)])
        .stdin(Stdio::null())
        .output()?;
    let diagnostics = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "a suggested command failed:\n{script}\n{diagnostics}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Number of connected clusters in a list.
fn connected(list: &Value) -> usize {
    let items = list.get("items").and_then(Value::as_array).into_iter().flatten();
    items.filter(|cluster| cluster.get("connected") == Some(&Value::Bool(true))).count()
}

/// A field of a JSON object as text, empty when absent.
fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// The destinations of an application.
fn destinations(application: &Value) -> impl Iterator<Item = &Value> {
    application.get("destinations").and_then(Value::as_array).into_iter().flatten()
}

/// Returns whether a destination is Synced and runs this version.
fn runs(destination: &Value, version: &str) -> bool {
    let running = destination.pointer("/running/version").and_then(Value::as_str);
    text(destination, "phase") == "Synced" && running == Some(version)
}

fn data_field<'a>(config: &'a ConfigMap, field: &str) -> Option<&'a str> {
    config.data.as_ref()?.get(field).map(String::as_str)
}

async fn image(site: &RealSite) -> anyhow::Result<String> {
    let namespace = format!("app-{}", site.name);
    let deployments: Api<Deployment> = Api::namespaced(site.cluster.client().await?, &namespace);
    let pod = deployments.get("web-app").await?.spec.template.spec.context("no pod")?;
    match pod.containers.into_iter().next().and_then(|container| container.image) {
        Some(image) => Ok(image),
        None => bail!("{}: the Deployment has no image", site.name),
    }
}

fn short_commit(commit: &str) -> &str {
    commit.get(..7).unwrap_or(commit)
}

fn short_image(image: &str) -> &str {
    image.get(..image.find("@sha256:").map_or(image.len(), |at| at + 20)).unwrap_or(image)
}
