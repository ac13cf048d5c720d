//! A hub that dies at each durable write, and what the next one finds.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use attest_certs::bundle::Bundle;
use attest_certs::tls::operator_https;
use attest_gitops::home::{self, Advertise, Created};
use serde_json::{Value, json};

struct Process {
    child: Child,
    api: String,
}

impl Process {
    fn start(home: &Path, failpoint: Option<&str>) -> Option<Self> {
        let addresses = home.join("addresses.json");
        let _ = std::fs::remove_file(&addresses);
        let mut command = Command::new(env!("CARGO_BIN_EXE_attest-hub"));
        command.arg("--home").arg(home).stdout(Stdio::null()).stderr(Stdio::null());
        for flag in ["--listen-spokes", "--listen-api", "--listen-health", "--listen-metrics"] {
            command.args([flag, "127.0.0.1:0"]);
        }
        if let Some(name) = failpoint {
            command.env("ATTEST_FAILPOINTS_ENABLED", "1").env("ATTEST_FAILPOINT", name);
        }
        let mut child = command.spawn().unwrap();
        let begun = Instant::now();
        loop {
            if let Ok(text) = std::fs::read(&addresses)
                && let Ok(addresses) = serde_json::from_slice::<Value>(&text)
            {
                let api = addresses["api"].as_str().unwrap().to_owned();
                return Some(Self { child, api });
            }
            if child.try_wait().unwrap().is_some() {
                return None;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "the hub does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn client(created: &Created) -> reqwest::blocking::Client {
    let own = Bundle::from_pem(&created.operator_chain_pem, &created.operator_key_pem).unwrap();
    let tls = operator_https(&[created.ca_pin.parse().unwrap()], &own).unwrap();
    reqwest::blocking::Client::builder().tls_backend_preconfigured(tls).no_proxy().build().unwrap()
}

#[test]
fn a_hub_killed_around_a_durable_write_keeps_what_it_acknowledged() {
    attest_certs::install_provider();
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("home");
    let advertise = Advertise {
        spoke_address: "127.0.0.1:4433".into(),
        api_url: "https://127.0.0.1:8443".into(),
    };
    let created = home::create(&home, &advertise).unwrap();
    let client = client(&created);
    let key = attest_common::keys::PrivateKey::from_seed(&[5; 32]).unwrap().public().to_pem();
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        for (when, survives) in [("before", false), ("after", true)] {
            let hub = Process::start(&home, Some(&format!("{when}-key-commit"))).unwrap();
            let alias = format!("{when}-{round}");
            let body = json!({"alias": alias, "publicKey": key});
            let url = format!("https://{}/v1/keys", hub.api);
            assert!(client.put(&url).json(&body).send().is_err(), "it was to die");
            drop(hub);

            let hub = Process::start(&home, None).unwrap();
            let url = format!("https://{}/v1/keys", hub.api);
            let seen: Value = client.get(&url).send().unwrap().json().unwrap();
            let has = |name: &str| {
                seen["items"].as_array().unwrap().iter().any(|item| item["alias"] == name)
            };
            assert_eq!(has(&alias), survives, "{when}: {seen}");
            let kept = format!("kept-{when}-{round}");
            let body = json!({"alias": kept, "publicKey": key});
            assert!(client.put(&url).json(&body).send().unwrap().status().is_success());
            acknowledged.push(kept);
            assert!(acknowledged.iter().filter(|name| has(name)).count() >= acknowledged.len() - 1);
        }
    }
    for name in ["before-epoch-commit", "after-epoch-commit"] {
        assert!(Process::start(&home, Some(name)).is_none(), "{name}: it was to die");
    }
    let hub = Process::start(&home, None).unwrap();
    let url = format!("https://{}/v1/keys", hub.api);
    let seen: Value = client.get(&url).send().unwrap().json().unwrap();
    for name in acknowledged {
        assert!(seen["items"].as_array().unwrap().iter().any(|item| item["alias"] == name));
    }
}
