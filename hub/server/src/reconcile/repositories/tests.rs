use std::path::Path;
use std::time::Duration;

use attest_supply::render::Kustomize;

use super::*;
use crate::core::store::records::put;
use crate::home::{self, Advertise};
use crate::process::parts::{self, Parts, Settings};

#[test]
fn credentials_that_were_changed_during_the_question_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    let parts = parts(directory.path());
    let (records, repositories) = (&parts.core.records, &parts.api.repositories);
    let record = |password: &str| repository("https://git.example/a", password);
    let kept = || records.get::<RepositoryRecord>("https://git.example/a").unwrap();
    records.commit("repository", &[put(&record("new"))]).unwrap();

    repositories.note_push_answer(&record("old"), Ok(true)).unwrap();
    assert_eq!(kept().unwrap().can_push, Some(false));
    repositories.note_push_answer(&record("new"), Ok(true)).unwrap();
    let kept = kept().unwrap();

    assert_eq!((kept.password.as_deref(), kept.can_push), (Some("new"), Some(true)));
}

#[test]
fn a_credential_is_asked_about_a_day_after_the_last_answer_and_sooner_without_one() {
    let now: Timestamp = "2026-03-01T12:00:00Z".parse().unwrap();
    let ago = |hours: i64| Timestamp::from_second(now.as_second() - hours * 3_600).unwrap();
    let problem = || Some((Reason::RepositoryUnreachable.into(), "no".to_owned()));
    for (checked_at, can_push, problem, expected) in [
        (None, Some(false), None, true),
        (Some(ago(25)), Some(false), None, true),
        (Some(ago(23)), Some(false), None, false),
        (Some(ago(23)), Some(true), None, false),
        (Some(ago(2)), None, problem(), true),
        (Some(ago(2)), Some(false), problem(), true),
        (Some(ago(0)), None, problem(), false),
        (Some(ago(-2)), Some(false), None, true),
    ] {
        let record = RepositoryRecord {
            checked_at,
            can_push,
            problem,
            ..repository("https://git.example/a", "")
        };
        assert_eq!(is_push_check_due(&record, now), expected, "{checked_at:?} {can_push:?}");
    }
}

#[test]
fn a_hub_that_starts_asks_about_the_credentials_whose_day_is_over() {
    let directory = tempfile::tempdir().unwrap();
    let parts = parts(directory.path());
    let records = &parts.core.records;
    let (old, fresh) = ("https://127.0.0.1:1/old", "https://127.0.0.1:1/fresh");
    let long_ago: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let yesterday = RepositoryRecord { checked_at: Some(long_ago), ..repository(old, "a") };
    let today = RepositoryRecord { checked_at: Some(now()), ..repository(fresh, "a") };
    records.commit("repository", &[put(&yesterday), put(&today)]).unwrap();

    assert!(parts.api.repositories.check_push_credentials());

    let kept = |url| records.get::<RepositoryRecord>(url).unwrap().unwrap();
    assert!(kept(old).checked_at > Some(long_ago));
    assert_eq!((kept(fresh).checked_at, kept(fresh).problem), (today.checked_at, None));
}

/// A hub in `directory` that nothing runs.
pub(crate) fn parts(directory: &Path) -> Parts {
    attest_certs::install_provider();
    let path = directory.join("home");
    let advertise = Advertise {
        spoke_address: "127.0.0.1:4433".into(),
        api_url: "https://127.0.0.1:8443".into(),
    };
    home::create(&path, &advertise).unwrap();
    let settings = Settings {
        urls: UrlPolicy { allow_http: true, ..UrlPolicy::default() },
        poll_interval: Duration::from_secs(300),
        kustomize: Kustomize::none(),
        kubernetes: None,
    };
    parts::start(home::open(&path).unwrap(), settings).unwrap()
}

pub(crate) fn repository(url: &str, password: &str) -> RepositoryRecord {
    RepositoryRecord {
        url: url.into(),
        address: url.into(),
        username: Some("hub".into()),
        password: Some(password.into()),
        ssh_key: None,
        known_hosts: None,
        ca: None,
        allow_push_credential: false,
        allow_loopback: true,
        can_push: Some(false),
        problem: None,
        checked_at: None,
    }
}
