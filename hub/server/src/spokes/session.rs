//! The session with one spoke, from its greeting to the end of its connection: one task with one loop.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use attest_certs::PeerIdentity;
use attest_common::basics::ids::{ClusterId, DestinationKey, Digest};
use attest_common::basics::reason::Reason;
use attest_common::basics::text;
use attest_common::session::message::{
    Need, NumberedReport, Renewed, ToHub, ToHubBody, ToSpokeBody,
};
use attest_common::session::report::{REPORT_BYTES_MAX, Report};
use attest_common::session::{SYNC_INTERVAL_MS, UNIDIRECTIONAL_STREAMS_MAX};
use attest_runtime::clock::now;
use attest_runtime::frames;
use quinn::Connection;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::close::CLOSE_REPLACED;
use super::error::LinkError;
use super::greeting::{Greeting, greet};
use super::heartbeat::heartbeat;
use super::limits::NEEDS_MAX;
use super::push::{open, prepare, push, to_spoke};
use super::registration::{check_accepted, cluster_id};
use super::reports::Arrived;
use super::shared::Shared;
use crate::core::Core;
use crate::core::blocking::blocking;
use crate::core::fleet::{Connected, Pending};
use crate::core::position::needs_reissue;

/// Acknowledgements that may wait to be sent on one connection.
const ACKNOWLEDGEMENTS_MAX: usize = 64;

/// Runs the session of `peer` and closes its connection if the session fails.
pub(super) async fn session(shared: &Arc<Shared>, connection: &Connection, peer: &PeerIdentity) {
    let outcome = run_session(shared, connection, peer).await;
    if let Err(error) = outcome {
        let (code, reason) = error.close();
        connection.close(code, reason.as_bytes());
        tracing::info!(
            cluster = peer.id.name(),
            reason = error.reason().as_str(),
            "Session ended: {}",
            text::error_chain(&error)
        );
    }
}

struct Session<'a> {
    shared: &'a Arc<Shared>,
    connection: &'a Connection,
    cluster: ClusterId,
    number: u64,
    nonce: String,
    control: quinn::SendStream,
    /// Pushes in progress. A failed one returns the directive and the blobs that were sent with it.
    pushes: JoinSet<Option<(Pending, Vec<Digest>)>>,
    /// Delays before failed pushes are repeated, at most one for each destination.
    repeats: JoinSet<()>,
}

async fn run_session(
    shared: &Arc<Shared>,
    connection: &Connection,
    peer: &PeerIdentity,
) -> Result<(), LinkError> {
    let core = &shared.core;
    let cluster = cluster_id(peer)?;
    let Greeting { control, mut reader, held, nonce, is_policy_new } =
        greet(shared, (peer, &cluster), connection).await?;
    let Connected { number, wake, replaced } =
        core.fleet.connect(&cluster, connection.clone(), held);
    if let Some(previous) = replaced {
        previous.close(CLOSE_REPLACED, Reason::SessionReplaced.as_str().as_bytes());
    }
    let _presence = Presence { shared, cluster: cluster.clone(), number };
    note_connected(core);
    tracing::info!(cluster = cluster.as_str(), "Spoke connected");
    // A decision during the greeting found no connection to close.
    let record = core.directory.get(&cluster);
    let record = record.ok_or_else(|| LinkError::ClusterUnknown(cluster.clone()))?;
    check_accepted(&record)?;
    for (destination, head) in core.fleet.heads_of(&cluster) {
        let held = core.fleet.position(&destination);
        if held.is_some_and(|held| needs_reissue(&head, held, now())) {
            shared.waker.wake(destination.application.as_str());
        } else {
            shared.waker.wake_status(&destination);
        }
    }
    if is_policy_new {
        shared.waker.wake_cluster(&record.name);
    }
    shared.waker.wake_rollouts(&cluster);

    let (pushes, repeats) = (JoinSet::new(), JoinSet::new());
    let mut session =
        Session { shared, connection, cluster, number, nonce, control, pushes, repeats };
    session.send_heartbeat().await?;
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
                session.send(ToSpokeBody::Acknowledge(number)).await?;
            }
            Some(done) = session.pushes.join_next(), if !session.pushes.is_empty() => {
                if let Ok(Some((pending, sent))) = done {
                    session.repeat_later(pending, &sent);
                }
                session.push_pending().await;
            }
            Some(_) = session.repeats.join_next(), if !session.repeats.is_empty() => {}
            _ = heartbeat.tick() => session.send_heartbeat().await?,
            () = &mut expiry => return Err(LinkError::CertificateExpired),
            () = core.stop.cancelled() => return Err(LinkError::Stopping),
        }
    }
}

/// Removes the session from the fleet when dropped.
struct Presence<'a> {
    shared: &'a Arc<Shared>,
    cluster: ClusterId,
    number: u64,
}

impl Drop for Presence<'_> {
    fn drop(&mut self) {
        self.shared.core.fleet.disconnect(&self.cluster, self.number);
        note_connected(&self.shared.core);
        for (destination, _) in self.shared.core.fleet.heads_of(&self.cluster) {
            self.shared.waker.wake_status(&destination);
        }
        self.shared.waker.wake_rollouts(&self.cluster);
    }
}

fn note_connected(core: &Core) {
    core.metrics.connected.set(i64::try_from(core.fleet.connected()).unwrap_or(i64::MAX));
}

fn invalid_need() -> LinkError {
    LinkError::HelloInvalid("request for blobs")
}

impl Session<'_> {
    async fn send(&mut self, body: ToSpokeBody) -> Result<(), LinkError> {
        Ok(frames::write(&mut self.control, &to_spoke(body)).await?)
    }

    async fn send_heartbeat(&mut self) -> Result<(), LinkError> {
        let (core, counter) = (&self.shared.core, self.shared.next_heartbeat());
        let signed = heartbeat(core, &self.cluster, &self.nonce, counter);
        self.send(ToSpokeBody::Sync(signed.envelope)).await
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
            Some(ToHubBody::Hello(_)) => Err(LinkError::HelloInvalid("second greeting")),
            // A message of a newer protocol.
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
            // From a newer spoke, or malformed: a retry would not help.
            self.shared.core.metrics.reports_unreadable.inc();
            tracing::warn!(
                cluster = self.cluster.as_str(),
                reason = Reason::ReportInvalid.as_str(),
                "Unreadable report from spoke discarded"
            );
            return self.send(ToSpokeBody::Acknowledge(numbered.number)).await;
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
        if need.sha256.len() > NEEDS_MAX {
            return Err(invalid_need());
        }
        let destination = DestinationKey {
            application: need.application.parse().map_err(|_| invalid_need())?,
            cluster: self.cluster.clone(),
            namespace: need.namespace.parse().map_err(|_| invalid_need())?,
        };
        let digests =
            need.sha256.iter().filter_map(|raw| <[u8; 32]>::try_from(raw.as_slice()).ok());
        let digests: Vec<Digest> = digests.map(Digest::from_raw).collect();
        self.shared.core.fleet.spoke_lacks(&destination, &digests);
        Ok(())
    }

    /// Answers with a certificate for the spoke's new key. Its first use invalidates the previous one.
    async fn renew(&mut self, request: Vec<u8>) -> Result<(), LinkError> {
        if !self.shared.renewals.allows(&self.cluster, Instant::now()) {
            return self.send(ToSpokeBody::Renewed(Renewed { chain_der: Vec::new() })).await;
        }
        let cluster = self.cluster.clone();
        let registration = &self.shared.registration;
        let renewed =
            blocking(registration, move |registration| registration.renew(&cluster, &request))
                .await;
        let chain_der = match renewed {
            Ok(chain) => chain,
            Err(error) => {
                tracing::warn!(
                    cluster = self.cluster.as_str(),
                    reason = error.reason().as_str(),
                    "Certificate renewal failed: {}",
                    text::error_chain(&error)
                );
                Vec::new()
            }
        };
        self.send(ToSpokeBody::Renewed(Renewed { chain_der })).await
    }

    /// Sends every directive that the spoke neither holds nor was sent on this connection.
    async fn push_pending(&mut self) {
        for pending in self.shared.core.fleet.pending(&self.cluster, self.number) {
            if self.pushes.len() >= UNIDIRECTIONAL_STREAMS_MAX as usize {
                // The end of a push calls this again.
                return;
            }
            let (core, connection) = (self.shared.core.clone(), self.connection.clone());
            let (permits, number) = (self.shared.pushes.clone(), self.number);
            // Sequential: the first push that needs a blob carries it.
            let blobs = match prepare(&core, number, &pending).await {
                Ok(blobs) => blobs,
                Err(error) => {
                    tracing::error!(
                        destination = pending.destination.to_string(),
                        reason = error.reason().as_str(),
                        "Failed to prepare a push: {}",
                        text::error_chain(&error)
                    );
                    // Recorded as begun, so that it is not pending until the delay is over.
                    core.fleet.begin_push(number, &pending, &[]);
                    self.repeat_later(pending, &[]);
                    continue;
                }
            };
            self.pushes.spawn(async move {
                let pushed = async {
                    // Opened before the permit is taken: a spoke that grants no stream does not occupy a slot.
                    let stream = open(&connection).await?;
                    let _permit = permits.acquire_owned().await;
                    push(&core, stream, &pending, &blobs).await
                };
                let Err(error) = pushed.await else {
                    core.fleet.push_arrived(number, &pending);
                    return None;
                };
                tracing::info!(
                    destination = pending.destination.to_string(),
                    reason = error.reason().as_str(),
                    "Push failed: {}",
                    text::error_chain(&error)
                );
                let sent: Vec<Digest> = blobs.iter().map(|blob| blob.digest).collect();
                Some((pending, sent))
            });
        }
    }

    /// Schedules a failed push again. Waiting does not occupy a push slot.
    fn repeat_later(&mut self, pending: Pending, sent: &[Digest]) {
        let (core, number) = (self.shared.core.clone(), self.number);
        let Some(wait) = core.fleet.push_failed(number, &pending, sent) else { return };
        self.repeats.spawn(async move {
            tokio::time::sleep(wait).await;
            core.fleet.push_may_be_repeated(number, &pending);
        });
    }
}
