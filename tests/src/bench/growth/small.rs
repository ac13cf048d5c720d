//! Small applications: three objects each, in an https repository of their own, signed by the real `attest run`.
//! Their steps copy the results of W's steps, which would take most of the time.

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use serde_json::{Value, json};

use crate::fleet::Repository;
use crate::git_server::GitServer;
use crate::testbed::Testbed;
use crate::workload::ENVIRONMENT;

/// Objects of a small application.
pub const OBJECTS: usize = 3;
/// Threads that sign.
const SIGNERS: usize = 4;
/// Image tag of the first release.
const FIRST_TAG: &str = "v0";

/// Signed repositories, by index, and their server.
#[derive(Debug)]
pub struct SmallApplications {
    applications: Vec<SmallApplication>,
    server: GitServer,
}

/// One application.
#[derive(Debug)]
pub struct SmallApplication {
    pub name: String,
    pub repository: Repository,
    /// Address of the repository at the server.
    pub url: String,
}

impl SmallApplications {
    /// Signs and pushes the first release of `count` applications. Blocks.
    ///
    /// # Errors
    /// When Git or `attest run` fails.
    pub fn sign(testbed: &Testbed, count: usize) -> anyhow::Result<Self> {
        let template = testbed.workload()?;
        testbed.release(&template, FIRST_TAG)?;
        let results = template.tree().join("out");
        let names: Vec<String> = (0..count).map(|n| format!("app-{n:05}")).collect();
        let parts = names.chunks(count.div_ceil(SIGNERS).max(1));
        let directory = testbed.directory().join("repositories");
        let server = GitServer::serve(&directory)?;
        let place = (directory.as_path(), &server);
        let mut applications = Vec::new();
        std::thread::scope(|scope| {
            let signers: Vec<_> = parts
                .map(|part| scope.spawn(|| sign_part(testbed, place, &results, part)))
                .collect();
            for signer in signers {
                applications.extend(signer.join().map_err(|_| anyhow!("a signer panicked"))??);
            }
            anyhow::Ok(())
        })?;
        Ok(Self { applications, server })
    }

    /// Every application.
    pub fn all(&self) -> &[SmallApplication] {
        &self.applications
    }

    /// Adds the repository of one to the hub.
    ///
    /// # Errors
    /// When the hub refuses it.
    pub async fn add_repository(
        &self,
        testbed: &Testbed,
        application: &SmallApplication,
    ) -> anyhow::Result<()> {
        let request =
            json!({"url": application.url, "ca": self.server.ca_pem(), "allowLoopback": true});
        let _: Value = testbed.api.call("PUT", "/v1/repositories", Some(&request)).await?;
        Ok(())
    }
}

fn sign_part(
    testbed: &Testbed,
    (directory, server): (&Path, &GitServer),
    results: &Path,
    names: &[String],
) -> anyhow::Result<Vec<SmallApplication>> {
    let sign = |name: &String| {
        let repository = Repository::create(&directory.join(name))?;
        let url = server.url(repository.origin())?;
        write(&repository, name, &url, results)?;
        testbed.release(&repository, FIRST_TAG)?;
        anyhow::Ok(SmallApplication { name: name.clone(), repository, url })
    };
    names.iter().map(sign).collect()
}

fn write(repository: &Repository, name: &str, url: &str, results: &Path) -> anyhow::Result<()> {
    let files: [(PathBuf, String); 3] = [
        ("attest.yaml".into(), recipe(name, url, results)),
        (".gitignore".into(), "out/\n".to_owned()),
        ("k8s/objects.yaml".into(), objects(name)),
    ];
    for (path, text) in files {
        let path = repository.tree().join(path);
        std::fs::create_dir_all(path.parent().unwrap_or_else(|| repository.tree()))?;
        std::fs::write(path, text)?;
    }
    Ok(())
}

fn recipe(name: &str, url: &str, results: &Path) -> String {
    let results = results.display();
    let copy =
        |what: &str| format!("mkdir -p out && rm -rf out/{what} && cp -R {results}/{what} out/");
    let [build, test, scan] = [copy("image"), copy("junit.xml"), copy("scan.json")];
    format!(
        "application: {name}\nrepository: {url}\nsourceRoot: k8s\nsteps:\n\
         - {{name: build, run: \"{build}\", result: {{format: oci-layout, path: out/image}}}}\n\
         - {{name: test, run: \"{test}\", result: {{format: junit, path: out/junit.xml}}}}\n\
         - {{name: security-scan, run: \"{scan}\", result: {{format: vulns-v0.2, path: out/scan.json}}}}\n\
         images:\n- {{name: myapp, newTag: \"${{TAG}}\", from: build}}\nrenders:\n\
         - {{name: {ENVIRONMENT}, path: k8s, environments: [{ENVIRONMENT}], \
         namespace: {{mode: default-only, pattern: \"app-*\"}}}}\n\
         release: {{version: \"${{TAG}}\", counter: unix-seconds, notAfter: 720h}}\n"
    )
}

fn objects(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{a: one, b: two}}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{selector: {{app: {name}}}, ports: [{{port: 80}}]}}\n---\n\
         apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\nspec:\n  selector: {{matchLabels: {{app: {name}}}}}\n  \
         template:\n    metadata: {{labels: {{app: {name}}}}}\n    spec:\n      containers:\n      - name: app\n        image: myapp:v0\n"
    )
}
