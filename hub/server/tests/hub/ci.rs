//! What CI does, in short: renders, signs receipts and a release statement, commits. Real Git.

use std::path::{Path, PathBuf};
use std::process::Command;

use attest_common::basics::envelope::{self, STATEMENT_TYPE};
use attest_common::basics::ids::{Digest, Name, Timestamp};
use attest_common::basics::keys::PrivateKey;
use attest_common::basics::terms::BUILDER_ID;
use attest_common::documents::manifest;
use attest_common::documents::receipt::{
    BUILD_TYPE, PROVENANCE_TYPE, TEST_RESULT_TYPE, VULNS_TYPE,
};
use attest_common::documents::release::{
    Evidence, ImageDigest, NamespaceRule, RELEASE_TYPE, RENDERING_TYPE, Release, ReleaseSource,
    Render, Renderer, Target,
};
use attest_common::documents::statement::{Statement, Subject};
use attest_supply::render::{Kustomize, RenderWorker, render};
use attest_supply::source::{RepositoryUrl, Tree};
use serde_json::{Value, json};

pub(crate) struct Repository {
    pub(crate) path: PathBuf,
    pub(crate) application: String,
}

impl Repository {
    pub(crate) fn create(directory: &Path, application: &str) -> Self {
        Self::create_in_format("sha1", directory, application)
    }

    /// Creates a repository whose objects are named by this hash function.
    pub(crate) fn create_in_format(format: &str, directory: &Path, application: &str) -> Self {
        let path = directory.join(application);
        std::fs::create_dir_all(path.join("k8s")).unwrap();
        let this = Self { path, application: application.to_owned() };
        this.git(&["init", "-q", "-b", "main", &format!("--object-format={format}")]);
        let recipe = format!(
            "application: {application}\nrepository: {}\nsourceRoot: k8s\nrenders:\n\
             - {{name: staging, path: k8s, environments: [staging], namespace: {{mode: default-only, pattern: \"app-*\"}}}}\n\
             release: {{version: v1, counter: unix-seconds, notAfter: 720h}}\n",
            this.url()
        );
        this.write("attest.yaml", recipe.as_bytes());
        this
    }

    pub(crate) fn url(&self) -> String {
        format!("file://{}", self.path.display())
    }

    pub(crate) fn git(&self, arguments: &[&str]) -> String {
        let output = Command::new("git")
            .args(["-c", "user.name=ci", "-c", "user.email=ci@example.com"])
            .arg("-C")
            .arg(&self.path)
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub(crate) fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.path.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    pub(crate) fn commit(&self, message: &str) -> String {
        self.git(&["add", "-A", "-f"]);
        self.git(&["commit", "-q", "--allow-empty", "-m", message]);
        self.git(&["rev-parse", "HEAD"])
    }

    pub(crate) fn set_image(&self, tag: &str) {
        let text = format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\n\
             spec: {{template: {{spec: {{containers: [{{name: web, image: \"myapp:{tag}\"}}]}}}}}}\n"
        );
        self.write("k8s/deployment.yaml", text.as_bytes());
    }

    /// Writes image `tag`, signs it as release `counter`, and commits both.
    pub(crate) fn release(&self, key: &PrivateKey, tag: &str, counter: u64) -> String {
        self.set_image(tag);
        self.sign(key, tag, counter);
        self.commit(&format!("release {counter}"))
    }

    pub(crate) fn sign(&self, key: &PrivateKey, tag: &str, counter: u64) {
        let text = std::fs::read(self.path.join("k8s/deployment.yaml")).unwrap();
        let tree = Tree::from_files([("k8s/deployment.yaml", text)]);
        let worker = RenderWorker::at(env!("CARGO_BIN_EXE_attest-hub").into());
        let rendered = render(&tree, "k8s", &[], &Kustomize::none().with_worker(worker)).unwrap();
        let content = rendered.rendering;
        let digest = Digest::of(&content);
        let image = Digest::of(tag.as_bytes());
        let repo = RepositoryUrl::normalise(&self.url()).unwrap();
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let subject = || Subject::new("staging", digest);
        let receipts = [
            (
                "build",
                PROVENANCE_TYPE,
                vec![subject()],
                json!({
                    "buildDefinition": {"buildType": BUILD_TYPE, "externalParameters": {},
                        "resolvedDependencies": [{"uri": repo, "digest": {"gitCommit": commit}}]},
                    "runDetails": {"builder": {"id": BUILDER_ID}}
                }),
            ),
            ("test", TEST_RESULT_TYPE, vec![subject()], json!({"result": "PASSED"})),
            (
                "security-scan",
                VULNS_TYPE,
                vec![Subject::new("myapp", image)],
                json!({
                    "scanner": {"result": []},
                    "metadata": {"scanFinishedOn": Timestamp::now().to_string()}
                }),
            ),
        ];
        let mut evidence = Vec::new();
        let at = format!(".attest/receipts/{}/{counter}", self.application);
        for (name, predicate_type, subjects, predicate) in receipts {
            let payload = Statement::new(subjects, predicate_type, predicate).to_bytes();
            let receipt = envelope::id_of(STATEMENT_TYPE, &payload);
            let sealed = envelope::seal(STATEMENT_TYPE, &payload, &[key]);
            self.write(&format!("{at}/{name}.dsse.json"), &sealed);
            evidence.push(Evidence { attestation: name.to_owned(), receipt });
        }
        let release = Release {
            application: Name::new(&self.application).unwrap(),
            version: tag.to_owned(),
            counter,
            not_after: "2099-01-01T00:00:00Z".parse().unwrap(),
            source: ReleaseSource {
                repo,
                git_commit: commit.to_owned(),
                source_root: "k8s".to_owned(),
                git_tree: commit.to_owned(),
            },
            renderer: Renderer { name: "yaml".to_owned(), version: "1".to_owned() },
            evidence,
            renders: vec![Render {
                name: "staging".to_owned(),
                subject: "staging".to_owned(),
                media_type: RENDERING_TYPE.to_owned(),
                size: content.len() as u64,
                objects: manifest::read(&content).unwrap().len() as u64,
                target: Target { environments: vec!["staging".to_owned()], clusters: None },
                namespace: NamespaceRule::DefaultOnly { pattern: "app-*".to_owned() },
                images: vec![ImageDigest { reference: format!("myapp:{tag}"), digest: image }],
                mutations: vec!["image-pin".to_owned()],
            }],
        };
        let predicate: Value = serde_json::to_value(&release).unwrap();
        let statement = Statement::new(vec![subject()], RELEASE_TYPE, predicate);
        let sealed = envelope::seal(STATEMENT_TYPE, &statement.to_bytes(), &[key]);
        self.write(&format!("{at}/release.dsse.json"), &sealed);
        self.write(&format!(".attest/rendered/{}/staging.jsonl", self.application), &content);
    }

    /// Signs release `from` once more as `counter`: the same content by the same receipts. The envelope.
    pub(crate) fn sign_again(&self, key: &PrivateKey, from: u64, counter: u64) -> Vec<u8> {
        let at = format!(".attest/receipts/{}", self.application);
        let file = |counter| format!("{at}/{counter}/release.dsse.json");
        let signed = std::fs::read(self.path.join(file(from))).unwrap();
        let (payload, _) = envelope::peek(&signed, STATEMENT_TYPE).unwrap();
        let mut statement: Value = serde_json::from_slice(&payload).unwrap();
        statement["predicate"]["counter"] = json!(counter);
        let payload = serde_json::to_vec(&statement).unwrap();
        let sealed = envelope::seal(STATEMENT_TYPE, &payload, &[key]);
        self.write(&file(counter), &sealed);
        self.commit(&format!("release {counter}"));
        sealed
    }

    pub(crate) fn manifest(&self, cluster: Option<&str>) -> Value {
        let mut destination = json!({"namespace": "app-staging"});
        if let Some(cluster) = cluster {
            destination["cluster"] = json!(cluster);
        }
        json!({
            "apiVersion": "attest.continuu.ms/v1", "kind": "AttestApplication",
            "metadata": {"name": self.application},
            "spec": {"source": {"repoUrl": self.url(), "path": "k8s"}, "destination": destination}
        })
    }
}
