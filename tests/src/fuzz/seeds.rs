//! Seeds of the targets: the forms that tests compare, samples, golden documents, and a few odd inputs.

use attest_common::basics::envelope::{self, DIRECTIVE_TYPE, PLAN_TYPE, STATEMENT_TYPE, SYNC_TYPE};
use attest_common::basics::keys::PrivateKey;
use attest_common::session::frame;
use attest_common::session::message::{
    Blob, Hello, JoinRequest, Need, NumberedReport, Push, Seen, ToHub, ToHubBody, ToSpoke,
    ToSpokeBody, Welcome,
};
use attest_supply::trust_policy;

use super::git::{ADVERTISEMENT, COMMIT};

/// Seed of the key that signs [`SIGNED`].
pub(super) const KEY: [u8; 32] = [42; 32];
/// Types of every payload that is signed.
pub(super) const PAYLOAD_TYPES: [&str; 4] = [STATEMENT_TYPE, PLAN_TYPE, DIRECTIVE_TYPE, SYNC_TYPE];
/// Payloads that the key has signed.
pub(super) const SIGNED: [&[u8]; 3] = [b"", b"{\"a\":1}", DIRECTIVE];

const DIRECTIVE: &[u8] = include_bytes!("../../../common/src/golden/directive.json");
const PLAN: &[u8] = include_bytes!("../../../common/src/golden/plan.json");
const SYNC: &[u8] = include_bytes!("../../../common/src/golden/sync.json");
const REPORT: &[u8] = include_bytes!("../../../common/src/golden/report.json");
const RENDERING: &[u8] = include_bytes!("../../../common/src/golden/rendering.jsonl");
const KINDS: &[u8] = include_bytes!("../../../hub/install/src/golden/kinds.yaml");
const RECIPE: &[u8] = include_bytes!("../../sample/web-app/attest.yaml");
const APPLICATION: &[u8] = include_bytes!("../../sample/application.yaml");
const WORKLOAD: &[u8] = include_bytes!("../../sample/workload.yaml");
const STRUCTURES: &str = include_str!("../../tests/kubectl/structures.txt");

pub(super) fn yaml() -> Vec<Vec<u8>> {
    let forms = STRUCTURES.lines().skip(1).map(|row| {
        let text = row.replace("\\n", "\n").replace("\\t", "\t").replace("\\r", "\r");
        text.replace("\\\\", "\\").into_bytes()
    });
    let head = b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata:\n  a: &a \"1\"\n  b: *a\n  c: |\n    x\n";
    let objects = [RECIPE, APPLICATION, WORKLOAD, head, RENDERING].map(<[u8]>::to_vec);
    forms.chain(objects).collect()
}

pub(super) fn json() -> Vec<Vec<u8>> {
    let odd: [&[u8]; 8] = [
        b"{}",
        b"[1,-2.5e3,true,null]",
        b"{\"a\":{\"b\":[{}]}}",
        b"\"\\ud83d\\ude00\\n\"",
        b"9007199254740993",
        b"{\"a\":1,\"a\":2}",
        b"[[[[[[[[[[]]]]]]]]]]",
        b"-0.0",
    ];
    let documents = [DIRECTIVE, PLAN, SYNC, REPORT];
    odd.into_iter().chain(documents).map(<[u8]>::to_vec).collect()
}

pub(super) fn rendering() -> Vec<Vec<u8>> {
    let odd: [&[u8]; 3] = [
        b"{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"a\"}}\n",
        b"{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{\"name\":\"a\"},\
            \"spec\":{\"containers\":[{\"image\":\"a:1\",\"name\":\"a\"}]}}\n",
        b"{\"apiVersion\":\"v1\",\"items\":[],\"kind\":\"List\",\"metadata\":{\"name\":\"a\"}}\n",
    ];
    odd.into_iter().chain([RENDERING]).map(<[u8]>::to_vec).collect()
}

pub(super) fn envelopes() -> Vec<Vec<u8>> {
    let Ok(key) = PrivateKey::from_seed(&KEY) else { return Vec::new() };
    let Ok(other) = PrivateKey::from_seed(&[7; 32]) else { return Vec::new() };
    let sealed = PAYLOAD_TYPES.iter().flat_map(|payload_type| {
        SIGNED.iter().map(|payload| envelope::seal(payload_type, payload, &[&key]))
    });
    let more = [
        envelope::seal(PLAN_TYPE, b"{\"a\":2}", &[&other]),
        envelope::seal(STATEMENT_TYPE, SIGNED[1], &[&other, &key]),
    ];
    sealed.chain(more).collect()
}

pub(super) fn statements() -> Vec<Vec<u8>> {
    let statement = br#"{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"all.jsonl",
        "digest":{"sha256":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}}],
        "predicateType":"https://attest.continuu.ms/release/v1","predicate":{"a":1}}"#;
    [statement, DIRECTIVE, PLAN, SYNC, REPORT].map(<[u8]>::to_vec).into()
}

pub(super) fn frames() -> Vec<Vec<u8>> {
    let hello = Hello {
        protocol_min: 1,
        protocol_max: 2,
        cluster_id: "staging".into(),
        nonce: vec![1; 16],
        policy: b"{}".to_vec(),
        destinations: vec![Seen {
            application: "a".into(),
            namespace: "n".into(),
            ..Seen::default()
        }],
        ..Hello::default()
    };
    let need = Need { application: "a".into(), namespace: "n".into(), sha256: vec![vec![0; 32]] };
    let report = NumberedReport { number: 7, report: REPORT.to_vec() };
    let to_hub = [
        ToHubBody::Hello(hello),
        ToHubBody::Need(need),
        ToHubBody::Report(report),
        ToHubBody::Renew(vec![0x30, 0]),
    ];
    let push = Push { directive: DIRECTIVE.to_vec(), plan: vec![0; 32] };
    let to_spoke = [
        ToSpokeBody::Welcome(Welcome::default()),
        ToSpokeBody::Blob(Blob::default()),
        ToSpokeBody::Directive(push),
        ToSpokeBody::Sync(SYNC.to_vec()),
        ToSpokeBody::Acknowledge(u64::MAX),
    ];
    let join = JoinRequest { token_id: "t".into(), proof: vec![0; 32], ..JoinRequest::default() };
    let hub = to_hub.map(|body| frame::encode(&ToHub { body: Some(body) }));
    let spoke = to_spoke.map(|body| frame::encode(&ToSpoke { body: Some(body) }));
    let all = hub.into_iter().chain(spoke).chain([frame::encode(&join)]);
    let mut frames: Vec<Vec<u8>> = all.flatten().collect();
    frames.push(frames.concat());
    frames
}

pub(super) fn policies() -> Vec<Vec<u8>> {
    let Ok(key) = PrivateKey::from_seed(&KEY) else { return Vec::new() };
    let request = trust_policy::PolicyRequest {
        environment: match attest_common::basics::ids::Name::new("staging") {
            Ok(name) => name,
            Err(_) => return Vec::new(),
        },
        cluster_name: None,
        hub_key: key.public().to_pem(),
        ca_pin: format!("sha256:{}", "0".repeat(64)),
        ci_keys: vec![("ci".into(), key.public().to_pem())],
        names: vec!["web-*".into()],
        repos: Vec::new(),
        namespaces: vec!["app".into()],
        allow_remove: true,
    };
    let generated = trust_policy::to_yaml(&request.generate()).map(String::into_bytes);
    generated.into_iter().chain([KINDS.to_vec()]).collect()
}

pub(super) fn git_files() -> Vec<Vec<u8>> {
    let tree = [b"40000 k8s\0".as_slice(), &[0x33; 20], b"100644 a\0", &[0x44; 20]].concat();
    let mut index = b"DIRC\0\0\0\x02\0\0\0\x01".to_vec();
    index.extend([0; 40]);
    index.extend([0x55; 20]);
    index.extend(b"\0\x0ak8s/a.yaml\0\0\0\0\0\0\0\0");
    index.extend([0; 20]);
    let packed = format!(
        "# pack-refs with: peeled fully-peeled sorted \n{COMMIT} refs/heads/main\n^{COMMIT}\n"
    );
    let files: [(u8, &[u8]); 9] = [
        (0, b"ref: refs/heads/main\n"),
        (0, COMMIT.as_bytes()),
        (0, b"ref: refs/heads/../../x\n"),
        (1, packed.as_bytes()),
        (2, COMMIT.as_bytes()),
        (2, b"ref: refs/heads/main\n"),
        (3, &index),
        (4, &tree),
        (5, RECIPE),
    ];
    files.map(|(choice, content)| [&[choice], content].concat()).into()
}

pub(super) fn git_answers() -> Vec<Vec<u8>> {
    let refs = format!("003d{COMMIT} refs/heads/main\n0000");
    let head = format!(
        "0052{COMMIT} HEAD symref-target:refs/heads/main\n003d{COMMIT} refs/heads/main\n0000"
    );
    let old = format!(
        "001e# service=git-upload-pack\n0000004b{COMMIT} HEAD\0multi_ack shallow\n\
         003d{COMMIT} refs/heads/main\n0000"
    );
    let pack = b"000dpackfile\n002a\x01PACK\0\0\0\x02\0\0\0\0\
        \x02\x9d\x08\x82\x3b\xd8\xa8\xea\xb5\x10\xad\x6a\xc7\x5c\x82\x3c\xfd\x3e\xd3\x1e0000";
    let advertised = String::from_utf8_lossy(ADVERTISEMENT).into_owned();
    let sha256 = advertised.replace("0017object-format=sha1", "0019object-format=sha256");
    let unknown = advertised.replace("0017object-format=sha1", "0016object-format=md5");
    let refs_of_sha256 = format!("0055{} refs/heads/main\n0000", "12".repeat(32));
    let answers: [(u8, &[u8]); 12] = [
        (0, refs.as_bytes()),
        (2, refs.as_bytes()),
        (1, sha256.as_bytes()),
        (1, unknown.as_bytes()),
        (0, refs_of_sha256.as_bytes()),
        (0, head.as_bytes()),
        (1, ADVERTISEMENT),
        (1, old.as_bytes()),
        (6, pack),
        (0, b"0000"),
        (0, b"0009ERR x0000"),
        (0, b""),
    ];
    answers.map(|(choice, content)| [&[choice], content].concat()).into()
}
