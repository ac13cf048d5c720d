//! Workload W, the repository of every benchmark: thirty manifests, six each of Deployment, Service,
//! ConfigMap, ServiceAccount and HorizontalPodAutoscaler.
//!
//! Real files in a real repository, signed by the real `attest run`; only their content is synthetic.
//! Change C1 is a release of W: the six Deployments get another image tag.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;
use attest_common::basics::ids::Name;
use attest_common::basics::terms::{Mode, Role};
use attest_common::trust::policy::{
    Entry, HubSpec, KeySpec, KindsSpec, RemoveSpec, RollbackSpec, Spec,
};
use serde_json::Value;

/// Environment that W is signed for.
pub const ENVIRONMENT: &str = "bench";
/// Services in the workload; each has one object of every kind.
pub const SERVICES: usize = 6;
/// Objects in the workload.
pub const OBJECTS: usize = SERVICES * 5;

/// Writes W into `repository`: `k8s/`, `attest.yaml` and the sample's build, test and scan steps.
///
/// # Errors
/// When a file cannot be written or the sample is missing.
pub fn write(repository: &Path, repository_url: &str, environments: &[&str]) -> anyhow::Result<()> {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("sample/web-app");
    copy_tree(&sample, repository, &["k8s", "attest.yaml", "out"])?;
    std::fs::create_dir_all(repository.join("k8s"))?;
    for index in 0..SERVICES {
        let file = repository.join(format!("k8s/service-{index}.yaml"));
        std::fs::write(&file, service(index))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    std::fs::write(repository.join("attest.yaml"), recipe(repository_url, environments))?;
    Ok(())
}

/// Returns the Deployments of W in `repository`.
///
/// # Errors
/// When a file cannot be read.
pub fn deployments(repository: &Path) -> anyhow::Result<Vec<Value>> {
    let mut deployments = Vec::new();
    for index in 0..SERVICES {
        let name = format!("k8s/service-{index}.yaml");
        let bytes = std::fs::read(repository.join(&name))?;
        let objects = attest_supply::yaml::read(&name, &bytes, &mut Vec::new())?;
        deployments.extend(objects.into_iter().filter(|object| object["kind"] == "Deployment"));
    }
    Ok(deployments)
}

/// A policy that allows workload W from any repository.
///
/// # Errors
/// Never for these names.
pub fn policy_spec(ci_key_pem: &str, hub_key_pem: &str, ca_pin: &str) -> anyhow::Result<Spec> {
    let any_value = vec!["*".to_owned()];
    Ok(Spec {
        cluster_name: Some(Name::new(ENVIRONMENT)?),
        kube_system_uid: Some("simulated".to_owned()),
        environment: Name::new(ENVIRONMENT)?,
        hub: HubSpec { keys: vec![hub_key_pem.to_owned()], ca_pins: vec![ca_pin.to_owned()] },
        keys: vec![KeySpec {
            name: "ci".to_owned(),
            public_key: ci_key_pem.to_owned(),
            roles: Role::ALL.to_vec(),
            environments: vec![Name::new(ENVIRONMENT)?],
            builder_ids: None,
        }],
        applications: vec![Entry {
            entry: None,
            names: any_value.clone(),
            repos: any_value.clone(),
            namespaces: any_value,
            kinds: KindsSpec::default(),
            minimum_mode: Mode::Strict,
            required_attestations: ["build", "test", "security-scan"].map(String::from).to_vec(),
            keys: None,
            rollback: RollbackSpec::default(),
            remove: RemoveSpec::default(),
            adopt: false,
            max_namespaces: None,
            max_scan_age_hours: None,
        }],
    })
}

fn recipe(repository_url: &str, environments: &[&str]) -> String {
    let mut text = format!(
        "application: workload\nrepository: {repository_url}\nsourceRoot: k8s\nsteps:\n\
         - {{name: build, run: ./build.sh, result: {{format: oci-layout, path: out/image}}}}\n\
         - {{name: test, run: ./test.sh, result: {{format: junit, path: out/junit.xml}}}}\n\
         - {{name: security-scan, run: ./scan.sh, result: {{format: vulns-v0.2, path: out/scan.json}}}}\n\
         images:\n- {{name: myapp, newTag: \"${{TAG}}\", from: build}}\nrenders:\n"
    );
    for environment in environments {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "- {{name: {environment}, path: k8s, environments: [{environment}], \
             namespace: {{mode: default-only, pattern: \"workload*\"}}}}"
        );
    }
    text.push_str("release: {version: \"${TAG}\", counter: unix-seconds, notAfter: 720h}\n");
    text
}

fn service(index: usize) -> String {
    let name = format!("service-{index}");
    let environment: String = (0..8)
        .map(|n| format!("        - name: SETTING_{n}\n          value: \"value {n} of {name}\"\n"))
        .collect();
    let settings: String = (0..24)
        .map(|n| format!("  setting-{n:02}: \"a value of some length for {name}\"\n"))
        .collect();
    include_str!("../sample/workload.yaml")
        .replace("NAME", &name)
        .replace("ENVIRONMENT\n", &environment)
        .replace("SETTINGS\n", &settings)
}

/// Copies a directory with file modes, except the top-level names in `without`.
///
/// # Errors
/// When a file cannot be read or written.
pub fn copy_tree(from: &Path, to: &Path, without: &[&str]) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    let entries =
        std::fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))?;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        if without.iter().any(|left_out| name == *left_out) {
            continue;
        }
        let target = to.join(&name);
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target, &[])?;
        } else {
            std::fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workload_is_thirty_objects_that_a_renderer_accepts() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), "https://git.example/company/workload", &["bench"]).unwrap();
        let mut objects = Vec::new();
        let mut bytes = 0;
        for index in 0..SERVICES {
            let text =
                std::fs::read(directory.path().join(format!("k8s/service-{index}.yaml"))).unwrap();
            bytes += text.len();
            let read = attest_supply::yaml::read("service.yaml", &text, &mut Vec::new()).unwrap();
            objects.extend(read);
        }

        assert_eq!(objects.len(), OBJECTS);
        assert!((20_000..40_000).contains(&bytes), "{bytes} bytes");
        attest_common::documents::manifest::write(objects).unwrap();
        assert_eq!(deployments(directory.path()).unwrap().len(), SERVICES);
    }
}
