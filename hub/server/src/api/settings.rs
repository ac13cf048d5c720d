//! The hub's own settings: version, repositories with their credentials, and the keyring of aliases.

use std::sync::Arc;

use attest_common::basics::keys::PublicKey;
use attest_common::basics::reason::Reason;
use attest_common::basics::text::error_chain;
use attest_common::session::PROTOCOL_VERSION;
use attest_documents::{
    Addresses, Condition, Failure, Key, KeyRequest, List, OwnClusterAddress, Repository,
    RepositoryRemoval, RepositoryRequest, Version,
};
use attest_runtime::clock::now;
use attest_supply::source::{RepositoryUrl, Scheme};
use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;

use super::{Api, Body, Refusal};
use crate::core::blocking::blocking;
use crate::core::own_cluster::OwnCluster;
use crate::core::store::records::{self, KeyRecord, RepositoryRecord};
use crate::reconcile::repositories::remote;

/// Longest alias of a key in bytes.
const ALIAS_BYTES_MAX: usize = 253;

type Answer<T> = Result<Json<T>, Refusal>;

pub(super) async fn version(State(api): State<Arc<Api>>) -> Json<Version> {
    Json(Version {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        protocol: PROTOCOL_VERSION,
        hub_key_id: api.core.signer.public().id().to_string(),
    })
}

pub(super) async fn addresses(State(api): State<Arc<Api>>) -> Json<Addresses> {
    let addresses = api.core.addresses.get();
    let own_cluster = match api.core.own_cluster.get() {
        OwnCluster::Uid(kube_system_uid) => {
            let spokes = addresses.internal().map(str::to_owned);
            Some(OwnClusterAddress { kube_system_uid, spokes })
        }
        OwnCluster::None | OwnCluster::Unknown => None,
    };
    Json(Addresses { spokes: addresses.external().map(str::to_owned), own_cluster })
}

fn field(reason: Reason, field: &str, message: impl Into<String>) -> Refusal {
    let failure =
        Failure { reason: reason.into(), message: message.into(), field: Some(field.to_owned()) };
    Refusal::of(StatusCode::UNPROCESSABLE_ENTITY, failure)
}

pub(super) async fn put_repository(
    State(api): State<Arc<Api>>,
    Body(asked): Body<RepositoryRequest>,
) -> Answer<Repository> {
    let record = blocking(&api, move |api| add_repository(api, asked)).await?;
    Ok(Json(shown(&record)))
}

/// Refuses credentials that the scheme of the URL does not use.
fn check_credential_scheme(asked: &RepositoryRequest, scheme: Scheme) -> Result<(), Refusal> {
    let given = [
        ("username", asked.username.is_some(), &[Scheme::Https, Scheme::Http][..]),
        ("sshKey", asked.ssh_key.is_some(), &[Scheme::Ssh]),
        ("ca", asked.ca.is_some(), &[Scheme::Https]),
    ];
    let unused =
        given.iter().find(|(_, is_given, schemes)| *is_given && !schemes.contains(&scheme));
    match unused {
        Some((name, _, schemes)) => {
            let wanted: Vec<&str> = schemes.iter().map(|scheme| scheme.as_str()).collect();
            let message = format!(
                "{name} has no effect for a {} URL; remove it, or use a URL with {}",
                scheme.as_str(),
                wanted.join(" or ")
            );
            Err(field(Reason::CredentialUnused, name, message))
        }
        None => Ok(()),
    }
}

/// Checks before storing the credentials that they can read and may not push.
fn add_repository(api: &Api, asked: RepositoryRequest) -> Result<RepositoryRecord, Refusal> {
    let url = RepositoryUrl::parse(&asked.url, &api.repositories.urls)
        .map_err(|error| field(error.reason(), "url", error.to_string()))?;
    let pairs = [
        ("username", asked.username.is_some(), "password", asked.password.is_some()),
        ("sshKey", asked.ssh_key.is_some(), "knownHosts", asked.known_hosts.is_some()),
    ];
    for (one, has_one, other, has_other) in pairs {
        if has_one != has_other {
            let missing = if has_one { other } else { one };
            let message = format!("{one} and {other} must be set together");
            return Err(field(Reason::CredentialIncomplete, missing, message));
        }
    }
    check_credential_scheme(&asked, url.scheme())?;
    let mut record = RepositoryRecord {
        url: url.normalised().to_owned(),
        address: asked.url,
        username: asked.username,
        password: asked.password,
        ssh_key: asked.ssh_key,
        known_hosts: asked.known_hosts,
        ca: asked.ca,
        allow_push_credential: asked.allow_push_credential,
        allow_loopback: asked.allow_loopback,
        can_push: None,
        problem: None,
        checked_at: Some(now()),
    };
    let remote = remote(url, &record);
    api.repositories
        .try_to_read(&remote)
        .map_err(|error| field(error.reason(), "url", error_chain(&error)))?;
    match api.repositories.can_push(&remote) {
        Ok(true) if !record.allow_push_credential => {
            let message = "the credential may push, so that a compromised hub could make CI sign; \
                           restrict it to read access, or pass --allow-push-credential";
            let failure = Failure {
                reason: Reason::CredentialCanPush.into(),
                message: message.to_owned(),
                field: None,
            };
            return Err(Refusal::of(StatusCode::CONFLICT, failure));
        }
        Ok(can_push) => record.can_push = Some(can_push),
        Err(error) => record.problem = Some((error.reason().into(), error_chain(&error))),
    }
    api.core.records.commit("repository", &[records::put(&record)])?;
    api.waker.wake_all();
    Ok(record)
}

fn shown(record: &RepositoryRecord) -> Repository {
    let credential = if record.username.is_some() {
        "Basic"
    } else if record.ssh_key.is_some() {
        "Ssh"
    } else {
        "None"
    };
    let (status, reason, message) = match (record.can_push, &record.problem) {
        (Some(true), _) => (
            "False",
            Reason::CredentialCanPush.into(),
            "the hub's credential may push, so that a compromised hub could make CI sign",
        ),
        (_, Some((reason, message))) => ("Unknown", reason.clone(), message.as_str()),
        (Some(false), None) => ("True", Reason::ReadOnly.into(), "the hub can read but not push"),
        (None, None) => ("Unknown", Reason::Pending.into(), "not checked yet"),
    };
    let condition = Condition {
        kind: "ReadOnly".to_owned(),
        status: status.to_owned(),
        reason,
        message: message.to_owned(),
        last_transition_time: record.checked_at.unwrap_or_default(),
    };
    Repository {
        url: record.url.clone(),
        credential: credential.to_owned(),
        conditions: vec![condition],
    }
}

pub(super) async fn repositories(State(api): State<Arc<Api>>) -> Answer<List<Repository>> {
    let all: Vec<RepositoryRecord> = blocking(&api.core, |core| core.records.all()).await?;
    Ok(Json(List::new("Repository", all.iter().map(shown).collect())))
}

/// Deletes a repository's credentials; its applications continue without any.
pub(super) async fn delete_repository(
    State(api): State<Arc<Api>>,
    Body(asked): Body<RepositoryRemoval>,
) -> Answer<Repository> {
    let removing = blocking(&api, move |api| {
        let url = RepositoryUrl::parse(&asked.url, &api.repositories.urls)
            .map_err(|error| field(error.reason(), "url", error.to_string()))?;
        let record = api.core.records.get::<RepositoryRecord>(url.normalised())?;
        let record = record.ok_or_else(|| {
            let message = format!(
                "repository `{url}` not found; list repositories with `attest gitops repo list`"
            );
            Refusal::not_found(Reason::RepositoryUnknown, message)
        })?;
        api.core.records.commit("repository", &[records::delete(&record)])?;
        api.waker.wake_all();
        Ok::<_, Refusal>(record)
    });
    Ok(Json(shown(&removing.await?)))
}

fn is_alias(text: &str) -> bool {
    (1..=ALIAS_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
}

pub(super) async fn put_key(
    State(api): State<Arc<Api>>,
    Body(asked): Body<KeyRequest>,
) -> Answer<Key> {
    if !is_alias(&asked.alias) {
        let message = "must be 1 to 253 letters, digits, `.`, `-` or `_`";
        return Err(field(Reason::AliasInvalid, "alias", message));
    }
    let key = PublicKey::from_pem(&asked.public_key)
        .map_err(|error| field(error.reason(), "publicKey", error.to_string()))?;
    let record = KeyRecord { alias: asked.alias, public_key: key.to_pem() };
    let alias = record.alias.clone();
    blocking(&api.core, move |core| core.records.commit("key", &[records::put(&record)])).await?;
    // The configuration of the hub may name it.
    api.waker.wake_all();
    Ok(Json(Key { alias, key_id: key.id().to_string() }))
}

fn shown_key(record: &KeyRecord) -> Option<Key> {
    let key = PublicKey::from_pem(&record.public_key).ok()?;
    Some(Key { alias: record.alias.clone(), key_id: key.id().to_string() })
}

pub(super) async fn keys(State(api): State<Arc<Api>>) -> Answer<List<Key>> {
    let all: Vec<KeyRecord> = blocking(&api.core, |core| core.records.all()).await?;
    Ok(Json(List::new("Key", all.iter().filter_map(shown_key).collect())))
}

pub(super) async fn delete_key(
    State(api): State<Arc<Api>>,
    Path(alias): Path<String>,
) -> Answer<Key> {
    let removing = blocking(&api.core, move |core| {
        let record = core.records.get::<KeyRecord>(&alias)?;
        let message = format!("key `{alias}` not found; list keys with `attest gitops key list`");
        let record =
            record.ok_or_else(|| Refusal::not_found(Reason::KeyUnknown, message.clone()))?;
        core.records.commit("key", &[records::delete(&record)])?;
        shown_key(&record).ok_or_else(|| Refusal::not_found(Reason::KeyUnknown, message))
    });
    Ok(Json(removing.await?))
}
