//! A session: one spoke, from its greeting to the end of its connection. One task, one loop.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use attest_certs::PeerIdentity;
use attest_common::basics::ids::{ClusterId, DestinationKey, Digest};
use attest_common::basics::text;
use attest_common::session::frame::FRAME_BYTES_MAX;
use attest_common::session::message::{
    Hello, Need, NumberedReport, Renewed, Seen, ToHub, ToHubBody, ToSpoke, ToSpokeBody, Welcome,
};
use attest_common::session::report::{REPORT_BYTES_MAX, Report};
use attest_common::session::{SYNC_INTERVAL_MS, UNIDIRECTIONAL_STREAMS_MAX, negotiate};
use attest_common::trust::policy;
use attest_runtime::clock::now;
use attest_runtime::frames::{self, FrameReader};
use quinn::Connection;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::LinkError;
use super::listener::{
    HELLO_DESTINATIONS_MAX, NEEDS_MAX, POLICY_BYTES_MAX, Shared, cluster_id, greeting_timeout,
};
use super::push::{open, prepare, push};
use super::registration;
use super::reports::Arrived;
use crate::core::fleet::Pending;
use crate::core::store::records::{self, ClusterRecord, ClusterState, PolicyRecord};
use crate::process::hub::Hub;
use crate::reconcile::planner::{
    Held, Hint, is_believable, is_of_a_forgotten_term, is_overtaken, needs_again,
};

/// Acknowledgements that may wait to be sent on one connection.
const ACKNOWLEDGEMENTS_MAX: usize = 64;
/// How many reconnects a second the hub likes to see.
const RECONNECTS_PER_SECOND: u64 = 500;
/// Narrowest window over which spokes spread their reconnects.
const RECONNECT_WINDOW_MIN_MS: u64 = 1_000;

/// One spoke, from its greeting to the end of its connection.
pub(super) async fn session(
    hub: &Arc<Hub>,
    shared: &Arc<Shared>,
    connection: &Connection,
    peer: &PeerIdentity,
) {
    let outcome = run_session(hub, shared, connection, peer).await;
    if let Err(error) = outcome {
        let (code, reason) = error.close();
        connection.close(code, reason.as_bytes());
        tracing::info!(
            cluster = peer.id.name(),
            reason = error.reason(),
            "A session ended: {}",
            text::error_chain(&error)
        );
    }
}

struct Session<'a> {
    hub: &'a Arc<Hub>,
    shared: &'a Arc<Shared>,
    connection: &'a Connection,
    cluster: ClusterId,
    number: u64,
    nonce: String,
    control: quinn::SendStream,
    /// Pushes under way; each ends with what is to be sent again, and the blobs that went with it.
    pushes: JoinSet<Option<(Pending, Vec<Digest>)>>,
    /// Waits before pushes that failed are repeated: at most one a destination.
    repeats: JoinSet<()>,
}

async fn run_session(
    hub: &Arc<Hub>,
    shared: &Arc<Shared>,
    connection: &Connection,
    peer: &PeerIdentity,
) -> Result<(), LinkError> {
    let cluster = cluster_id(peer)?;
    let greeting = async {
        let (mut control, receive) = connection.accept_bi().await.map_err(LinkError::Connection)?;
        let mut reader = FrameReader::new(receive, FRAME_BYTES_MAX);
        let first: ToHub = reader.next().await?.ok_or(LinkError::Silent)?;
        let Some(ToHubBody::Hello(hello)) = first.body else {
            return Err(LinkError::HelloInvalid("the first message"));
        };
        let (held, nonce) = read_hello(&cluster, &hello)?;
        let protocol = negotiate(hello.protocol_min, hello.protocol_max)
            .ok_or(LinkError::ProtocolVersion(hello.protocol_min, hello.protocol_max))?;
        let held = believed(hub, shared, &cluster, held).await?;
        let is_news = introduce(hub, shared, &cluster, hello).await?;
        let welcome = Welcome {
            protocol,
            hub_version: env!("CARGO_PKG_VERSION").to_owned(),
            reconnect_window_ms: reconnect_window_ms(hub.fleet.connected()),
        };
        frames::write(&mut control, &to_spoke(ToSpokeBody::Welcome(welcome))).await?;
        Ok((control, reader, held, nonce, is_news))
    };
    let greeted = tokio::time::timeout(greeting_timeout(), greeting).await;
    let (control, mut reader, held, nonce, is_news) = greeted.map_err(|_| LinkError::Silent)??;
    let (number, wake) = hub.fleet.connect(&cluster, connection.clone(), held);
    let _presence = Presence { hub, cluster: cluster.clone(), number };
    note_connected(hub);
    tracing::info!(cluster = cluster.as_str(), "A spoke is connected");
    // A verdict that fell while this session was greeted found no connection to close.
    let record = hub.directory.get(&cluster).filter(|r| r.state == ClusterState::Accepted);
    let record = record.ok_or_else(|| LinkError::ClusterRevoked(cluster.clone()))?;
    for (destination, head) in hub.fleet.heads_of(&cluster) {
        let held = hub.fleet.held(&destination);
        if held.is_some_and(|held| needs_again(&head, held, now())) {
            hub.pipeline.wake(destination.application.as_str());
        } else {
            hub.pipeline.wake_status(destination.application.as_str());
        }
    }
    if is_news {
        hub.pipeline.wake_cluster(&record.name);
    }

    let (pushes, repeats) = (JoinSet::new(), JoinSet::new());
    let mut session =
        Session { hub, shared, connection, cluster, number, nonce, control, pushes, repeats };
    session.sync().await?;
    let (acknowledge, mut acknowledged) = mpsc::channel(ACKNOWLEDGEMENTS_MAX);
    let mut heartbeat = tokio::time::interval(Duration::from_millis(SYNC_INTERVAL_MS));
    heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    heartbeat.reset();
    let left = peer.not_after.duration_since(SystemTime::now()).unwrap_or_default();
    let expiry = tokio::time::sleep(left);
    tokio::pin!(expiry);
    session.push_pending().await;
    loop {
        tokio::select! {
            frame = reader.next::<ToHub>() => match frame? {
                Some(frame) => session.receive(frame, &acknowledge).await?,
                None => return Ok(()),
            },
            () = wake.notified() => session.push_pending().await,
            Some(number) = acknowledged.recv() => {
                session.say(ToSpokeBody::Acknowledge(number)).await?;
            }
            Some(done) = session.pushes.join_next(), if !session.pushes.is_empty() => {
                if let Ok(Some((pending, sent))) = done {
                    session.repeat_later(pending, &sent);
                }
                session.push_pending().await;
            }
            Some(_) = session.repeats.join_next(), if !session.repeats.is_empty() => {}
            _ = heartbeat.tick() => session.sync().await?,
            () = &mut expiry => return Err(LinkError::CertificateExpired),
            () = hub.stop.cancelled() => return Err(LinkError::Stopping),
        }
    }
}

/// Takes the session out of the fleet, however it ends.
struct Presence<'a> {
    hub: &'a Arc<Hub>,
    cluster: ClusterId,
    number: u64,
}

impl Drop for Presence<'_> {
    fn drop(&mut self) {
        self.hub.fleet.disconnect(&self.cluster, self.number);
        note_connected(self.hub);
        for (destination, _) in self.hub.fleet.heads_of(&self.cluster) {
            self.hub.pipeline.wake_status(destination.application.as_str());
        }
    }
}

fn note_connected(hub: &Hub) {
    hub.metrics.connected.set(i64::try_from(hub.fleet.connected()).unwrap_or(i64::MAX));
}

fn reconnect_window_ms(connected: usize) -> u64 {
    (connected as u64 * 1_000 / RECONNECTS_PER_SECOND).max(RECONNECT_WINDOW_MIN_MS)
}

pub(super) fn to_spoke(body: ToSpokeBody) -> ToSpoke {
    ToSpoke { body: Some(body) }
}

type HeldBy = BTreeMap<DestinationKey, Held>;

fn read_hello(cluster: &ClusterId, hello: &Hello) -> Result<(HeldBy, String), LinkError> {
    if hello.cluster_id != cluster.as_str() {
        return Err(LinkError::HelloInvalid("cluster_id"));
    }
    if hello.nonce.len() != 16 {
        return Err(LinkError::HelloInvalid("nonce"));
    }
    if hello.policy.len() > POLICY_BYTES_MAX || hello.destinations.len() > HELLO_DESTINATIONS_MAX {
        return Err(LinkError::HelloInvalid("its size"));
    }
    let mut held = BTreeMap::new();
    for seen in &hello.destinations {
        let wrong = |_| LinkError::HelloInvalid("destinations");
        let destination = DestinationKey {
            application: seen.application.parse().map_err(wrong)?,
            cluster: cluster.clone(),
            namespace: seen.namespace.parse().map_err(wrong)?,
        };
        let digest = <[u8; 32]>::try_from(seen.directive.as_slice()).ok().map(Digest::from_raw);
        let Seen { epoch, sequence, .. } = *seen;
        held.insert(destination, Held { epoch, sequence, digest });
    }
    Ok((held, data_encoding::HEXLOWER.encode(&hello.nonce)))
}

/// What a spoke holds, without what no hub of this fleet can have ordered. When some of it is of a term
/// that this hub has forgotten, a term above that is durable before this returns.
async fn believed(
    hub: &Arc<Hub>,
    shared: &Shared,
    cluster: &ClusterId,
    claimed: HeldBy,
) -> Result<HeldBy, LinkError> {
    let epoch = hub.epoch();
    let (mut held, lies): (HeldBy, HeldBy) =
        claimed.into_iter().partition(|(destination, held)| {
            is_believable(*held, hub.fleet.head(destination).as_deref(), epoch)
        });
    if let Some((destination, held)) = lies.first_key_value() {
        tracing::warn!(
            destination = destination.to_string(),
            reason = "HeldUnbelievable",
            epoch = held.epoch,
            sequence = held.sequence,
            destinations = lies.len(),
            "A spoke says it holds numbers that no hub has come to; they are not believed"
        );
    }
    let is_beyond = |destination: &DestinationKey, held: &Held| {
        let head = hub.fleet.head(destination);
        is_of_a_forgotten_term(*held, head.as_deref(), epoch)
            || head.is_some_and(|head| is_overtaken(&head, *held))
    };
    if held.iter().any(|(destination, held)| is_beyond(destination, held))
        && !shared.claims.allows(cluster, Instant::now())
    {
        tracing::warn!(
            cluster = cluster.as_str(),
            reason = "HeldTooOften",
            "A spoke says again and again that it holds what this hub has forgotten; it is not believed for now"
        );
        held.retain(|destination, held| !is_beyond(destination, held));
    }
    let forgotten = held.iter().filter(|(destination, held)| {
        is_of_a_forgotten_term(**held, hub.fleet.head(destination).as_deref(), epoch)
    });
    if let Some(seen) = forgotten.map(|(_, held)| held.epoch).max() {
        hub.blocking(move |hub| hub.go_above_epoch(seen)).await?;
    }
    Ok(held)
}

/// Keeps what a spoke says of itself: versions, and its policy as a hint. True when the policy is news. What changes
/// too often counts all the same, but is durable only with a later greeting: a hub that starts anew is greeted by all.
async fn introduce(
    hub: &Arc<Hub>,
    shared: &Arc<Shared>,
    cluster: &ClusterId,
    hello: Hello,
) -> Result<bool, LinkError> {
    let (shared, cluster) = (shared.clone(), cluster.clone());
    hub.blocking(move |hub| {
        let writing = hub.directory.writing();
        let stored = hub.records.stored::<ClusterRecord>(cluster.as_str())?;
        let Some(stored) = stored else { return Err(LinkError::ClusterUnknown(cluster)) };
        let short = |text: &str| Some(text.chars().take(80).collect::<String>());
        let record = ClusterRecord {
            agent_version: short(&hello.agent_version),
            kubernetes_version: short(&hello.kubernetes_version),
            ..stored.value.clone()
        };
        let mut changes = Vec::new();
        if record != stored.value {
            changes.push(records::replace(&stored, &record));
        }
        let spec: Option<policy::Spec> = attest_common::basics::json::document(&hello.policy).ok();
        let hint = spec.and_then(|spec| {
            let policy = spec.load().ok()?;
            Some(Hint { spec, policy })
        });
        let mut is_news = false;
        if let Some(hint) = hint {
            let policy = PolicyRecord { cluster: cluster.clone(), spec: hint.spec.clone() };
            let former: Option<PolicyRecord> = hub.records.get(cluster.as_str())?;
            if former.as_ref() != Some(&policy) {
                changes.push(records::put(&policy));
            }
            is_news = hub.fleet.hint(&cluster).is_none_or(|former| former.spec != hint.spec);
            hub.fleet.set_hint(&cluster, hint);
        } else {
            tracing::warn!(
                cluster = cluster.as_str(),
                reason = "TrustPolicyInvalid",
                "A spoke says no policy that this hub can read; its former one is used"
            );
        }
        if changes.is_empty() {
            return Ok(is_news);
        }
        if shared.introductions.allows(&cluster, Instant::now()) {
            hub.records.commit("introduction", &changes)?;
            writing.note(&record);
        } else {
            tracing::warn!(
                cluster = cluster.as_str(),
                reason = "IntroducedTooOften",
                "A spoke says something new of itself again and again; it is not written for now"
            );
        }
        Ok(is_news)
    })
    .await
}

impl Session<'_> {
    async fn say(&mut self, body: ToSpokeBody) -> Result<(), LinkError> {
        Ok(frames::write(&mut self.control, &to_spoke(body)).await?)
    }

    async fn sync(&mut self) -> Result<(), LinkError> {
        let signed = self.hub.sync_for(&self.cluster, &self.nonce);
        self.say(ToSpokeBody::Sync(signed.envelope)).await
    }

    async fn receive(
        &mut self,
        frame: ToHub,
        acknowledge: &mpsc::Sender<u64>,
    ) -> Result<(), LinkError> {
        match frame.body {
            Some(ToHubBody::Report(report)) => self.report(report, acknowledge).await,
            Some(ToHubBody::Need(need)) => self.need(&need),
            Some(ToHubBody::Renew(request)) => self.renew(request).await,
            Some(ToHubBody::Hello(_)) => Err(LinkError::HelloInvalid("a second one")),
            // A word of a newer spoke.
            None => Ok(()),
        }
    }

    async fn report(
        &mut self,
        numbered: NumberedReport,
        acknowledge: &mpsc::Sender<u64>,
    ) -> Result<(), LinkError> {
        let fits = numbered.report.len() <= REPORT_BYTES_MAX;
        let read = fits.then(|| serde_json::from_slice::<Report>(&numbered.report).ok()).flatten();
        let Some(report) = read else {
            // A word of a newer spoke, or a broken one. Sent again it would read no better.
            self.hub.metrics.reports_unreadable.inc();
            tracing::warn!(
                cluster = self.cluster.as_str(),
                reason = "ReportInvalid",
                "A report cannot be read by this hub; it is set aside"
            );
            return self.say(ToSpokeBody::Acknowledge(numbered.number)).await;
        };
        let arrived = Arrived {
            cluster: self.cluster.clone(),
            report,
            at: Instant::now(),
            number: numbered.number,
            acknowledge: acknowledge.clone(),
        };
        self.shared.reports.take(arrived).await;
        Ok(())
    }

    fn need(&self, need: &Need) -> Result<(), LinkError> {
        let wrong = |_| LinkError::HelloInvalid("a need");
        if need.sha256.len() > NEEDS_MAX {
            return Err(LinkError::HelloInvalid("a need"));
        }
        let destination = DestinationKey {
            application: need.application.parse().map_err(wrong)?,
            cluster: self.cluster.clone(),
            namespace: need.namespace.parse().map_err(wrong)?,
        };
        let digests =
            need.sha256.iter().filter_map(|raw| <[u8; 32]>::try_from(raw.as_slice()).ok());
        let digests: Vec<Digest> = digests.map(Digest::from_raw).collect();
        self.hub.fleet.spoke_lacks(&destination, &digests);
        Ok(())
    }

    /// A new certificate for the spoke's new key; the former one ends when this one is first used.
    async fn renew(&mut self, request: Vec<u8>) -> Result<(), LinkError> {
        if !self.shared.renewals.allows(&self.cluster, Instant::now()) {
            return self.say(ToSpokeBody::Renewed(Renewed { chain_der: Vec::new() })).await;
        }
        let cluster = self.cluster.clone();
        let renewed =
            self.hub.blocking(move |hub| registration::renew(hub, &cluster, &request)).await;
        let chain_der = match renewed {
            Ok(chain) => chain,
            Err(error) => {
                tracing::warn!(
                    cluster = self.cluster.as_str(),
                    reason = error.reason(),
                    "A certificate was not renewed: {}",
                    text::error_chain(&error)
                );
                Vec::new()
            }
        };
        self.say(ToSpokeBody::Renewed(Renewed { chain_der })).await
    }

    /// Sends every directive that the spoke neither holds nor was sent on this connection.
    async fn push_pending(&mut self) {
        for pending in self.hub.fleet.pending(&self.cluster, self.number) {
            if self.pushes.len() >= UNIDIRECTIONAL_STREAMS_MAX as usize {
                // The end of one of them comes back here.
                return;
            }
            let (hub, connection) = (self.hub.clone(), self.connection.clone());
            let (permits, number) = (self.shared.pushes.clone(), self.number);
            // The order of begin_push decides which push carries a blob that several need.
            let blobs = match prepare(&hub, number, &pending).await {
                Ok(blobs) => blobs,
                Err(error) => {
                    tracing::error!(
                        destination = pending.destination.to_string(),
                        reason = error.reason(),
                        "A directive cannot be sent: {}",
                        text::error_chain(&error)
                    );
                    // Not asked for again before the wait is over.
                    hub.fleet.begin_push(number, &pending, &[]);
                    self.repeat_later(pending, &[]);
                    continue;
                }
            };
            self.pushes.spawn(async move {
                let pushed = async {
                    // A spoke that grants no stream takes nobody's place.
                    let stream = open(&connection).await?;
                    let _permit = permits.acquire_owned().await;
                    push(&hub, stream, &pending, &blobs).await
                };
                let Err(error) = pushed.await else {
                    hub.fleet.push_arrived(number, &pending);
                    return None;
                };
                tracing::info!(
                    destination = pending.destination.to_string(),
                    reason = error.reason(),
                    "A push did not arrive: {}",
                    text::error_chain(&error)
                );
                let sent: Vec<Digest> = blobs.iter().map(|blob| blob.digest).collect();
                Some((pending, sent))
            });
        }
    }

    /// Sends again, after a wait, what did not arrive. It waits in no place that another push could have.
    fn repeat_later(&mut self, pending: Pending, sent: &[Digest]) {
        let (hub, number) = (self.hub.clone(), self.number);
        let Some(wait) = hub.fleet.push_failed(number, &pending, sent) else { return };
        self.repeats.spawn(async move {
            tokio::time::sleep(wait).await;
            hub.fleet.push_may_be_repeated(number, &pending);
        });
    }
}
