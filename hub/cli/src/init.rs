//! `attest init`: prepares a repository for `attest run`. Existing files are never changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use attest_common::basics::ids::Name;
use attest_supply::recipe::declared_source_root;
use attest_supply::source::{RECIPE_FILE, RepositoryUrl, WorkTree};

use crate::human::quoted;
use crate::printer::Printer;

/// The environments of a new `attest.yaml`, each of which needs a trusted key.
const ENVIRONMENTS: [&str; 2] = ["staging", "production"];
/// The public key file that `attest key gen` creates in the configuration directory.
const PUBLIC_KEY_FILE: &str = "signing.key.pub";

#[derive(Debug, clap::Args)]
pub(crate) struct InitArgs {
    /// Directory in the repository
    #[arg(default_value = ".")]
    path: PathBuf,
    /// Name of the application; the name of the directory by default
    #[arg(long)]
    application: Option<Name>,
    /// URL of the repository; the URL of the remote `origin` by default
    #[arg(long, value_name = "URL")]
    repository: Option<String>,
}

/// A file to create if it does not exist.
struct Scaffold {
    path: &'static str,
    content: String,
}

pub(crate) fn run(args: InitArgs, printer: &Printer) -> anyhow::Result<()> {
    let InitArgs { path, application, repository } = args;
    let work_tree = WorkTree::discover(&path, declared_source_root).ok();
    let root = match &work_tree {
        Some(found) => found.root().to_owned(),
        None => path
            .canonicalize()
            .with_context(|| format!("failed to open directory {}", path.display()))?,
    };
    let application = match application {
        Some(name) => name,
        None => directory_name(&root)?,
    };
    let repository = match repository {
        Some(url) => {
            RepositoryUrl::normalise(&url)?;
            url
        }
        None => origin_url(&root)
            .unwrap_or_else(|| format!("https://git.example/company/{application}")),
    };
    // A repository that contains manifests keeps their layout.
    let is_flat = !root.join("k8s/base").exists() && has_manifests(&root.join("k8s"));
    let mut scaffolds = vec![
        Scaffold { path: ".attest/receipts/.gitkeep", content: String::new() },
        Scaffold { path: ".attest/keys/.gitkeep", content: String::new() },
        Scaffold { path: RECIPE_FILE, content: recipe_text(&application, &repository, is_flat) },
    ];
    if !is_flat {
        scaffolds.extend(kustomize_scaffolds(&application));
    }
    for Scaffold { path, content } in &scaffolds {
        let written = create_file(&root, path, content)?;
        printer.line(&format!("{path} {}", if written { "created" } else { "unchanged" }));
    }
    let git = if work_tree.is_none() { "git init && " } else { "" };
    let public_key = quoted(&crate::context::directory()?.join(PUBLIC_KEY_FILE));
    printer.note(&format!(
        "next:\n  edit {RECIPE_FILE}: steps, images and renders\n  {git}git add . && git commit -m \"Add attest\"\n  \
         attest key gen\n  attest trust key add ci {public_key} --environment {}\n  \
         export GITHUB_SHA=$(git rev-parse HEAD) GITHUB_REF_NAME=main   # set by CI\n  \
         attest run --sign --verify",
        ENVIRONMENTS.join(",")
    ));
    Ok(())
}

fn directory_name(root: &Path) -> anyhow::Result<Name> {
    let name = root.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    Name::new(name.to_ascii_lowercase()).with_context(|| {
        format!("directory name {name:?} is not a valid application name; pass --application")
    })
}

fn origin_url(root: &Path) -> Option<String> {
    let output = Command::new("git")
        .arg("-C")
        .arg(root)
        .args(["remote", "get-url", "origin"])
        .output()
        .ok()?;
    let url = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    RepositoryUrl::normalise(&url).ok().map(|_| url)
}

fn has_manifests(directory: &Path) -> bool {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).any(|path| {
        path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
    })
}

/// Creates a file. Returns false if it already exists.
fn create_file(root: &Path, path: &str, content: &str) -> anyhow::Result<bool> {
    let place = root.join(path);
    let directory = place.parent().unwrap_or(root);
    fs::create_dir_all(directory)
        .with_context(|| format!("failed to create directory {}", directory.display()))?;
    let opened = fs::OpenOptions::new().write(true).create_new(true).open(&place);
    match opened {
        Ok(mut file) => {
            use std::io::Write as _;
            file.write_all(content.as_bytes())
                .with_context(|| format!("failed to write {}", place.display()))?;
            Ok(true)
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => bail!("failed to write {}: {error}", place.display()),
    }
}

fn recipe_text(application: &Name, repository: &str, is_flat: bool) -> String {
    let renders = if is_flat {
        format!(
            "- {{name: all, path: k8s, environments: [staging, production], \
             namespace: {{mode: default-only, pattern: \"{application}-*\"}}}}\n"
        )
    } else {
        format!(
            "- {{name: staging, path: k8s/overlays/staging, environments: [staging], \
             namespace: {{mode: default-only, pattern: \"{application}-*\"}}}}\n\
             - {{name: production, path: k8s/overlays/production, environments: [production], \
             namespace: {{mode: fixed, value: {application}-production}}}}\n"
        )
    };
    format!(
        "# Steps, images and renders of `attest run`.\n\
         application: {application}\n\
         repository: {repository}\n\
         # The directory that contains everything a rendering reads.\n\
         sourceRoot: k8s\n\
         # Your own commands, run in this order; each writes its result to `path`.\n\
         # build: oci-layout or buildkit-metadata; test: junit or exit-code;\n\
         # security-scan: vulns-v0.2, grype-json or trivy-json.\n\
         steps:\n\
         - {{name: build, run: ./build.sh, result: {{format: oci-layout, path: out/image}}}}\n\
         - {{name: test, run: ./test.sh, result: {{format: junit, path: out/junit.xml}}}}\n\
         - {{name: security-scan, run: ./scan.sh, result: {{format: vulns-v0.2, path: out/scan.json}}}}\n\
         # The image changes of a release, like kustomize's `images`; `from` is the step that determines the digest.\n\
         images:\n\
         - {{name: {application}, newTag: \"${{GITHUB_SHA}}\", from: build}}\n\
         renders:\n\
         {renders}\
         release: {{version: \"${{GITHUB_REF_NAME}}\", counter: unix-seconds, notAfter: 720h}}\n"
    )
}

fn kustomize_scaffolds(application: &Name) -> Vec<Scaffold> {
    vec![
        Scaffold {
            path: "k8s/base/kustomization.yaml",
            content:
                "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n  \
                      - deployment.yaml\n  - service.yaml\n"
                    .to_owned(),
        },
        Scaffold {
            path: "k8s/base/deployment.yaml",
            content: format!(
                "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: {application}\n  labels:\n    \
                 app: {application}\nspec:\n  replicas: 1\n  selector:\n    matchLabels:\n      \
                 app: {application}\n  template:\n    metadata:\n      labels:\n        app: {application}\n    \
                 spec:\n      securityContext:\n        runAsNonRoot: true\n        runAsUser: 65534\n      \
                 containers:\n        - name: {application}\n          image: {application}:unreleased\n          \
                 ports:\n            - name: http\n              containerPort: 8080\n          \
                 securityContext:\n            allowPrivilegeEscalation: false\n            \
                 readOnlyRootFilesystem: true\n            capabilities:\n              drop:\n                \
                 - ALL\n"
            ),
        },
        Scaffold {
            path: "k8s/base/service.yaml",
            content: format!(
                "apiVersion: v1\nkind: Service\nmetadata:\n  name: {application}\n  labels:\n    \
                 app: {application}\nspec:\n  selector:\n    app: {application}\n  ports:\n    - name: http\n      \
                 port: 80\n      targetPort: http\n"
            ),
        },
        Scaffold {
            path: "k8s/overlays/staging/kustomization.yaml",
            content: overlay_text(application, "staging", 1),
        },
        Scaffold {
            path: "k8s/overlays/production/kustomization.yaml",
            content: overlay_text(application, "production", 2),
        },
    ]
}

fn overlay_text(application: &Name, environment: &str, replicas: u32) -> String {
    format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n  - ../../base\n\
         labels:\n  - pairs:\n      environment: {environment}\n    includeSelectors: false\n\
         replicas:\n  - name: {application}\n    count: {replicas}\n"
    )
}
