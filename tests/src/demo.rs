//! The main job, shown: a hub, two clusters, one signed commit, and what a hub cannot do.
//!
//! It prints what it does, and as its results what an API server or the hub said just before; a step
//! that does not come true ends it with an error. [`Sabotage`] breaks one step on purpose, for the test that
//! proves the demo can fail.

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
use crate::evil_hub;
use crate::fleet::program;
use crate::real::{Agents, RealFleet, RealSite};
use crate::wait::until;

const SYNCED_WITHIN: Duration = Duration::from_secs(40);
const REFUSED_WITHIN: Duration = Duration::from_secs(20);
const HEALED_WITHIN: Duration = Duration::from_secs(10);
const PATH_OF_A_TERMINAL: &str = "/usr/local/bin:/usr/bin:/bin";
const APPLICATION: &str = include_str!("../sample/application.yaml");

/// A step to break on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Sabotage {
    /// A cluster is shut out once it is registered.
    Clusters,
    /// CI's test step fails.
    Sign,
    /// The commit is edited after signing.
    Deploy,
    /// CI signs what should have been refused.
    Unsigned,
    /// The taken hub sends what CI signed instead of a changed byte.
    Tampered,
    /// The spoke is stopped before the hand edit.
    Heal,
    /// Somebody writes with a spoke's credential.
    Audit,
}

/// What becomes of hub and clusters after the last step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// They stay, for somebody to go on with the commands that are shown.
    Stay,
    /// They go; the commands are run here, and their answers shown.
    Go,
}

/// A demo in progress.
#[derive(Debug)]
pub struct Demo<'a> {
    fleet: RealFleet,
    sabotage: Option<Sabotage>,
    started: Instant,
    print: &'a fn(&str),
    /// The commit that CI signed and pushed.
    pushed: String,
}

/// Runs every step. `None` without Kubernetes programs.
///
/// # Errors
/// When a step does not come true.
pub async fn run(
    sabotage: Option<Sabotage>,
    ending: Ending,
    print: &fn(&str),
) -> anyhow::Result<Option<RealFleet>> {
    let started = Instant::now();
    print("1. Two clusters, a hub, and a spoke in each cluster");
    let clusters = [("staging", "staging"), ("production", "production")];
    let mut tell = |line: String| print(&format!("   {line}"));
    let Some(fleet) = RealFleet::start_with(&clusters, Agents::External, &mut tell).await? else {
        return Ok(None);
    };
    let mut demo = Demo { fleet, sabotage, started, print, pushed: String::new() };
    demo.show_clusters().await?;
    demo.sign()?;
    demo.deploy().await?;
    demo.refuse_unsigned().await?;
    demo.refuse_tampered().await?;
    demo.heal().await?;
    demo.audit().await?;
    demo.go_on(ending)?;
    Ok(Some(demo.fleet))
}

impl Demo<'_> {
    fn say(&self, line: &str) {
        (self.print)(&format!("   {line}"));
    }

    fn step(&self, title: &str) {
        (self.print)(&format!("\n{title}   [{:.0} s]", self.started.elapsed().as_secs_f64()));
    }

    fn show(&self, arguments: &[&str]) -> anyhow::Result<()> {
        (self.print)(&format!("   $ attest {}", arguments.join(" ")));
        for line in self.fleet.operator().attest(arguments)?.lines() {
            self.say(line);
        }
        Ok(())
    }

    async fn show_clusters(&self) -> anyhow::Result<()> {
        if self.sabotage == Some(Sabotage::Clusters) {
            let revoke =
                ["gitops", "cluster", "revoke", "production", "-y", "--reason", "sabotage"];
            self.fleet.operator().attest(&revoke)?;
            let gone = || async {
                let list = self.fleet.operator().json(&["gitops", "cluster", "list"])?;
                Ok((connected(&list) < 2).then_some(()))
            };
            until("the hub to miss the spoke", REFUSED_WITHIN, gone).await?;
        }
        self.show(&["gitops", "cluster", "list"])?;
        let list = self.fleet.operator().json(&["gitops", "cluster", "list"])?;
        ensure!(connected(&list) == 2, "not both clusters are connected: {list}");
        Ok(())
    }

    fn sign(&mut self) -> anyhow::Result<()> {
        self.step("2. CI builds, tests, scans and signs");
        self.fleet.write_sample()?;
        let tree = self.fleet.repository().tree();
        if self.sabotage == Some(Sabotage::Sign) {
            std::fs::write(tree.join("test.sh"), "#!/bin/sh\nexit 1\n")?;
        }
        (self.print)("   $ attest run --sign --verify && git commit && git push");
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
        self.step("3. The hub reads the commit, both spokes verify it again and apply it");
        if self.sabotage == Some(Sabotage::Deploy) {
            self.edit_image("v1", "edited")?;
            self.fleet.repository().commit_and_push("Edited after signing")?;
        }
        let manifest = self.fleet.directory().join("application.yaml");
        let text =
            APPLICATION.replace("https://github.com/company/app", &self.fleet.repository().url());
        std::fs::write(&manifest, text)?;
        self.show(&["gitops", "app", "apply", "-f", &manifest.display().to_string()])?;
        self.fleet.wait_synced("web-app", SYNCED_WITHIN).await?;
        self.show(&["gitops", "app", "get", "web-app"])?;
        let seen: Value = self.fleet.api().call("GET", "/v1/applications/web-app", None).await?;
        for destination in seen.get("destinations").and_then(Value::as_array).into_iter().flatten()
        {
            let signers = destination.pointer("/running/signers").and_then(Value::as_array);
            ensure!(
                signers.is_some_and(|s| !s.is_empty()),
                "a destination names no signer: {destination}"
            );
        }
        let revision = seen.get("revision").and_then(Value::as_str).unwrap_or_default();
        ensure!(revision == self.pushed, "the hub read {revision}, not {}", self.pushed);
        self.say(&format!("the hub has read commit {}, the one that was pushed", short(revision)));
        for site in self.fleet.sites() {
            let image = image(site).await?;
            ensure!(image.contains(":v1@sha256:"), "{}: {image}", site.name);
            self.say(&format!("{}: the API server runs {image}", site.name));
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
        self.step("4. A commit that CI did not sign");
        let commit = if self.sabotage == Some(Sabotage::Unsigned) {
            self.fleet.release("backdoor")?
        } else {
            self.edit_image("v1", "backdoor")?;
            self.fleet.repository().commit_and_push("Quick fix")?
        };
        (self.print)(
            "   $ sed -i 's/myapp:v1/myapp:backdoor/' k8s/base/deployment.yaml && git commit && git push",
        );
        let _: Value = self.fleet.api().call("POST", "/v1/applications/web-app/sync", None).await?;
        let refused = until("the hub to refuse the commit", REFUSED_WITHIN, || async {
            let seen: Value =
                self.fleet.api().call("GET", "/v1/applications/web-app", None).await?;
            let at_head = seen.get("revision").and_then(Value::as_str) == Some(commit.as_str());
            let destination = seen.pointer("/destinations/0").cloned().unwrap_or_default();
            Ok((at_head && destination.get("phase") == Some(&json!("AwaitingReceipts")))
                .then_some(destination))
        })
        .await?;
        let text =
            |field: &str| refused.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        ensure!(text("message").contains("myapp:backdoor"), "the hub does not say why: {refused}");
        self.say(&format!("hub: {}: {}: {}", short(&commit), text("reason"), text("message")));
        self.still_v1().await?;
        self.fleet.repository().git(&["revert", "--no-edit", "HEAD"])?;
        self.fleet.repository().git(&["push", "-q", "origin", "HEAD:main"])?;
        Ok(())
    }

    async fn refuse_tampered(&mut self) -> anyhow::Result<()> {
        self.step("5. The hub is taken: its key, its certificate, its directory");
        let honest = self.sabotage == Some(Sabotage::Tampered);
        self.fleet.hub().process().kill();
        let taken = evil_hub::tampered_plan(&mut self.fleet, "production", honest).await?;
        self.say(&taken.told);
        let site =
            self.fleet.sites().iter().find(|s| s.name == "production").context("production")?;
        let kubeconfig = site.cluster.kubeconfig().display().to_string();
        let refusal = until("the spoke to refuse", REFUSED_WITHIN, || async {
            let status =
                self.fleet.operator().json(&["spoke", "status", "--kubeconfig", &kubeconfig])?;
            let refusals =
                status.get("refusals").and_then(Value::as_array).cloned().unwrap_or_default();
            Ok(refusals.into_iter().find(|r| r.get("sequence") == Some(&json!(taken.sequence))))
        })
        .await?;
        let text =
            |field: &str| refusal.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        ensure!(text("reason") == "ContentDigest", "refused, but as {}", text("reason"));
        self.say(&format!("production's spoke: {}: {}", text("reason"), text("message")));
        self.still_v1().await?;
        taken.hub.end().await?;
        self.fleet.hub().restart().await?;
        let (status, body) = self.fleet.hub().ready().await?;
        ensure!(status == 200, "the honest hub is not ready: {status} {body}");
        self.say(&format!("the honest hub is back: GET /ready says {status} {body}"));
        let shown = until("the honest hub to show it", REFUSED_WITHIN, || async {
            let seen: Value =
                self.fleet.api().call("GET", "/v1/applications/web-app", None).await?;
            let destinations = seen.get("destinations").and_then(Value::as_array).cloned();
            let shown = destinations.into_iter().flatten().find(|shown| {
                shown.get("cluster") == Some(&json!("production"))
                    && shown.get("phase") == Some(&json!("Refused"))
            });
            Ok(shown)
        })
        .await?;
        let of = |field: &str| shown.get(field).and_then(Value::as_str).unwrap_or_default();
        self.say(&format!("and shows production: {} ({})", of("phase"), of("reason")));
        (self.print)("   What was tried stays shown until production admits the next release.");
        Ok(())
    }

    async fn still_v1(&self) -> anyhow::Result<()> {
        for site in self.fleet.sites() {
            let image = image(site).await?;
            ensure!(image.contains(":v1@sha256:"), "{} runs {image}", site.name);
            self.say(&format!("{}: the API server still runs {}", site.name, shorter(&image)));
        }
        Ok(())
    }

    async fn heal(&mut self) -> anyhow::Result<()> {
        self.step("6. Somebody edits a managed object by hand");
        if self.sabotage == Some(Sabotage::Heal) {
            for site in self.fleet.sites_mut() {
                if let Some(spoke) = &site.spoke {
                    spoke.freeze();
                }
            }
        }
        let site =
            self.fleet.sites().iter().find(|s| s.name == "production").context("production")?;
        let configs: Api<ConfigMap> =
            Api::namespaced(site.cluster.client().await?, "app-production");
        let original = configs.get("web-app").await?;
        let (field, value) = original
            .data
            .iter()
            .flatten()
            .next()
            .map(|(field, value)| (field.clone(), value.clone()))
            .context("the ConfigMap is empty")?;
        let edit = Patch::Merge(json!({"data": {&field: "edited by hand"}}));
        let edited = configs.patch("web-app", &PatchParams::default(), &edit).await?;
        let at = Instant::now();
        self.say(&format!(
            "production: {}.data.{field} is now \"{}\"",
            edited.name_any(),
            edited.data.unwrap_or_default().get(&field).cloned().unwrap_or_default()
        ));
        let healed = until("the edit to be undone", HEALED_WITHIN, || async {
            let live = configs.get("web-app").await?;
            Ok((live.data.as_ref().and_then(|d| d.get(&field)) == Some(&value)).then_some(live))
        })
        .await?;
        let back = healed.data.unwrap_or_default().get(&field).cloned().unwrap_or_default();
        self.say(&format!(
            "production: {field} is \"{}\" again after {} ms",
            back.lines().next().unwrap_or_default(),
            at.elapsed().as_millis()
        ));
        Ok(())
    }

    async fn audit(&self) -> anyhow::Result<()> {
        self.step("7. What the API servers' audit logs say of all this");
        if self.sabotage == Some(Sabotage::Audit) {
            self.write_as_the_spoke().await?;
        }
        for site in self.fleet.sites() {
            let objects = site.cluster.audit().spoke_wrote_as_it_should()?;
            ensure!(objects > 0, "{}: no object was written", site.name);
            self.say(&format!(
                "{}: {objects} writes of application objects, each as the application's own account",
                site.name
            ));
        }
        Ok(())
    }

    /// What somebody who has a spoke's credential would try. Returns once the audit log has it.
    async fn write_as_the_spoke(&self) -> anyhow::Result<()> {
        let config = self.fleet.operator().config();
        let home = config.parent().context("no directory")?;
        let kubeconfig = home.join("spokes/production/kubeconfig");
        let kubeconfig = kubeconfig.display().to_string();
        let site =
            self.fleet.sites().iter().find(|s| s.name == "production").context("production")?;
        let kubectl = Binaries::find()?.context("no Kubernetes programs")?;
        let create = ["create", "configmap", "backdoor", "--namespace", "app-production"];
        // That it is forbidden is nothing the log must say: that it was tried is.
        Command::new(kubectl.directory().join("kubectl"))
            .args(["--kubeconfig", &kubeconfig])
            .args(create)
            .output()?;
        let tried =
            || async { Ok(site.cluster.audit().spoke_wrote_as_it_should().is_err().then_some(())) };
        until("the audit log to have it", REFUSED_WITHIN, tried).await
    }

    fn go_on(&self, ending: Ending) -> anyhow::Result<()> {
        self.step("Go on yourself");
        let attest = program("attest")?;
        let attest = attest.parent().context("attest lies nowhere")?.display().to_string();
        let kubernetes = Binaries::find()?.context("no Kubernetes programs")?;
        let settings = [
            format!("export ATTEST_CONFIG={}", self.fleet.operator().config().display()),
            format!("export PATH={attest}:{}:$PATH", kubernetes.directory().display()),
            format!("cd {}", self.fleet.repository().tree().display()),
        ];
        for line in &settings {
            self.say(line);
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
            self.say(command);
            if ending == Ending::Go {
                let script = [settings.join("\n"), command.clone()].join("\n");
                for line in typed(&script)?.lines() {
                    self.say(&format!("  {line}"));
                }
            }
        }
        Ok(())
    }
}

/// What a script says in a terminal that knows nothing of this process.
fn typed(script: &str) -> anyhow::Result<String> {
    let home = std::env::var_os("HOME").unwrap_or_default();
    let output = Command::new("sh")
        .args(["-euc", script])
        .env_clear()
        .envs([("PATH", OsString::from(PATH_OF_A_TERMINAL)), ("HOME", home)])
        .stdin(Stdio::null())
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "a command to go on with fails:\n{script}\n{said}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// How many clusters of a list are connected.
fn connected(list: &Value) -> usize {
    let items = list.get("items").and_then(Value::as_array).into_iter().flatten();
    items.filter(|cluster| cluster.get("connected") == Some(&Value::Bool(true))).count()
}

async fn image(site: &RealSite) -> anyhow::Result<String> {
    let namespace = format!("app-{}", site.name);
    let deployments: Api<Deployment> = Api::namespaced(site.cluster.client().await?, &namespace);
    let pod = deployments.get("web-app").await?.spec.template.spec.context("no pod")?;
    match pod.containers.into_iter().next().and_then(|c| c.image) {
        Some(image) => Ok(image),
        None => bail!("{}: the Deployment has no image", site.name),
    }
}

fn short(commit: &str) -> &str {
    commit.get(..7).unwrap_or(commit)
}

fn shorter(image: &str) -> &str {
    image.get(..image.find("@sha256:").map_or(image.len(), |at| at + 20)).unwrap_or(image)
}
