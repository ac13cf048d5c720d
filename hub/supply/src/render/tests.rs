use std::path::PathBuf;
use std::time::Duration;

use super::kustomize::Runner;
use super::*;

const CONFIG: &str =
    "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {a: \"1\"}\n";
const DEPLOYMENT: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  template:
    spec:
      initContainers: [{name: prepare, image: myapp:v1}]
      containers: [{name: web, image: myapp:v1}, {name: proxy, image: proxy:3}]
";

/// Renders as a worker does, in this process.
fn render(
    tree: &Tree,
    path: &str,
    images: &[ImageChange],
    kustomize: &Kustomize,
) -> Result<Manifests, RenderError> {
    let path = cleaned(path)?;
    let directory = tempfile::tempdir().unwrap();
    let runner = Runner {
        directory: directory.path(),
        through: None,
        memory_bytes_max: kustomize.worker.capacity().process_bytes_max,
        time: kustomize.time,
        output_bytes_max: kustomize.output_bytes_max,
    };
    let files = for_kustomize(tree);
    let product = produce(&files, &path, images, kustomize.program.as_ref(), &runner)?;
    Manifests::from_product(&path, product)
}

fn change(name: &str, tag: &str) -> ImageChange {
    ImageChange {
        name: name.to_owned(),
        new_name: None,
        new_tag: Some(tag.to_owned()),
        digest: None,
        from: None,
    }
}

#[test]
fn plain_files_of_one_directory_become_sorted_lines() {
    let tree = Tree::from_files([
        ("k8s/web.yaml", DEPLOYMENT),
        ("k8s/settings.yml", CONFIG),
        (
            "k8s/list.json",
            r#"{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Secret","metadata":{"name":"s"}}]}"#,
        ),
        ("k8s/README.md", "not: [a manifest"),
        ("k8s/deep/other.yaml", "not: [a manifest"),
    ]);

    let manifests = render(&tree, "./k8s/", &[], &Kustomize::none()).unwrap();

    let keys: Vec<String> =
        manifests.objects.iter().map(|object| object.key().to_string()).collect();
    assert_eq!(keys, ["ConfigMap/settings", "Secret/s", "Deployment.apps/web"]);
    assert_eq!(manifests.renderer.name, "yaml");
    assert_eq!(manifest::read(&manifests.rendering).unwrap(), manifests.objects);
}

#[test]
fn a_declared_image_change_reaches_every_container_and_nothing_else() {
    let tree = Tree::from_files([("k8s/web.yaml", DEPLOYMENT), ("k8s/settings.yaml", CONFIG)]);
    let changes = [change("myapp", "4f2c"), change("missing", "1")];

    let manifests = render(&tree, "k8s", &changes, &Kustomize::none()).unwrap();

    let images: Vec<String> = manifest::images(&manifests.objects).into_iter().collect();
    assert_eq!(images, ["myapp:4f2c", "proxy:3"]);
    assert_eq!(manifests.images_matched, [true, false]);
    let error = all_matched(&changes, &[&manifests]).unwrap_err();
    assert_eq!(error.reason().as_str(), "ImageUnmatched");
    assert!(error.to_string().contains("images[1]: no rendered object uses image \"missing\""));
    let edited = Tree::from_files([
        ("k8s/web.yaml", DEPLOYMENT.replace("myapp:v1", "myapp:4f2c").as_str()),
        ("k8s/settings.yaml", CONFIG),
    ]);
    let committed = render(&edited, "k8s", &[], &Kustomize::none()).unwrap();
    assert_eq!(committed.rendering, manifests.rendering);
}

#[test]
fn a_file_that_holds_no_object_is_named() {
    let refused = |content: &str| {
        let tree = Tree::from_files([("k8s/a.yaml", content)]);
        render(&tree, "k8s", &[], &Kustomize::none()).unwrap_err().to_string()
    };

    assert!(refused("replicas: 3\n").contains("k8s/a.yaml: document 1 is no Kubernetes object"));
    assert!(refused(&format!("{CONFIG}---\n[1]\n")).contains("document 2"));
    assert!(refused("apiVersion: v1\n").contains("`kind` is missing"));
    let server_owned = CONFIG.replace("{name: settings}", "{name: settings, uid: x}");
    assert!(refused(&server_owned).contains("metadata.uid"));
    let empty = render(&Tree::default(), "k8s", &[], &Kustomize::none()).unwrap_err();
    assert_eq!(empty.reason().as_str(), "ManifestsMissing");
}

#[test]
fn the_overlay_of_a_destination_is_its_own_then_the_clusters_then_the_environments() {
    let tree = Tree::from_files([
        ("k8s/overlays/eu-1/kustomization.yaml", ""),
        ("k8s/overlays/staging/a.yaml", ""),
        ("k8s/overlays/empty/README.md", ""),
        ("flat/a.yaml", ""),
    ]);
    let find = |path, own_path, cluster, environment| {
        select(&tree, &Overlay { path, own_path, cluster, environment })
    };

    let overlays = "k8s/overlays";
    assert_eq!(find(overlays, None, Some("eu-1"), Some("staging")).unwrap(), "k8s/overlays/eu-1");
    assert_eq!(find(overlays, None, Some("x"), Some("staging")).unwrap(), "k8s/overlays/staging");
    assert_eq!(find("./flat/", None, Some("x"), Some("y")).unwrap(), "flat");
    assert_eq!(find(overlays, Some("flat"), Some("eu-1"), None).unwrap(), "flat");
    let error = find(overlays, None, Some("empty"), Some("production")).unwrap_err();
    assert_eq!(error.reason().as_str(), "OverlayMissing");
    let looked_in = "k8s/overlays/empty, k8s/overlays/production, k8s/overlays;";
    assert!(error.to_string().contains(looked_in), "{error}");
    assert!(find(overlays, Some("nothing"), Some("eu-1"), None).is_err());
    assert_eq!(find("../flat", None, None, None).unwrap_err().reason().as_str(), "PathRefused");
}

/// The programs that `kind-clusters/tools/build.sh` makes, else those on PATH.
fn programs(name: &str) -> Option<Kustomize> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let built = cache.or(home).map(|cache| cache.join("attest-kube"));
    let built = built.and_then(|built| std::fs::read_dir(built).ok()).into_iter().flatten();
    let mut places: Vec<PathBuf> = built.flatten().map(|entry| entry.path().join("bin")).collect();
    places.extend(std::env::var_os("ATTEST_KUBE_BIN").map(PathBuf::from));
    let search = std::env::var_os("PATH").unwrap_or_default();
    places.extend(std::env::split_paths(&search));
    let found = places.iter().map(|place| place.join(name)).filter(|path| path.is_file());
    let found = found.map(|path| Kustomize::at(&path)).find(|found| found.version().is_some());
    if found.is_none() {
        let in_ci = std::env::var("CI").is_ok_and(|value| value == "true");
        assert!(!in_ci, "no {name}: run kind-clusters/tools/build.sh");
        #[allow(clippy::print_stderr, reason = "a test that cannot run says so")]
        {
            eprintln!("skipped: no {name} (run kind-clusters/tools/build.sh)");
        }
    }
    found
}

fn overlay() -> Vec<(&'static str, &'static str)> {
    vec![
        ("attest.yaml", "secret recipe"),
        (".attest/receipts/web/1/x.json", "{}"),
        ("k8s/base/deployment.yaml", DEPLOYMENT),
        ("k8s/base/settings.yaml", CONFIG),
        ("k8s/base/kustomization.yaml", "resources: [deployment.yaml, settings.yaml]\n"),
        (
            "k8s/overlays/staging/kustomization.yaml",
            "\
resources: [../../base]
namespace: app-staging
images: [{name: proxy, newTag: \"4\"}]
patches:
- path: patch.yaml
configMapGenerator:
- {name: extra, files: [note.txt], literals: [mode=on]}
",
        ),
        (
            "k8s/overlays/staging/patch.yaml",
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {replicas: 2}\n",
        ),
        ("k8s/overlays/staging/note.txt", "hello\n"),
    ]
}

#[test]
fn both_programs_render_an_overlay_to_the_same_bytes() {
    let mut renderings = Vec::new();
    for name in ["kubectl", "kustomize"] {
        let Some(kustomize) = programs(name) else { continue };
        let tree = Tree::from_files(overlay());

        let changes = [change("myapp", "4f2c")];
        let manifests = render(&tree, "k8s/overlays/staging", &changes, &kustomize).unwrap();

        assert_eq!(manifests.renderer.name, "kustomize");
        assert!(manifests.renderer.version.starts_with('5'), "{:?}", manifests.renderer);
        let keys: Vec<String> =
            manifests.objects.iter().map(|object| object.key().to_string()).collect();
        assert_eq!(keys.len(), 3, "{keys:?}");
        assert!(keys[0].starts_with("ConfigMap/app-staging/extra-"), "{keys:?}");
        assert_eq!(
            keys[1..],
            ["ConfigMap/app-staging/settings", "Deployment.apps/app-staging/web"]
        );
        let images: Vec<String> = manifest::images(&manifests.objects).into_iter().collect();
        assert_eq!(images, ["myapp:4f2c", "proxy:4"]);
        assert_eq!(manifests.objects[2].value()["spec"]["replicas"], 2);
        assert_eq!(manifests.objects[0].value()["data"]["mode"], "on");
        renderings.push(manifests.rendering);
    }
    assert!(renderings.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn what_a_kustomization_would_fetch_or_run_is_refused_before_anything_runs() {
    let table = [
        ("resources: [https://example.com/x.yaml]", "RemoteResource"),
        ("resources: [github.com/a/b//c?ref=v1]", "RemoteResource"),
        ("resources: ['git@github.com:a/b.git']", "RemoteResource"),
        ("bases: ['ssh://git@x/y']", "RemoteResource"),
        ("components: ['https://x/y']", "RemoteResource"),
        ("patches: [{path: 'http://x/y.yaml'}]", "RemoteResource"),
        ("configMapGenerator: [{name: x, files: ['a=https://x/y']}]", "RemoteResource"),
        ("transformers: ['https://x/y.yaml']", "RemoteResource"),
        ("openapi: {path: 'https://x/y.json'}", "RemoteResource"),
        ("Resources: [https://example.com/x.yaml]", "RemoteResource"),
        ("RE\u{17f}OURCES: [https://example.com/x.yaml]", "RemoteResource"),
        ("patches: [{PATH: 'http://x/y.yaml'}]", "RemoteResource"),
        ("configMapGenerator: [{name: x, Envs: ['https://x/y']}]", "RemoteResource"),
        ("openAPI: {Path: 'https://x/y.json'}", "RemoteResource"),
        ("helmCharts: [{name: x}]", "RendererPlugin"),
        ("HelmCharts: [{name: x}]", "RendererPlugin"),
        ("resources: [../../../../etc]", "ResourceMissing"),
        ("resources: [/etc/passwd]", "ResourceMissing"),
        ("resources: [nothing.yaml]", "ResourceMissing"),
        ("resources: [nothing/]", "ResourceMissing"),
        ("resources: [a.yaml]\nresources: [b.yaml]", "YamlRefused"),
    ];

    for (content, reason) in table {
        let file = "k8s/overlays/staging/kustomization.yaml";
        let mut files = overlay();
        files.retain(|(path, _)| *path != file);
        files.push((file, content));
        let tree = Tree::from_files(files);
        let error = render(&tree, "k8s/overlays/staging", &[], &Kustomize::none()).unwrap_err();
        assert_eq!(error.reason().as_str(), reason, "{content}: {error}");
        assert!(error.to_string().starts_with(file), "{error}");
    }
    let inner = Tree::from_files([
        ("k8s/kustomization.yaml", "resources: [base]"),
        ("k8s/base/Kustomization", "resources: [https://example.com/x.yaml]"),
    ]);
    let error = render(&inner, "k8s", &[], &Kustomize::none()).unwrap_err();
    assert!(error.to_string().starts_with("k8s/base/Kustomization: "), "{error}");
}

#[test]
fn a_missing_program_and_a_program_that_fails_say_what_to_do() {
    let tree = Tree::from_files(overlay());

    let nothing = Kustomize::find(Some(std::ffi::OsStr::new("/nonexistent")));
    let missing = render(&tree, "k8s/overlays/staging", &[], &nothing).unwrap_err();
    assert_eq!(missing.reason().as_str(), "RendererMissing");
    assert!(missing.to_string().contains("install one of them"), "{missing}");

    let Some(kustomize) = programs("kubectl") else { return };
    let broken = Tree::from_files([("k8s/kustomization.yaml", "resorces: [x]\n")]);
    let failed = render(&broken, "k8s", &[], &kustomize).unwrap_err();
    assert_eq!(failed.reason().as_str(), "RendererFailed");
    let text = failed.to_string();
    assert!(text.contains("resorces") && !text.contains("/tmp/"), "{text}");
}

#[test]
fn a_program_that_hangs_or_floods_is_ended() {
    use std::os::unix::fs::PermissionsExt;

    let directory = tempfile::tempdir().unwrap();
    let fake = |name: &str, script: &str| {
        let path = directory.path().join(name);
        let script = format!("#!/bin/sh\n[ \"$1\" = version ] && echo v5.0.0 && exit\n{script}\n");
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        let found = Kustomize::at(&path).with_limits(Duration::from_millis(500), 10_000);
        assert!(found.version().is_some());
        found
    };
    let tree = Tree::from_files(overlay());
    let reason = |kustomize| {
        render(&tree, "k8s/overlays/staging", &[], &kustomize).unwrap_err().reason().as_str()
    };

    assert_eq!(reason(fake("hangs", "exec /bin/sleep 60")), "RenderTimedOut");
    assert_eq!(reason(fake("floods", "while :; do echo xxxxxxxxxx; done")), "RenderLimit");
    assert_eq!(reason(fake("spoils", "echo 'a: [1'")), "YamlRefused");
    assert_eq!(reason(fake("dies", "kill -9 $$")), "RendererKilled");
}

#[test]
fn a_program_sees_only_the_files_and_never_what_was_signed_before() {
    use std::os::unix::fs::PermissionsExt;

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kustomize");
    let script = "#!/bin/sh\n[ \"$1\" = version ] && echo v5.0.0 && exit\n\
        printf 'apiVersion: v1\\nkind: ConfigMap\\nmetadata: {name: seen}\\ndata:\\n  files: \"'\n\
        for file in * .[a-z]*; do printf '%s ' \"$file\"; done; printf '\"\\n'\n";
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    let tree = Tree::from_files(overlay());

    let manifests = render(&tree, "k8s/overlays/staging", &[], &Kustomize::at(&path)).unwrap();

    assert_eq!(manifests.objects[0].value()["data"]["files"], "k8s .[a-z]* ");
}
