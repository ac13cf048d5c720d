//! Routes of clusters and join tokens.

use std::sync::Arc;

use attest_common::basics::ids::{ClusterId, Name};
use attest_common::basics::labels::{self, LabelError, Selector};
use attest_common::basics::reason::Reason;
use attest_documents::{
    AcceptRequest, Cluster, ClusterQuery, LabelsRequest, List, RevokeRequest, Token, TokenRequest,
};
use attest_runtime::clock::now;
use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;

use super::{Api, Body, Parameters, Refusal};
use crate::applications::rules;
use crate::core::Core;
use crate::core::blocking::blocking;
use crate::core::store::records::Application;
use crate::core::store::records::{self, ApplicationRecord, ClusterRecord, TokenRecord};
use crate::spokes::registration::token::TokenSpec;
use crate::spokes::registration::{Decision, JoinError, fingerprint_of};

type Answer<T> = Result<Json<T>, Refusal>;

impl From<JoinError> for Refusal {
    fn from(error: JoinError) -> Self {
        let status = match &error {
            JoinError::NameTaken(_)
            | JoinError::Fingerprint { .. }
            | JoinError::Ambiguous { .. }
            | JoinError::Evicted(_)
            | JoinError::IdentityCopied(_)
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
            | JoinError::Label(_)
            | JoinError::Lifetime => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Self::new(status, error.reason(), attest_common::basics::text::error_chain(&error))
    }
}

impl From<LabelError> for Refusal {
    fn from(error: LabelError) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, error.reason(), error.to_string())
    }
}

fn name(text: &str) -> Result<Name, Refusal> {
    Name::new(text).map_err(|error| {
        Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, error.reason(), error.to_string())
    })
}

pub(super) async fn make_token(
    State(api): State<Arc<Api>>,
    Body(asked): Body<TokenRequest>,
) -> Result<(StatusCode, Json<Token>), Refusal> {
    let spec = TokenSpec {
        cluster: name(&asked.cluster)?,
        lifetime_s: asked.ttl_seconds,
        auto_accept: asked.auto_accept,
        replace: asked.replace,
        identity: asked.identity,
    };
    let made = blocking(&api.registration, move |registration| registration.make_token(spec));
    let (record, text) = made.await?;
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

pub(super) async fn tokens(State(api): State<Arc<Api>>) -> Answer<List<Token>> {
    let mut all: Vec<TokenRecord> = blocking(&api.core, |core| core.records.all()).await?;
    all.sort_by_key(|token| std::cmp::Reverse(token.created_at));
    Ok(Json(List::new("Token", all.iter().map(shown_token).collect())))
}

pub(super) async fn revoke_token(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
) -> Answer<Token> {
    let _one_at_a_time = api.registration.one_at_a_time().await;
    let revoking = blocking(&api.core, move |core| {
        let stored = core.records.stored::<TokenRecord>(&id)?;
        let Some(stored) = stored else {
            let message = format!(
                "token `{id}` not found; list tokens with `attest gitops cluster token list`"
            );
            return Err(Refusal::not_found(Reason::TokenUnknown, message));
        };
        let revoked = TokenRecord { revoked: true, ..stored.value.clone() };
        core.records.commit("token", &[records::replace(&stored, &revoked)])?;
        Ok(revoked)
    });
    Ok(Json(shown_token(&revoking.await?)))
}

pub(super) async fn list(
    State(api): State<Arc<Api>>,
    Parameters(query): Parameters<ClusterQuery>,
) -> Answer<List<Cluster>> {
    let selector = Selector::parse(query.label_selector.as_deref().unwrap_or_default())?;
    let listing = blocking(&api.core, move |core| {
        let mut all = core.directory.all();
        all.retain(|record| selector.matches(&record.labels));
        all.sort_by(|a, b| (&a.name, a.registered_at).cmp(&(&b.name, b.registered_at)));
        let listing = Listing::read(core)?;
        all.iter().map(|record| listing.shown(core, record)).collect::<Result<_, Refusal>>()
    });
    Ok(Json(List::new("Cluster", listing.await?)))
}

pub(super) async fn get(
    State(api): State<Arc<Api>>,
    Path(cluster): Path<String>,
) -> Answer<Cluster> {
    let shown = blocking(&api.core, move |core| {
        let record = find(core, &cluster)?;
        Listing::read(core)?.shown(core, &record)
    });
    Ok(Json(shown.await?))
}

/// Returns the cluster with this id or name; of several with one name, the one that is not revoked.
fn find(core: &Core, cluster: &str) -> Result<Arc<ClusterRecord>, Refusal> {
    let by_id = cluster.parse().ok().and_then(|id: ClusterId| core.directory.get(&id));
    if let Some(record) = by_id {
        return Ok(record);
    }
    let name = name(cluster)?;
    Ok(core.directory.named(&name).ok_or(JoinError::NoCluster(name))?)
}

/// Like [`find`], but rejects a name that is shared by several clusters.
fn find_only(core: &Core, cluster: &str) -> Result<Arc<ClusterRecord>, Refusal> {
    let found = find(core, cluster)?;
    let all = core.directory.all_named(&found.name);
    if found.id.as_str() == cluster || all.len() == 1 {
        return Ok(found);
    }
    let ids = all.iter().map(|record| format!("{} ({})", record.id, record.state.as_str()));
    let ids = ids.collect::<Vec<_>>().join(", ");
    Err(JoinError::Ambiguous { name: found.name.clone(), count: all.len(), ids }.into())
}

/// State from which any cluster is shown.
struct Listing {
    default_cluster: Option<Name>,
    applications: Vec<Application>,
}

impl Listing {
    fn read(core: &Core) -> Result<Self, Refusal> {
        let applications: Vec<ApplicationRecord> = core.records.all()?;
        Ok(Self {
            default_cluster: rules::default_cluster_name(core)?,
            applications: applications.into_iter().map(|record| record.application).collect(),
        })
    }

    /// Returns the number of applications with a destination in the cluster.
    fn applications_at(&self, cluster: &Name) -> u64 {
        let applications = self.applications.iter();
        applications.filter(|a| a.destinations.iter().any(|d| d.cluster == *cluster)).count() as u64
    }

    fn shown(&self, core: &Core, record: &ClusterRecord) -> Result<Cluster, Refusal> {
        let (connected, age) = core.fleet.presence(&record.id);
        let reported = core.fleet.reported_policy(&record.id);
        let evicted = core.records.is_evicted(record)?;
        Ok(Cluster {
            name: record.name.to_string(),
            id: record.id.clone(),
            state: if evicted { "Evicted" } else { record.state.as_str() }.to_owned(),
            revoked_because: record.revoked_because.clone(),
            connected,
            last_seen_age_ms: age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            environment: reported.map(|reported| reported.policy.environment.to_string()),
            agent_version: record.agent_version.clone(),
            kubernetes_version: record.kubernetes_version.clone(),
            fingerprint: fingerprint_of(record),
            certificate_expires_at: record.certificate_expires_at,
            applications: self.applications_at(&record.name),
            default: self.default_cluster.as_ref() == Some(&record.name),
            registered_at: record.registered_at,
            kube_system_uid: record.kube_system_uid.clone(),
            labels: record.labels.clone(),
        })
    }
}

async fn decide(api: Arc<Api>, cluster: String, decision: Decision) -> Answer<Cluster> {
    let _one_at_a_time = api.registration.one_at_a_time().await;
    let deciding = blocking(&api, move |api| {
        let named = match decision {
            Decision::Remove => find_only(&api.core, &cluster)?,
            Decision::Accept { .. } | Decision::Revoke { .. } | Decision::Evict => {
                find(&api.core, &cluster)?
            }
        };
        let record = api.registration.decide(&named, &decision)?;
        Listing::read(&api.core)?.shown(&api.core, &record)
    });
    Ok(Json(deciding.await?))
}

pub(super) async fn accept(
    State(api): State<Arc<Api>>,
    Path(cluster): Path<String>,
    Body(asked): Body<AcceptRequest>,
) -> Answer<Cluster> {
    decide(api, cluster, Decision::Accept { fingerprint: asked.fingerprint }).await
}

pub(super) async fn revoke(
    State(api): State<Arc<Api>>,
    Path(cluster): Path<String>,
    Body(asked): Body<RevokeRequest>,
) -> Answer<Cluster> {
    decide(api, cluster, Decision::Revoke { because: asked.reason }).await
}

pub(super) async fn label(
    State(api): State<Arc<Api>>,
    Path(cluster): Path<String>,
    Body(asked): Body<LabelsRequest>,
) -> Answer<Cluster> {
    labels::check(&asked.set)?;
    let labelling = blocking(&api, move |api| {
        let named = find(&api.core, &cluster)?;
        let record = api.registration.label(&named, &asked.set, &asked.remove)?;
        Listing::read(&api.core)?.shown(&api.core, &record)
    });
    Ok(Json(labelling.await?))
}

pub(super) async fn evict(
    State(api): State<Arc<Api>>,
    Path(cluster): Path<String>,
) -> Answer<Cluster> {
    decide(api, cluster, Decision::Evict).await
}

pub(super) async fn remove(
    State(api): State<Arc<Api>>,
    Path(cluster): Path<String>,
) -> Answer<Cluster> {
    decide(api, cluster, Decision::Remove).await
}
