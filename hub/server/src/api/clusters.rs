//! Clusters and join tokens.

use std::sync::Arc;

use attest_common::basics::ids::{ClusterId, Name};
use attest_runtime::clock::now;
use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;

use super::{Body, Refusal};
use crate::core::store::records::Application;
use crate::core::store::records::{self, ApplicationRecord, ClusterRecord, TokenRecord};
use crate::process::hub::Hub;
use crate::spokes::registration::{self as join, JoinError, Verdict};
use attest_documents::{AcceptRequest, Cluster, List, RevokeRequest, Token, TokenRequest};

type Answer<T> = Result<Json<T>, Refusal>;

impl From<JoinError> for Refusal {
    fn from(error: JoinError) -> Self {
        let status = match &error {
            JoinError::NameTaken(_)
            | JoinError::Fingerprint { .. }
            | JoinError::Ambiguous { .. }
            | JoinError::Evicted(_)
            | JoinError::ClusterRevoked(_) => StatusCode::CONFLICT,
            JoinError::NoCluster(_) => StatusCode::NOT_FOUND,
            JoinError::Store(_) | JoinError::Randomness(_) | JoinError::Authority(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            JoinError::TokenRefused
            | JoinError::TokenRevoked
            | JoinError::TokenExpired
            | JoinError::TokenUsed
            | JoinError::Identity
            | JoinError::Request(_)
            | JoinError::Uid
            | JoinError::IdentityKnown(_)
            | JoinError::OtherIdentity
            | JoinError::TooMany
            | JoinError::Lifetime => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Self::new(status, error.reason(), attest_common::basics::text::error_chain(&error))
    }
}

fn name(text: &str) -> Result<Name, Refusal> {
    Name::new(text).map_err(|error| {
        Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, error.reason(), error.to_string())
    })
}

pub(super) async fn make_token(
    State(hub): State<Arc<Hub>>,
    Body(asked): Body<TokenRequest>,
) -> Result<(StatusCode, Json<Token>), Refusal> {
    let cluster = name(&asked.cluster)?;
    let (record, text) = hub.blocking(move |hub| join::make_token(hub, &cluster, &asked)).await?;
    let token = Token { token: Some(text), ..shown_token(&record) };
    Ok((StatusCode::CREATED, Json(token)))
}

fn shown_token(record: &TokenRecord) -> Token {
    let state = if record.used.is_some() {
        "Used"
    } else if record.revoked {
        "Revoked"
    } else if now() >= record.expires_at {
        "Expired"
    } else {
        "Unused"
    };
    Token {
        id: record.id.clone(),
        cluster: record.cluster.to_string(),
        token: None,
        expires_at: record.expires_at,
        state: state.to_owned(),
        auto_accept: record.auto_accept,
    }
}

pub(super) async fn tokens(State(hub): State<Arc<Hub>>) -> Answer<List<Token>> {
    let mut all: Vec<TokenRecord> = hub.blocking(|hub| hub.records.all()).await?;
    all.sort_by_key(|token| std::cmp::Reverse(token.created_at));
    Ok(Json(List::new("Token", all.iter().map(shown_token).collect())))
}

pub(super) async fn revoke_token(
    State(hub): State<Arc<Hub>>,
    Path(id): Path<String>,
) -> Answer<Token> {
    let _one_at_a_time = hub.joining.lock().await;
    let record = hub
        .blocking(move |hub| {
            let stored = hub.records.stored::<TokenRecord>(&id)?;
            let Some(stored) = stored else {
                let message = format!("no token has the id `{id}`; `attest gitops cluster token list` shows those there are");
                return Err(Refusal::not_found("TokenUnknown", message));
            };
            let revoked = TokenRecord { revoked: true, ..stored.value.clone() };
            hub.records.commit("token", &[records::replace(&stored, &revoked)])?;
            Ok(revoked)
        })
        .await?;
    Ok(Json(shown_token(&record)))
}

pub(super) async fn list(State(hub): State<Arc<Hub>>) -> Answer<List<Cluster>> {
    let shown = hub
        .blocking(|hub| {
            let mut all = hub.directory.all();
            all.sort_by(|a, b| (&a.name, a.registered_at).cmp(&(&b.name, b.registered_at)));
            let world = World::read(hub)?;
            all.iter().map(|record| world.shown(hub, record)).collect::<Result<_, Refusal>>()
        })
        .await?;
    Ok(Json(List::new("Cluster", shown)))
}

pub(super) async fn one(
    State(hub): State<Arc<Hub>>,
    Path(cluster): Path<String>,
) -> Answer<Cluster> {
    let shown = hub.blocking(move |hub| show(hub, &cluster)).await?;
    Ok(Json(shown))
}

fn show(hub: &Hub, cluster: &str) -> Result<Cluster, Refusal> {
    let record = find(hub, cluster)?;
    World::read(hub)?.shown(hub, &record)
}

/// The cluster with this id or name; of several with one name, the one that is not revoked.
fn find(hub: &Hub, cluster: &str) -> Result<Arc<ClusterRecord>, Refusal> {
    let by_id = cluster.parse().ok().and_then(|id: ClusterId| hub.directory.get(&id));
    if let Some(record) = by_id {
        return Ok(record);
    }
    let name = name(cluster)?;
    Ok(hub.directory.named(&name).ok_or(JoinError::NoCluster(name))?)
}

/// The same, but who names one of several must say which.
fn find_only(hub: &Hub, cluster: &str) -> Result<Arc<ClusterRecord>, Refusal> {
    let found = find(hub, cluster)?;
    let mut all = hub.directory.all();
    all.retain(|record| record.name == found.name);
    if found.id.as_str() == cluster || all.len() == 1 {
        return Ok(found);
    }
    let ids = all.iter().map(|record| format!("{} ({})", record.id, record.state.as_str()));
    let ids = ids.collect::<Vec<_>>().join(", ");
    Err(JoinError::Ambiguous { name: found.name.clone(), count: all.len(), ids }.into())
}

/// What is needed to show any cluster.
struct World {
    default_cluster: Option<Name>,
    applications: Vec<Application>,
}

impl World {
    fn read(hub: &Hub) -> Result<Self, Refusal> {
        let applications: Vec<ApplicationRecord> = hub.records.all()?;
        Ok(Self {
            default_cluster: hub.records.default_cluster()?,
            applications: applications.into_iter().map(|record| record.application).collect(),
        })
    }

    fn shown(&self, hub: &Hub, record: &ClusterRecord) -> Result<Cluster, Refusal> {
        let (connected, age) = hub.fleet.presence(&record.id);
        let here = |application: &&Application| {
            application.destinations.iter().any(|d| d.cluster == record.name)
        };
        let hint = hub.fleet.hint(&record.id);
        let evicted = join::is_evicted(hub, record)?;
        Ok(Cluster {
            name: record.name.to_string(),
            id: record.id.clone(),
            state: if evicted { "Evicted" } else { record.state.as_str() }.to_owned(),
            connected,
            last_seen_age_ms: age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            environment: hint.map(|hint| hint.policy.environment.to_string()),
            agent_version: record.agent_version.clone(),
            kubernetes_version: record.kubernetes_version.clone(),
            fingerprint: join::fingerprint_of(record),
            certificate_expires_at: record.certificate_expires_at,
            applications: self.applications.iter().filter(here).count() as u64,
            default: self.default_cluster.as_ref() == Some(&record.name),
            registered_at: record.registered_at,
            kube_system_uid: record.kube_system_uid.clone(),
        })
    }
}

async fn judge(hub: Arc<Hub>, cluster: String, verdict: Verdict) -> Answer<Cluster> {
    let _one_at_a_time = hub.joining.lock().await;
    let shown = hub
        .blocking(move |hub| {
            let named = match verdict {
                Verdict::Remove => find_only(hub, &cluster)?,
                Verdict::Accept { .. } | Verdict::Revoke { .. } | Verdict::Evict => {
                    find(hub, &cluster)?
                }
            };
            let record = join::judge(hub, &named, verdict)?;
            World::read(hub)?.shown(hub, &record)
        })
        .await?;
    Ok(Json(shown))
}

pub(super) async fn accept(
    State(hub): State<Arc<Hub>>,
    Path(cluster): Path<String>,
    Body(asked): Body<AcceptRequest>,
) -> Answer<Cluster> {
    judge(hub, cluster, Verdict::Accept { fingerprint: asked.fingerprint }).await
}

pub(super) async fn revoke(
    State(hub): State<Arc<Hub>>,
    Path(cluster): Path<String>,
    Body(asked): Body<RevokeRequest>,
) -> Answer<Cluster> {
    judge(hub, cluster, Verdict::Revoke { because: asked.reason }).await
}

pub(super) async fn evict(
    State(hub): State<Arc<Hub>>,
    Path(cluster): Path<String>,
) -> Answer<Cluster> {
    judge(hub, cluster, Verdict::Evict).await
}

pub(super) async fn remove(
    State(hub): State<Arc<Hub>>,
    Path(cluster): Path<String>,
) -> Answer<Cluster> {
    judge(hub, cluster, Verdict::Remove).await
}
