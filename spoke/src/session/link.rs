//! The session with the hub: connection, greeting, and transfer of pushes and reports. Verifies heartbeats only.
//!
//! Pushes go to the agent (`admission`), which judges them; reports come from `outbox`. Nothing here changes
//! the cluster. The loss of the hub affects only the age of the last sync.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use attest_certs::{Bundle, tls};
use attest_common::basics::locked::Locked;
use attest_common::basics::rate::RateLimiter;
use attest_common::basics::text::error_chain;
use attest_common::record::DestinationRecords;
use attest_common::session::frame::FRAME_BYTES_MAX;
use attest_common::session::message::{
    Hello, Need, NumberedReport, Seen, ToHub, ToHubBody, ToSpoke, ToSpokeBody, Welcome,
};
use attest_common::session::{
    CLOSE_NOT_ADMITTED, FEATURES, GREETING_TIMEOUT_MS, PROCESS_ID_BYTES, PROTOCOL_VERSION,
    PROTOCOL_VERSION_MIN, negotiate,
};
use attest_common::verify::{self, Ages};
use attest_runtime::frames::{self, FrameReader};
use data_encoding::HEXLOWER;
use quinn::{Connection, SendStream, VarInt};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use super::freshness::Freshness;
use super::outbox::{Deliveries, Outbox};
use super::push::{self, Pushed, Room};
use super::quic::{self, LinkError, pins};
use super::renewal::Renewal;
use super::token;
use crate::cluster::client::ApiServer;
use crate::metrics::Metrics;
use crate::trust::identity::{Identity, Tls};
use crate::trust::policy::{Loaded, Trust};

/// Most pushes that wait to be judged.
pub const PUSHES_MAX: usize = 2;
/// Most pushes whose blobs are assembled concurrently; others wait in the transport's windows.
pub const PUSHES_ARRIVING_MAX: usize = 2;
/// Longest time from the start to the end of reading a push.
pub const PUSH_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest window over which a hub may spread reconnects, in milliseconds.
pub const RECONNECT_WINDOW_MAX_MS: u64 = 10 * 60 * 1000;
/// Interval of the check for overdue reports and renewal.
const TICK: Duration = Duration::from_secs(5);
/// Longest version of a hub that is logged, in characters.
const HUB_VERSION_CHARACTERS_MAX: usize = 80;
/// Most consecutive messages that this build does not know.
pub const UNKNOWN_IN_A_ROW_MAX: u32 = 64;
/// Application code of an intended close.
const CLOSE_NORMAL: u32 = 0;

/// Parts of the spoke that a session uses.
#[derive(Debug)]
pub struct Link {
    pub hub: String,
    pub api: ApiServer,
    pub identity: Identity,
    /// Random bytes that tell this process from another with a copy of its identity.
    pub process_id: Vec<u8>,
    pub trust: watch::Receiver<Trust>,
    pub outbox: Outbox,
    pub pushes: mpsc::Sender<Pushed>,
    pub seen: SeenSource,
    pub metrics: Metrics,
    pub freshness: Freshness,
    pub kubernetes_version: String,
    pub room: Room,
    /// Time of the last request for a renewal, in this session or an earlier one.
    pub renewal_asked_at: Option<Instant>,
    /// True until the join token is deleted that an earlier process may have used.
    pub may_hold_token: bool,
    /// Limits the log lines about unreadable or invalid messages.
    pub refusal_limiter: RateLimiter,
    /// Limits how often the start of a session resets the reconnect delay.
    pub session_limiter: RateLimiter,
}

/// The current list of recorded destinations, for `Hello`.
#[derive(Clone, Debug, Default)]
pub struct SeenSource(Arc<Locked<Vec<Seen>>>);

impl SeenSource {
    /// Replaces the list.
    pub fn set(&self, seen: Vec<Seen>) {
        *self.0.lock() = seen;
    }

    fn get(&self) -> Vec<Seen> {
        self.0.lock().clone()
    }
}

/// A value that cannot exist: a session ends with an error only.
#[derive(Debug)]
pub enum Never {}

impl Link {
    /// Runs one session until it ends or the policy changes: no behaviour of a hub may keep this spoke from
    /// the hub that its policy pins now.
    ///
    /// # Errors
    /// Always ends with a [`LinkError`], the reason of its end.
    pub async fn session(
        &mut self,
        attempt: &mut u32,
        window_ms: &mut u64,
    ) -> Result<Never, LinkError> {
        let loaded = self.loaded().await;
        let trust = self.trust.clone();
        tokio::select! {
            biased;
            () = changed(trust, &loaded) => Err(LinkError::PolicyChanged),
            outcome = self.connect(&loaded, (attempt, window_ms)) => outcome,
        }
    }

    async fn connect(
        &mut self,
        loaded: &Arc<Loaded>,
        attempt: (&mut u32, &mut u64),
    ) -> Result<Never, LinkError> {
        self.identity.refresh(&self.api).await;
        let bundle = match &self.identity.tls {
            Some(tls) => tls.bundle.clone(),
            None => return Err(LinkError::Closed("this spoke has not joined".to_owned())),
        };
        let tls = tls::spoke_session(&pins(loaded)?, &bundle).map_err(LinkError::Tls)?;
        let (endpoint, connection) = quic::dial(&self.hub, tls).await?;
        let outcome = self.run_session(&connection, loaded, &bundle, attempt).await;
        // Read before this end closes, which would hide the reason.
        let outcome = outcome.map_err(|error| closed(&connection, error));
        connection.close(VarInt::from_u32(CLOSE_NORMAL), b"");
        // So that the hub receives the close.
        let _ = tokio::time::timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
        outcome
    }

    async fn loaded(&mut self) -> Arc<Loaded> {
        loop {
            if let Ok(loaded) = self.trust.borrow_and_update().loaded() {
                return Arc::clone(loaded);
            }
            if self.trust.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    async fn run_session(
        &mut self,
        connection: &Connection,
        loaded: &Arc<Loaded>,
        bundle: &Bundle,
        (attempt, window_ms): (&mut u32, &mut u64),
    ) -> Result<Never, LinkError> {
        let nonce = nonce();
        let hello = to_hub(ToHubBody::Hello(self.hello(&nonce, loaded)));
        let limit = Duration::from_millis(GREETING_TIMEOUT_MS);
        let greeted = tokio::time::timeout(limit, greet(connection, &hello)).await;
        let (mut control, mut reader, welcome) = greeted.map_err(|_| LinkError::TimedOut)??;
        let Welcome { protocol, hub_version, reconnect_window_ms } = welcome;
        if negotiate(protocol, protocol).is_none() {
            return Err(LinkError::Protocol(protocol));
        }
        if self.session_limiter.allows(Instant::now()) {
            *attempt = 0;
        }
        *window_ms = reconnect_window_ms.min(RECONNECT_WINDOW_MAX_MS);
        self.metrics.connected.set(1);
        self.metrics.connections.inc();
        let hub_version = plain(&hub_version, HUB_VERSION_CHARACTERS_MAX);
        tracing::info!(hub = %self.hub, hub_version, protocol, "Connected to the hub");
        // Not earlier: it replaces a certificate that the hub rejects.
        if self.may_hold_token {
            token::forget(&self.api).await;
            self.may_hold_token = false;
        }

        let mut judged = Heartbeats { nonce: HEXLOWER.encode(&nonce), counter: 0 };
        let mut deliveries = Deliveries::default();
        let mut renewal = Renewal::of(bundle, self.renewal_asked_at);
        let mut tick = tokio::time::interval(TICK);
        let arriving = Arc::new(Semaphore::new(PUSHES_ARRIVING_MAX));
        // Ends with the session: the hub sends incomplete pushes again.
        let mut receiving = JoinSet::new();
        // Messages of the hub cause no sending.
        let (mut is_due, mut unknown) = (true, 0);
        loop {
            if std::mem::take(&mut is_due) {
                self.send_due(&mut control, &mut deliveries).await?;
            }
            tokio::select! {
                message = reader.next::<ToSpoke>() => {
                    let message = message?;
                    let Some(message) = message else {
                        return Err(LinkError::Closed("it finished the control stream".to_owned()));
                    };
                    check_known(&message, &mut unknown)?;
                    self.handle_message(message, &mut judged, &mut deliveries, &mut renewal).await?;
                }
                stream = connection.accept_uni() => {
                    let stream = stream.map_err(LinkError::Connection)?;
                    // The number of tasks is bounded by the streams that the transport grants the hub.
                    let reader = FrameReader::new(stream, FRAME_BYTES_MAX);
                    let (arriving, room) = (Arc::clone(&arriving), self.room.clone());
                    let (pushes, limiter) = (self.pushes.clone(), self.refusal_limiter.clone());
                    receiving.spawn(receive(reader, (arriving, room), pushes, limiter));
                }
                Some(_) = receiving.join_next(), if !receiving.is_empty() => {}
                () = self.outbox.changed() => is_due = true,
                _ = tick.tick() => {
                    is_due = true;
                    if *attempt > 0 && self.session_limiter.allows(Instant::now()) {
                        *attempt = 0;
                    }
                    if let Some(request) = renewal.due(SystemTime::now(), Instant::now()) {
                        self.renewal_asked_at = renewal.asked_at;
                        frames::write(&mut control, &to_hub(ToHubBody::Renew(request))).await?;
                    }
                }
            }
        }
    }

    /// Updates the metric of the certificate's expiry, with or without a session.
    pub(crate) fn note_certificate(&self) {
        let ends = self.identity.tls.as_ref().and_then(Tls::expires_at);
        self.metrics.certificate_expires(ends.and_then(|at| jiff::Timestamp::try_from(at).ok()));
    }

    fn hello(&self, nonce: &[u8; 16], loaded: &Loaded) -> Hello {
        Hello {
            protocol_min: PROTOCOL_VERSION_MIN,
            protocol_max: PROTOCOL_VERSION,
            cluster_id: self.identity.cluster.to_string(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            nonce: nonce.to_vec(),
            policy: loaded.spec_json.clone(),
            destinations: self.seen.get(),
            kubernetes_version: self.kubernetes_version.clone(),
            features: FEATURES.map(str::to_owned).to_vec(),
            process_id: self.process_id.clone(),
        }
    }

    async fn send_due(
        &self,
        control: &mut SendStream,
        deliveries: &mut Deliveries,
    ) -> Result<(), LinkError> {
        for ((application, namespace), blobs) in self.outbox.take_needs() {
            let need = Need {
                application: application.to_string(),
                namespace: namespace.to_string(),
                sha256: blobs.iter().map(|digest| digest.raw().to_vec()).collect(),
            };
            frames::write(control, &to_hub(ToHubBody::Need(need))).await?;
        }
        for (number, report) in deliveries.due(&self.outbox, Instant::now()) {
            let report = NumberedReport { number, report: report.to_vec() };
            frames::write(control, &to_hub(ToHubBody::Report(report))).await?;
        }
        Ok(())
    }

    async fn handle_message(
        &mut self,
        message: ToSpoke,
        judged: &mut Heartbeats,
        deliveries: &mut Deliveries,
        renewal: &mut Renewal,
    ) -> Result<(), LinkError> {
        match message.body {
            Some(ToSpokeBody::Sync(envelope)) => self.handle_sync(&envelope, judged),
            Some(ToSpokeBody::Acknowledge(number)) => deliveries.acknowledge(number),
            Some(ToSpokeBody::Renewed(renewed)) => {
                let bundle =
                    renewal.renewed(renewed.chain_der, &self.trust.borrow(), &self.identity);
                if let Some(bundle) = bundle {
                    match self.identity.store_tls(&self.api, bundle).await {
                        Ok(()) => return Err(LinkError::Renewed),
                        Err(error) => tracing::warn!(
                            reason = error.reason().as_str(),
                            error = %error_chain(&error),
                            "Failed to store the renewed certificate"
                        ),
                    }
                }
            }
            Some(ToSpokeBody::Welcome(_) | ToSpokeBody::Blob(_) | ToSpokeBody::Directive(_)) => {
                return Err(LinkError::Unexpected {
                    got: "a greeting or push",
                    expected: "a control message",
                });
            }
            // A message that this build does not know.
            None => {}
        }
        Ok(())
    }

    fn handle_sync(&self, envelope: &[u8], judged: &mut Heartbeats) {
        let Ok(loaded) = self.trust.borrow().loaded().cloned() else { return };
        let records = DestinationRecords::new();
        let spoke = verify::SpokeContext {
            policy: &loaded.policy,
            cluster: &self.identity.cluster,
            records: &records,
            now: jiff::Timestamp::now(),
            ages: Ages::Enforce,
        };
        match verify::sync(envelope, &spoke, &judged.nonce, judged.counter) {
            Ok(sync) => {
                judged.counter = sync.counter;
                self.freshness.mark(Instant::now());
                tracing::debug!(counter = sync.counter, heads = sync.heads.len(), "Sync verified");
            }
            Err(error) => {
                self.metrics.refused(&error.reason().into());
                if self.refusal_limiter.allows(Instant::now()) {
                    tracing::warn!(
                        reason = error.reason().as_str(),
                        error = %error_chain(&error),
                        "Rejected a sync of the hub"
                    );
                }
            }
        }
    }
}

struct Heartbeats {
    nonce: String,
    counter: u64,
}

/// Counts consecutive unknown messages: a newer hub may send some; a hub that sends nothing else is disconnected.
fn check_known(message: &ToSpoke, unknown: &mut u32) -> Result<(), LinkError> {
    *unknown = if message.body.is_some() { 0 } else { *unknown + 1 };
    if *unknown > UNKNOWN_IN_A_ROW_MAX {
        let max = UNKNOWN_IN_A_ROW_MAX as usize;
        return Err(LinkError::TooManyUnknown { max });
    }
    Ok(())
}

/// Shortens text of a peer and removes control characters, for a log line.
fn plain(text: &str, characters_max: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(characters_max).collect()
}

/// Waits until another policy is loaded than the one that this session uses.
async fn changed(mut trust: watch::Receiver<Trust>, loaded: &Loaded) {
    while trust.changed().await.is_ok() {
        let same = trust.borrow().loaded().is_ok_and(|now| now.spec_json == loaded.spec_json);
        if !same {
            return;
        }
    }
    // Happens only when the process ends.
    std::future::pending().await
}

/// Opens the control stream, sends `Hello` and reads `Welcome`. The caller limits the time.
async fn greet(
    connection: &Connection,
    hello: &ToHub,
) -> Result<(SendStream, FrameReader, Welcome), LinkError> {
    let (mut control, received) = connection.open_bi().await.map_err(LinkError::Connection)?;
    let mut reader = FrameReader::new(received, FRAME_BYTES_MAX);
    frames::write(&mut control, hello).await?;
    let message = reader.next::<ToSpoke>().await?;
    match message.and_then(|message| message.body) {
        Some(ToSpokeBody::Welcome(welcome)) => Ok((control, reader, welcome)),
        Some(_) | None => {
            Err(LinkError::Unexpected { got: "something else", expected: "a welcome" })
        }
    }
}

async fn receive(
    mut reader: FrameReader,
    (arriving, room): (Arc<Semaphore>, Room),
    pushes: mpsc::Sender<Pushed>,
    limiter: RateLimiter,
) {
    let Ok(_turn) = arriving.acquire().await else { return };
    let received = tokio::time::timeout(PUSH_TIMEOUT, push::receive(&mut reader, &room)).await;
    match received.unwrap_or(Err(LinkError::TimedOut)) {
        Ok(pushed) => {
            // Closed only when the process ends.
            let _ = pushes.send(pushed).await;
        }
        Err(error) if limiter.allows(Instant::now()) => tracing::warn!(
            reason = error.reason().as_str(),
            error = %error_chain(&error),
            "Failed to read a push of the hub"
        ),
        Err(_) => {}
    }
}

fn to_hub(body: ToHubBody) -> ToHub {
    ToHub { body: Some(body) }
}

/// Returns the hub's reason if it closed the connection, instead of the reset that followed.
fn closed(connection: &Connection, error: LinkError) -> LinkError {
    match connection.close_reason() {
        Some(quinn::ConnectionError::ApplicationClosed(close)) => {
            let reason =
                attest_common::basics::text::message(&String::from_utf8_lossy(&close.reason));
            if close.error_code == VarInt::from_u32(CLOSE_NOT_ADMITTED) {
                LinkError::ClusterRejected(reason)
            } else {
                LinkError::Closed(reason)
            }
        }
        Some(_) | None => error,
    }
}

fn nonce() -> [u8; 16] {
    let mut nonce = [0; 16];
    // Without randomness no sync is accepted, which is safe.
    let _ = getrandom::fill(&mut nonce);
    nonce
}

/// Returns random bytes for [`Link::process_id`]; empty without randomness, so that no two processes look like one.
pub fn new_process_id() -> Vec<u8> {
    let mut id = vec![0; PROCESS_ID_BYTES];
    if getrandom::fill(&mut id).is_ok() { id } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::stubborn_hub::{StubbornHub, member};
    use crate::trust::policy::tests::object;

    #[tokio::test]
    async fn a_hub_that_grants_no_stream_does_not_keep_the_spoke_from_the_next_one() {
        let hub = StubbornHub::granting(0);
        let (mut link, told, _fake) = member(&hub).await;
        let (mut attempt, mut window_ms) = (0, 0);
        let mut session = Box::pin(link.session(&mut attempt, &mut window_ms));
        let waiting = tokio::time::timeout(Duration::from_millis(300), &mut session).await;
        assert!(waiting.is_err(), "the hub does not answer");

        told.send_replace(Trust::of(&object(), "uid-1"));

        let ended = tokio::time::timeout(Duration::from_secs(2), session).await;
        let Err(error) = ended.unwrap();
        assert_eq!(error.reason().as_str(), "PolicyChanged");
    }

    #[test]
    fn messages_of_a_newer_hub_are_skipped_and_one_that_says_nothing_else_is_cut_off() {
        let (mut unknown, empty) = (0, ToSpoke { body: None });
        let known = ToSpoke { body: Some(ToSpokeBody::Acknowledge(1)) };
        for _ in 0..UNKNOWN_IN_A_ROW_MAX {
            assert!(check_known(&empty, &mut unknown).is_ok());
        }
        assert!(check_known(&known, &mut unknown).is_ok());
        for _ in 0..UNKNOWN_IN_A_ROW_MAX {
            assert!(check_known(&empty, &mut unknown).is_ok());
        }

        let error = check_known(&empty, &mut unknown).unwrap_err();

        assert_eq!(error.reason().as_str(), "Limit");
    }

    #[test]
    fn what_a_hub_says_of_its_version_is_cut_and_cleaned_before_it_is_logged() {
        let said = plain(&"\u{1}\u{1b}[2Kv1.2 ".repeat(100_000), HUB_VERSION_CHARACTERS_MAX);

        assert!(
            said.starts_with("[2Kv1.2 [2K") && said.len() == HUB_VERSION_CHARACTERS_MAX,
            "{said}"
        );
    }
}
