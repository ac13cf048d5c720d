//! Tests of recipes: valid, invalid and expanded.

use super::*;

const DOCUMENTED: &str = r#"
application: web-app
repository: https://git.example/company/web-app
sourceRoot: k8s
steps:
- {name: build, run: ./build.sh, result: {format: oci-layout, path: out/image}}
- {name: test, run: ./test.sh, result: {format: junit, path: out/junit.xml}}
- {name: security-scan, run: ./scan.sh, result: {format: vulns-v0.2, path: out/scan.json}}
images:
- {name: myapp, newTag: "${GITHUB_SHA}", from: build}
renders:
- {name: staging, path: k8s/overlays/staging, environments: [staging], namespace: {mode: default-only, pattern: "app-*"}}
- {name: production, path: k8s/overlays/production, environments: [production], namespace: {mode: fixed, value: app-production}}
release: {version: "${GITHUB_REF_NAME}", counter: unix-seconds, notAfter: 720h}
"#;

fn with(from: &str, to: &str) -> String {
    assert!(DOCUMENTED.contains(from), "{from}");
    DOCUMENTED.replace(from, to)
}

fn github(name: &str) -> Option<String> {
    match name {
        "GITHUB_SHA" => Some("4f2c".to_owned()),
        "GITHUB_REF_NAME" => Some("v1.2.3".to_owned()),
        _ => None,
    }
}

#[test]
fn the_documented_recipe_is_valid() {
    let recipe = Recipe::parse("attest.yaml", DOCUMENTED.as_bytes()).unwrap();

    assert_eq!(recipe.images[0].new_tag.as_deref(), Some("${GITHUB_SHA}"));
    let recipe = recipe.expand("attest.yaml", github).unwrap();
    assert_eq!(recipe.images[0].new_tag.as_deref(), Some("4f2c"));
    assert_eq!(recipe.release.version, "v1.2.3");
    assert_eq!(recipe.release.counter(), Some(Counter::UnixSeconds));
    assert_eq!(recipe.release.not_after_seconds(), Ok(720 * 3600));
    assert_eq!(recipe.render("production").unwrap().path, "k8s/overlays/production");
    assert_eq!(declared_source_root(DOCUMENTED.as_bytes()).as_deref(), Some("k8s"));
}

#[test]
fn every_mistake_names_its_file_and_field() {
    let table = [
        ("application: web-app", "application: Web_App", "application:"),
        ("application: web-app", "aplication: web-app", "aplication"),
        ("git.example/company", "user:pw@git.example/company", "repository:"),
        ("sourceRoot: k8s", "sourceRoot: ../k8s", "sourceRoot:"),
        ("sourceRoot: k8s", "sourceRoot: .", "sourceRoot:"),
        ("sourceRoot: k8s", "sourceRoot: charts", "renders[0].path:"),
        ("run: ./test.sh", "run: ''", "steps[1].run:"),
        ("name: test", "name: build", "steps[1].name:"),
        ("format: junit", "format: oci-layout", "steps[1].result.format:"),
        ("format: junit", "format: juni", "steps[1].result.format:"),
        (", path: out/junit.xml", "", "steps[1].result.path:"),
        (", result: {format: junit, path: out/junit.xml}", "", "steps[1].result:"),
        ("path: out/image", "path: /out/image", "steps[0].result.path:"),
        ("from: build", "from: test", "images[0].from:"),
        ("from: build", "form: build", "images[0]"),
        (", newTag: \"${GITHUB_SHA}\", from: build", "", "images[0]: changes nothing"),
        ("name: myapp", "name: myapp@x", "images[0].name:"),
        ("environments: [staging]", "environments: []", "renders[0].environments:"),
        (
            "environments: [staging]",
            "environments: [staging], clusters: []",
            "renders[0].clusters:",
        ),
        ("pattern: \"app-*\"", "pattern: \"\"", "renders[0].namespace.pattern:"),
        ("name: production", "name: staging", "renders[1].name:"),
        ("mode: fixed, value: app-production", "mode: fixed", "renders[1].namespace"),
        ("mode: fixed", "mode: free", "renders[1].namespace"),
        ("notAfter: 720h", "notAfter: 30d", "release.notAfter:"),
        ("notAfter: 720h", "notAfter: 99999999999999999999h", "release.notAfter:"),
        ("renders:\n", "renders: []\nrest:\n", "rest"),
        (
            "sourceRoot: k8s",
            "sourceRoot: k8s\nsourceRoot: k9s",
            "sourceRoot: key `sourceRoot` is given twice at line",
        ),
        (
            "from: build",
            "from: build, from: test",
            "images[0].from: key `from` is given twice at line",
        ),
    ];

    for (from, to, expected) in table {
        let error = Recipe::parse("attest.yaml", with(from, to).as_bytes()).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("attest.yaml: "), "{text}");
        assert!(text.contains(expected), "{to}: {text}");
    }
}

#[test]
fn an_unset_variable_and_an_invalid_value_are_errors() {
    let expand = |text: &str, value: Option<&str>| {
        let value = value.map(str::to_owned);
        let variable = move |name: &str| match name {
            "GITHUB_SHA" => value.clone(),
            other => github(other),
        };
        Recipe::parse("attest.yaml", text.as_bytes()).unwrap().expand("attest.yaml", variable)
    };

    let unset = expand(DOCUMENTED, None).unwrap_err();
    assert_eq!(unset.reason().as_str(), "RecipeVariable");
    assert!(unset.to_string().contains("images[0].newTag: variable GITHUB_SHA"), "{unset}");
    assert_eq!(expand(DOCUMENTED, Some("")).unwrap_err().reason().as_str(), "RecipeVariable");
    assert!(expand(DOCUMENTED, Some("a b")).unwrap_err().to_string().contains("not an image tag"));
    let counter = with("unix-seconds", "\"${GITHUB_SHA}\"");
    assert!(expand(&counter, Some("x")).unwrap_err().to_string().contains("release.counter"));
    let counter = expand(&counter, Some("42")).unwrap().release.counter();
    assert_eq!(counter, Some(Counter::Value(42)));
    let escaped = expand(&with("${GITHUB_REF_NAME}", "$${X}-$1"), Some("a")).unwrap();
    assert_eq!(escaped.release.version, "${X}-$1");
}
