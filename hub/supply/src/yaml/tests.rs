use attest_common::basics::json::escaped;
use attest_common::documents::manifest;
use proptest::prelude::*;
use serde_json::json;

use super::*;

/// Scalars that readers of YAML disagree on, and what kubectl 1.37 makes of them.
const ODD: &str = "\
a: yes
b: 0644
c: 1_000
d: 1e3
e: 12:30:45
f: 0x1F
g: ~
h: on
i: \"yes\"
j: 2001-01-01
k: 0o17
l: .5
m: 0b11
o: 1.0
p: NULL
q: -0777
r: +5
t: 0.0
v: =
w: !!str 5
";

#[test]
fn odd_scalars_are_read_as_kubectl_reads_them() {
    let mut warnings = Vec::new();

    let values = read("odd.yaml", ODD.as_bytes(), &mut warnings).unwrap();

    let expected = json!({
        "a": true, "b": 420, "c": 1000, "d": 1000.0, "e": "12:30:45", "f": 31, "g": null, "h": true,
        "i": "yes", "j": "2001-01-01", "k": 15, "l": 0.5, "m": 3, "o": 1.0, "p": null, "q": -511,
        "r": 5, "t": 0.0, "v": "=", "w": "5",
    });
    assert_eq!(values, [expected]);
    let lines: Vec<usize> = warnings.iter().map(|warning| warning.line).collect();
    assert_eq!(lines, [1, 2, 3, 5, 6, 8, 11, 13, 16], "{warnings:?}");
    assert_eq!(
        warnings[1].to_string(),
        "odd.yaml:2: \"0644\" is read as an octal number: write it in decimal, or quote it"
    );
}

#[test]
fn what_nobody_means_is_refused_with_its_line() {
    let nested = "[".repeat(5_000) + &"]".repeat(5_000);
    let mut laughs = "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (name, before) in ('b'..='i').zip('a'..='h') {
        let nine = vec![format!("*{before}"); 9].join(", ");
        laughs.push_str(&format!("{name}: &{name} [{nine}]\n"));
    }
    let table = [
        ("a: 1\na: 2\n", "x.yaml: key `a` is given twice at line 2"),
        ("a: {b: 1, b: 2}\n", "x.yaml: key `b` is given twice at line 1"),
        ("0xB: 1\n11: 2\n", ""),
        ("a: 1\nn: 2\n", "line 2: key \"n\""),
        ("yes: 1\n", "line 1: key \"yes\""),
        ("0644: 1\n", "line 1: key \"0644\""),
        ("1.0: 1\n", "line 1: key \"1.0\""),
        ("~: 1\n", ""),
        ("a: !custom x\n", "custom"),
        ("a: .inf\n", ""),
        ("a: [1\n", ""),
        ("a: \t- b\n\tc: d\n", ""),
        (nested.as_str(), ""),
        (laughs.as_str(), ""),
    ];

    for (text, expected) in table {
        let error = read("x.yaml", text.as_bytes(), &mut Vec::new()).unwrap_err();
        let shown = error.to_string();
        let start: String = text.chars().take(40).collect();
        let is_limit = [nested.as_str(), laughs.as_str()].contains(&text);
        let expected_reason = if is_limit { "Limit" } else { "YamlRefused" };
        assert_eq!(error.reason().as_str(), expected_reason, "{start}: {shown}");
        assert!(shown.starts_with("x.yaml: ") && shown.contains(expected), "{start}: {shown}");
        assert!(shown.len() < 500, "{start}: {shown}");
    }
    assert!(read("x.yaml", b"a: \xff\n", &mut Vec::new()).is_err());
    let long = vec![b' '; YAML_FILE_BYTES_MAX + 1];
    assert!(read("x.yaml", &long, &mut Vec::new()).is_err());
}

#[test]
fn documents_are_counted_as_kubectl_counts_them() {
    let count = |text: &str| read("x.yaml", text.as_bytes(), &mut Vec::new()).unwrap().len();

    assert_eq!(count(""), 0);
    assert_eq!(count("# nothing\n"), 0);
    assert_eq!(count("---\n---\na: 1\n---\n# nothing\n---\n"), 1);
    assert_eq!(count("a: 1\n...\n---\nb: 2\n"), 2);
    assert_eq!(count("a: |\n  x\n  ---\n  y\n"), 1);
    assert_eq!(count("\u{feff}a: 1\n"), 1);
    assert_eq!(count("{\"a\": 1}"), 1);
    assert_eq!(count("8080: 1\n1.2: 2\ntrue: 3\n"), 1);
    assert_eq!(count("a: &x {v: 1}\nb: {<<: *x, z: 2}\n"), 1);
}

#[test]
fn every_scalar_is_read_as_kubectl_reads_it_or_refused_by_object_and_field() {
    let rows = include_str!("scalars.txt").lines().filter(|line| !line.starts_with("# "));
    let mut wrong = Vec::new();
    for (scalar, expected) in rows.map(|row| row.split_once('\t').unwrap()) {
        let text = format!("kind: Any\nmetadata: {{name: x}}\nspec:\n  v: {scalar}\n");

        let read = read("x.yaml", text.as_bytes(), &mut Vec::new());

        let is_right = match (expected, &read) {
            ("refused", read) => read.is_err(),
            ("beyond", Err(error)) => error.problem.starts_with("Any/x: `spec.v`: "),
            (json, Ok(values)) => {
                let expected: Value = serde_json::from_str(json).unwrap();
                is_same(&values[0]["spec"]["v"], &expected)
            }
            (_, Err(_)) => false,
        };
        if !is_right {
            wrong.push(format!("{scalar}: kubectl {expected}, here {read:?}"));
        }
    }
    assert_eq!(wrong, [""; 0]);
}

fn is_same(one: &Value, other: &Value) -> bool {
    one == other || one.is_number() && one.as_f64() == other.as_f64() && one.as_i64().is_none()
}

/// What a verifier reads of a scalar that was written in YAML, or nothing if it is refused.
fn signed(scalar: &str) -> Option<Value> {
    let text = format!("apiVersion: v1\nkind: Any\nmetadata: {{name: x}}\nspec:\n  v: {scalar}\n");
    let values = read("x.yaml", text.as_bytes(), &mut Vec::new()).ok()?;
    let rendering = manifest::write(values).unwrap();
    let objects = manifest::read(&rendering).unwrap();
    Some(objects[0].value()["spec"]["v"].clone())
}

proptest! {
    #[test]
    fn every_integer_of_64_bits_is_signed_as_it_was_written(integer in any::<i64>()) {
        prop_assert_eq!(signed(&integer.to_string()), Some(json!(integer)));
    }

    #[test]
    fn no_larger_integer_is_signed(integer in i128::from(i64::MAX) + 1..i128::MAX) {
        prop_assert_eq!(signed(&integer.to_string()), None);
    }

    #[test]
    fn every_fraction_is_signed_as_the_double_that_it_is(double in any::<f64>()) {
        let read = signed(&format!("{double:?}"));
        let is_exact = double.abs() < 9_223_372_036_854_775_808.0;
        prop_assert_eq!(read.and_then(|value| value.as_f64()), is_exact.then_some(double));
    }

    #[test]
    fn every_text_is_signed_as_it_was_written(text in "\\PC*") {
        let raw = serde_json::to_string(&text).unwrap();
        let quoted = escaped(&raw, |c| matches!(c, '\u{2028}' | '\u{2029}'));
        prop_assert_eq!(signed(&quoted), Some(json!(text)));
        // Line breaks of YAML 1.1 are refused unless they are written as escapes.
        prop_assert!(raw == quoted || signed(&raw).is_none());
    }
}

#[test]
fn a_directory_has_one_budget_and_aliases_count_as_what_they_expand_to() {
    // So many values of its own that kubectl accepts it.
    let own = vec!["x"; 4_000].join(", ");
    let mut bomb = format!("own: [{own}]\na: &a [{}]\n", vec!["x"; 60].join(", "));
    let sixty = |name: &str| vec![format!("*{name}"); 60].join(", ");
    bomb.push_str(&format!("b: &b [{}]\nc: [{}]\n", sixty("a"), sixty("b")));
    let large = format!("a: &a {}\nb: [{}]\n", "x".repeat(1_000_000), sixty("a"));
    let documents = "a: 1\n---\n".repeat(YAML_DOCUMENTS_MAX / 4 * 3);
    let reused = format!("a: &a {{b: 1}}\nc: [{}]\n", vec!["*a"; 300].join(", "));

    let refused = |text: &str, times: usize| {
        let mut budget = YamlBudget::default();
        let read = |_| read_within(&mut budget, "x.yaml", text.as_bytes(), &mut Vec::new());
        (0..times).map(read).find_map(Result::err).map(|error| {
            assert_eq!(error.kind, YamlErrorKind::Limit);
            error.problem
        })
    };

    assert_eq!(refused(&bomb, 1), None);
    assert!(refused(&bomb, 3).unwrap().contains("500000 values"), "{:?}", refused(&bomb, 3));
    assert!(refused(&large, 1).unwrap().contains("bytes of values"));
    assert!(refused(&documents, 2).unwrap().contains("5000 documents"));
    assert_eq!(refused(&reused, 100), None, "many uses of one anchor are as kubectl allows them");
    assert!(refused("", YAML_FILES_MAX + 1).unwrap().contains("5000 files"));
}
