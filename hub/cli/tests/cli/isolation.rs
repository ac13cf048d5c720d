//! Rendering reaches no network and fills no memory, through the library and through `attest run`.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use attest_supply::render::{
    FileIsolation, Kustomize, Manifests, RenderCapacity, RenderError, RenderWorker, render,
};
use attest_supply::source::Tree;

use crate::sandbox::{Sandbox, has, search_path};

/// In every response of the listener.
const ANSWER: &str = "answer-of-the-listener";
const CONFIG: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\n";
const MIB: u64 = 1024 * 1024;

/// Answers every connection to a loopback port, and counts them.
struct Listener {
    port: u16,
    connections: Arc<AtomicUsize>,
}

impl Listener {
    fn start() -> Self {
        let socket = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = connections.clone();
        let sockets = [Some(socket), TcpListener::bind(("::1", port)).ok()];
        for socket in sockets.into_iter().flatten() {
            let counter = counter.clone();
            std::thread::spawn(move || {
                for mut stream in socket.incoming().flatten() {
                    counter.fetch_add(1, Ordering::SeqCst);
                    let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
                    let _ = stream.read(&mut [0; 4096]);
                    let body = format!("{CONFIG}data: {{a: {ANSWER}}}\n");
                    let _ = write!(
                        stream,
                        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                        body.len()
                    );
                }
            });
        }
        Self { port, connections }
    }

    fn count(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Kustomizations that fetch, or would if Kustomize had its way: name, files beside `settings.yaml`. `%` is the
/// listener.
fn fetching() -> Vec<(&'static str, Vec<(&'static str, &'static str)>)> {
    let one = |text: &'static str| vec![("kustomization.yaml", text)];
    let generator = "apiVersion: builtin\nkind: ConfigMapGenerator\nmetadata: {name: x}\nfiles: ['a=http://%/x']\n";
    let patch =
        "apiVersion: builtin\nkind: PatchTransformer\nmetadata: {name: x}\npath: http://%/x\n";
    vec![
        ("resource", one("resources: ['http://%/x.yaml']\n")),
        ("resource in another case", one("Resources: ['http://%/x.yaml']\n")),
        ("resource in capitals", one("RESOURCES: ['http://%/x.yaml']\n")),
        ("resource with a folded letter", one("re\u{17f}ources: ['http://%/x.yaml']\n")),
        ("resource beside another", one("resources: [settings.yaml]\nResources: ['http://%/x']\n")),
        (
            "resource in a base",
            vec![
                ("kustomization.yaml", "resources: [base]\n"),
                ("base/kustomization.yaml", "ReSources: ['http://%/x.yaml']\n"),
            ],
        ),
        ("base", one("bases: ['http://%/x?ref=v1']\n")),
        ("git", one("resources: ['git::http://%/x.git']\n")),
        ("git in another case", one("Resources: ['git::http://%/x.git//y?ref=main']\n")),
        ("ssh", one("Resources: ['ssh://git@%/x.git']\n")),
        ("component", one("Components: ['http://%/x']\n")),
        ("patch", one("resources: [settings.yaml]\npatches: [{path: 'http://%/x'}]\n")),
        (
            "patch in another case",
            one("resources: [settings.yaml]\nPatches: [{Path: 'http://%/x'}]\n"),
        ),
        (
            "strategic patch",
            one("resources: [settings.yaml]\nPatchesStrategicMerge: ['http://%/x']\n"),
        ),
        (
            "JSON patch",
            one(
                "resources: [settings.yaml]\nPatchesJson6902: [{path: 'http://%/x', target: {kind: ConfigMap, name: settings}}]\n",
            ),
        ),
        ("replacement", one("resources: [settings.yaml]\nReplacements: [{Path: 'http://%/x'}]\n")),
        ("generator", one("configMapGenerator: [{name: x, files: ['a=http://%/x']}]\n")),
        (
            "generator in another case",
            one("ConfigMapGenerator: [{name: x, Files: ['a=http://%/x']}]\n"),
        ),
        ("variables of a Secret", one("SecretGenerator: [{name: x, Envs: ['http://%/x']}]\n")),
        (
            "file plugin",
            vec![("kustomization.yaml", "generators: [plugin.yaml]\n"), ("plugin.yaml", generator)],
        ),
        (
            "inline plugin",
            one(concat!(
                "generators:\n- |\n  apiVersion: builtin\n  kind: ConfigMapGenerator\n",
                "  metadata: {name: x}\n  files: ['a=http://%/x']\n",
            )),
        ),
        (
            "inline plugin in another case",
            one(concat!(
                "Generators:\n- |\n  apiVersion: builtin\n  kind: SecretGenerator\n",
                "  metadata: {name: x}\n  envs: ['http://%/x']\n",
            )),
        ),
        (
            "file transformer",
            vec![
                ("kustomization.yaml", "resources: [settings.yaml]\ntransformers: [plugin.yaml]\n"),
                ("plugin.yaml", patch),
            ],
        ),
        (
            "inline transformer",
            one(concat!(
                "resources: [settings.yaml]\ntransformers:\n- |\n  apiVersion: builtin\n  kind: PatchTransformer\n",
                "  metadata: {name: x}\n  path: http://%/x\n",
            )),
        ),
        (
            "inline replacement",
            one(concat!(
                "resources: [settings.yaml]\ntransformers:\n- |\n  apiVersion: builtin\n  kind: ReplacementTransformer\n",
                "  metadata: {name: x}\n  replacements: [{path: 'http://%/x'}]\n",
            )),
        ),
        ("transformer", one("resources: [settings.yaml]\nTransformers: ['http://%/x']\n")),
        ("validator", one("resources: [settings.yaml]\nValidators: ['http://%/x']\n")),
        (
            "plugin that is a directory",
            vec![
                ("kustomization.yaml", "generators: [plugins]\n"),
                ("plugins/kustomization.yaml", "Resources: ['http://%/x']\n"),
            ],
        ),
        ("schema", one("resources: [settings.yaml]\nOpenAPI: {Path: 'http://%/x.json'}\n")),
        ("CRD", one("resources: [settings.yaml]\nCrds: ['http://%/x.json']\n")),
        ("configuration", one("resources: [settings.yaml]\nConfigurations: ['http://%/x']\n")),
        ("chart", one("HelmCharts: [{name: x, repo: 'http://%', releaseName: x}]\n")),
        (
            "chart generator",
            one("HelmChartInflationGenerator: [{chartName: x, chartRepoUrl: 'http://%'}]\n"),
        ),
        (
            "inline chart",
            one(concat!(
                "generators:\n- |\n  apiVersion: builtin\n  kind: HelmChartInflationGenerator\n",
                "  metadata: {name: x}\n  name: x\n  repo: http://%\n",
            )),
        ),
        ("name of this machine", one("Resources: ['http://localhost:$/x.yaml']\n")),
        ("IPv6", one("Resources: ['http://[::1]:$/x.yaml']\n")),
        ("number of this machine", one("Resources: ['http://2130706433:$/x.yaml']\n")),
        ("DNS name", one("Resources: ['http://listener.example.com:$/x.yaml']\n")),
        ("DNS name without scheme", one("Resources: ['github.com/x/y?ref=v1']\n")),
    ]
}

fn files_of(listener: &Listener, files: &[(&str, &str)]) -> Vec<(String, String)> {
    let address = format!("127.0.0.1:{}", listener.port);
    let port = listener.port.to_string();
    let mut written = vec![("k8s/settings.yaml".to_owned(), CONFIG.to_owned())];
    written.extend(files.iter().map(|(path, text)| {
        (format!("k8s/{path}"), text.replace('%', &address).replace('$', &port))
    }));
    written
}

fn worker() -> RenderWorker {
    RenderWorker::at(PathBuf::from(env!("CARGO_BIN_EXE_attest")))
}

fn kustomize() -> Option<Kustomize> {
    has("kustomize").then(|| Kustomize::find(Some(&search_path())).with_worker(worker()))
}

#[test]
fn the_system_isolates_rendering() {
    worker().probe().unwrap();
}

/// A program in the place of kustomize that runs `line` first.
fn kustomize_that_does(directory: &Path, line: &str) -> Kustomize {
    let path = directory.join("kustomize");
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = version ] && echo v5.0.0 && exit\n{line}\n\
         echo \"{{apiVersion: v1, kind: ConfigMap, metadata: {{name: seen}}, data: {{seen: '$seen'}}}}\"\n"
    );
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    Kustomize::at(&path).with_worker(worker())
}

#[test]
fn a_renderer_starts_no_process_and_reads_and_writes_no_other_file() {
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("secret");
    std::fs::write(&secret, "of the hub\n").unwrap();
    let overlay = [("k8s/kustomization.yaml", ""), ("k8s/note", "of the repository\n")];
    let seen = |line: &str| {
        let kustomize = kustomize_that_does(directory.path(), line);
        let rendered = render(&Tree::from_files(overlay), "k8s", &[], &kustomize);
        rendered.map(|one| one.objects[0].value()["data"]["seen"].as_str().unwrap().to_owned())
    };
    let other = secret.display();

    assert_eq!(seen("read seen < k8s/note").unwrap(), "of the repository");
    for line in ["seen=$(echo forked)", "/bin/true; seen=forked", ": | :; seen=forked"] {
        let error = seen(line).unwrap_err();
        assert_eq!(error.reason().as_str(), "RendererFailed", "{line}: {error}");
    }
    if worker().probe().unwrap() == FileIsolation::Enforced {
        assert_eq!(seen(&format!("read seen < {other}")).unwrap(), "");
        assert_eq!(seen("read seen < /proc/1/environ").unwrap(), "");
        assert_eq!(seen(&format!("echo x > {other}")).unwrap(), "");
        assert_eq!(std::fs::read_to_string(&secret).unwrap(), "of the hub\n");
    }
}

#[test]
fn no_overlay_reaches_a_listener_and_each_is_refused() {
    let Some(kustomize) = kustomize() else { return };
    let listener = Listener::start();
    let forms = fetching();
    assert!(forms.len() >= 15);

    for (name, files) in &forms {
        let tree = Tree::from_files(files_of(&listener, files));
        let error = render(&tree, "k8s", &[], &kustomize).expect_err(name);
        let text = attest_common::basics::text::error_chain(&error);
        assert!(!text.contains(ANSWER), "{name}: {text}");
        let reason = error.reason().as_str();
        let known = ["RemoteResource", "RendererPlugin", "RendererFailed", "ResourceMissing"];
        assert!(known.contains(&reason), "{name}: {reason} {text}");
    }

    assert_eq!(listener.count(), 0);
    // The listener listens, and Kustomize by itself fetches.
    let (_, inline) = forms.iter().find(|(name, _)| *name == "inline plugin").unwrap();
    let directory = tempfile::tempdir().unwrap();
    write_all(directory.path(), &files_of(&listener, inline));
    let search = search_path();
    let mut programs = std::env::split_paths(&search).map(|path| path.join("kustomize"));
    let program = programs.find(|path| path.is_file()).unwrap();
    let output = Command::new(program).arg("build").arg(directory.path().join("k8s")).output();
    assert!(String::from_utf8_lossy(&output.unwrap().stdout).contains(ANSWER));
    assert_eq!(listener.count(), 1);
}

#[test]
fn attest_run_reaches_no_listener() {
    if !has("kustomize") {
        return;
    }
    let listener = Listener::start();
    let sandbox = Sandbox::empty();
    sandbox.write(
        "attest.yaml",
        "application: web\nrepository: https://git.example/web\nsourceRoot: k8s\nrenders:\n\
         - {name: staging, path: k8s, environments: [staging], namespace: {mode: default-only, pattern: \"app-*\"}}\n\
         release: {version: v1, counter: unix-seconds, notAfter: 720h}\n",
    );

    for (name, files) in fetching() {
        let _ = std::fs::remove_dir_all(sandbox.at("k8s"));
        write_all(&sandbox.repository(), &files_of(&listener, &files));
        sandbox.commit(name);
        let said = sandbox.attest(&["run"]).code(1);
        assert!(said.stderr.contains("error:"), "{name}: {}", said.stderr);
        assert!(!said.stderr.contains(ANSWER), "{name}: {}", said.stderr);
        assert!(!said.stderr.contains("not isolated"), "{name}: {}", said.stderr);
    }

    assert_eq!(listener.count(), 0);
    drop(TcpStream::connect(("127.0.0.1", listener.port)).unwrap());
}

fn write_all(directory: &Path, files: &[(String, String)]) {
    for (path, text) in files {
        let place = directory.join(path);
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::fs::write(place, text).unwrap();
    }
}

/// Levels of sequences, each of nine aliases to the one before.
fn bomb(levels: usize) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a}}\na0: &a0 [{}]\n",
        ["xxxxxxxxxx"; 9].join(", ")
    );
    for level in 1..=levels {
        let before = vec![format!("*a{}", level - 1); 9].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{before}]\n"));
    }
    text
}

/// Kustomizations of which each level builds the next one twice.
fn doubling(levels: usize) -> Vec<(String, String)> {
    let mut files = Vec::new();
    for level in 0..levels {
        for side in ["l", "r"] {
            let next = level + 1;
            let resources = if next == levels {
                "../leaf".to_owned()
            } else {
                format!("../{next}l, ../{next}r")
            };
            let text = format!("namePrefix: {side}-\nresources: [{resources}]\n");
            files.push((format!("k8s/{level}{side}/kustomization.yaml"), text));
        }
    }
    files.push(("k8s/kustomization.yaml".into(), "resources: [0l, 0r]\n".into()));
    files.push(("k8s/leaf/kustomization.yaml".into(), "resources: [settings.yaml]\n".into()));
    files.push(("k8s/leaf/settings.yaml".into(), CONFIG.into()));
    files
}

/// A kustomization that writes `count` objects with `bytes` each.
fn generated(count: usize, bytes: usize) -> Vec<(String, String)> {
    let names: Vec<String> =
        (0..count).map(|n| format!("- {{name: c{n}, files: [large]}}\n")).collect();
    vec![
        ("k8s/kustomization.yaml".into(), format!("configMapGenerator:\n{}", names.concat())),
        ("k8s/large".into(), "x".repeat(bytes)),
    ]
}

fn memory_of_this_process() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}

#[test]
fn inputs_that_grow_are_refused_and_take_no_memory_of_the_caller() {
    let limited = |kustomize: Kustomize| {
        let capacity = RenderCapacity { slots: 2, process_bytes_max: 256 * MIB };
        kustomize.with_worker(worker().with_capacity(capacity))
    };
    let plain = limited(Kustomize::none());
    let file = |name: &str, text: String| vec![(format!("k8s/{name}"), text)];
    let bombs = |count: usize| -> Vec<(String, String)> {
        (0..count).map(|n| (format!("k8s/{n}.yaml"), bomb(4))).collect()
    };
    let nested = "[".repeat(200_000);
    let config = |n: usize| CONFIG.replace("settings", &format!("c{n}"));
    let objects: String = (0..6_000).map(|n| config(n) + "---\n").collect();
    let mut table = vec![
        ("one bomb", file("a.yaml", bomb(9)), &plain),
        ("many bombs", bombs(120), &plain),
        ("JSON depth", file("a.json", nested), &plain),
        ("many objects", file("a.yaml", objects), &plain),
        ("a large file", file("a.yaml", " ".repeat(9 * 1024 * 1024)), &plain),
    ];
    let with_program = kustomize().map(&limited);
    let short = with_program
        .clone()
        .map(|found| found.with_limits(Duration::from_secs(15), 16 * 1024 * 1024));
    if let (Some(kustomize), Some(short)) = (&with_program, &short) {
        table.push(("huge output", generated(40, 900_000), kustomize));
        table.push(("a bomb in a kustomization", file("kustomization.yaml", bomb(9)), kustomize));
        table.push(("doubling", doubling(24), short));
    }
    let before = memory_of_this_process();

    for (name, files, kustomize) in table {
        let error = render(&Tree::from_files(files), "k8s", &[], kustomize).expect_err(name);
        let reason = error.reason().as_str();
        let is_expected =
            reason == "RenderLimit" || (name == "doubling" && reason == "RenderTimedOut");
        assert!(is_expected, "{name}: {reason} {error}");
        let rendered: Result<Manifests, RenderError> =
            render(&Tree::from_files([("k8s/a.yaml", CONFIG)]), "k8s", &[], kustomize);
        assert_eq!(rendered.unwrap().objects.len(), 1, "{name}");
    }

    let grown = memory_of_this_process() - before;
    assert!(grown < 128 * MIB, "{} MiB", grown / MIB);
}

#[test]
fn a_pipe_or_device_in_the_work_tree_is_named_and_waits_for_nothing() {
    for place in ["k8s/pipe.yaml", "attest.yaml", ".attest/rendered/web-app/staging.jsonl"] {
        let sandbox = Sandbox::flat().with_key();
        let pipe = sandbox.at(place);
        std::fs::create_dir_all(pipe.parent().unwrap()).unwrap();
        let _ = std::fs::remove_file(&pipe);
        sandbox.run("mkfifo", &[pipe.to_str().unwrap()]).code(0);

        for command in [["run", "--sign"].as_slice(), &["verify"]] {
            let said = sandbox.attest(command);
            assert!(said.code != 0 || place.starts_with(".attest"), "{place} {command:?}");
            // What Git holds is verified, and Git holds no pipe.
            let is_read = command[0] == "run" && !place.starts_with(".attest");
            let is_named =
                said.stderr.contains("pipe") || said.stderr.contains("not a regular file");
            assert!(is_named || !is_read, "{place} {command:?}: {}", said.stderr);
        }
    }
}
