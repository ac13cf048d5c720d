//! Simulated spokes that stay connected: each reconnects by the product's own rule, reports the positions
//! that it holds, and lists objects in its reports.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use attest_certs::Pin;
use attest_common::basics::ids::Name;
use attest_common::basics::locked::Locked;
use attest_common::documents::plan::Directive;
use attest_common::session::GREETING_TIMEOUT_MS;
use attest_common::session::message::{Seen, ToSpoke, ToSpokeBody, Welcome};
use attest_common::session::reconnect::{Ending, reconnect_ms};
use attest_common::session::report::ObjectState;
use attest_common::trust::policy::Spec;
use futures::{Stream, StreamExt, TryStreamExt};
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream, TransportErrorCode};
use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::{Identity, Push, client_config, greet, join_as, read, report, send_report, take_push};
use crate::api::Api;
use crate::wait::until;

/// Loopback addresses that the spokes share, 127.0.1.1 and on: the hub limits connections by address.
const ADDRESSES: u8 = 64;
/// Most concurrent joins.
const JOINS_MAX: usize = 32;
/// Longest duration of a dial, and of a greeting.
const GREETING_WITHIN: Duration = Duration::from_millis(GREETING_TIMEOUT_MS);
/// Group and kind of the objects that reports list.
const KINDS: [(&str, &str); 4] =
    [("", "ConfigMap"), ("", "Service"), ("", "ServiceAccount"), ("apps", "Deployment")];

/// Events that the spokes observed, since they were created.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Time of the first `Sync` of each session.
    pub synced_at: Vec<Instant>,
    /// Time of each push.
    pub pushed_at: Vec<Instant>,
    /// Reports that the hub has acknowledged.
    pub acknowledged: usize,
    /// Sessions that ended by a stateless reset.
    pub resets: usize,
    /// Sessions that ended by the idle timeout.
    pub idle_timeouts: usize,
    /// Sessions that ended in any other way.
    pub other_ends: usize,
    /// Connections that the hub refused.
    pub dials_refused: usize,
    /// Connections and greetings that the hub did not answer, or that failed.
    pub dials_failed: usize,
}

impl Observed {
    /// The counts, in one line.
    pub fn summary(&self) -> String {
        format!(
            "{} first syncs, {} pushes, {} acknowledged; sessions ended: {} by reset, {} by idle timeout, \
             {} otherwise; dials: {} refused, {} failed",
            self.synced_at.len(),
            self.pushed_at.len(),
            self.acknowledged,
            self.resets,
            self.idle_timeouts,
            self.other_ends,
            self.dials_refused,
            self.dials_failed
        )
    }
}

/// An instruction to one spoke.
#[derive(Debug)]
enum Order {
    /// Report on the destination of this application; answered when the hub has acknowledged the report.
    Report { application: String, acknowledged: oneshot::Sender<()> },
    /// Keep so many reports unacknowledged; 0 stops.
    KeepInFlight(usize),
}

/// A running fleet of simulated spokes, which ends when dropped.
#[derive(Debug)]
pub struct Spokes {
    names: Vec<String>,
    orders: Vec<mpsc::UnboundedSender<Order>>,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    hub: SocketAddr,
    pin: Pin,
    observed: Locked<Observed>,
    /// Objects that reports list.
    objects: Locked<Vec<ObjectState>>,
    may_dial: watch::Sender<bool>,
}

impl Spokes {
    /// Joins `count` clusters to the hub at `hub` with a token each. They connect after [`Self::connect`].
    ///
    /// # Errors
    /// When the hub refuses one.
    pub async fn join(
        api: &Api,
        hub: SocketAddr,
        policy: &Spec,
        count: usize,
    ) -> anyhow::Result<Self> {
        let sockets = (1..=ADDRESSES).map(|n| Endpoint::client(([127, 0, 1, n], 0).into()));
        let sockets: Vec<Endpoint> = sockets.collect::<Result<_, _>>()?;
        let names: Vec<String> = (0..count).map(|n| format!("bench-{n:05}")).collect();
        let identities: Vec<Identity> =
            futures::stream::iter(names.iter().zip(sockets.iter().cycle()))
                .map(|(name, socket)| join_as(api, socket, hub, name))
                .buffered(JOINS_MAX)
                .try_collect()
                .await?;
        let shared = Arc::new(Shared {
            hub,
            pin: api.pin,
            observed: Locked::default(),
            objects: Locked::default(),
            may_dial: watch::Sender::new(false),
        });
        let (mut orders, mut tasks) = (Vec::new(), JoinSet::new());
        for ((name, identity), socket) in names.iter().zip(identities).zip(sockets.iter().cycle()) {
            let policy = Spec { cluster_name: Some(Name::new(name.clone())?), ..policy.clone() };
            let (sender, receiver) = mpsc::unbounded_channel();
            let spoke = Spoke {
                socket: socket.clone(),
                policy: serde_json::to_vec(&policy)?,
                identity,
                shared: Arc::clone(&shared),
                orders: receiver,
                held: BTreeMap::new(),
                in_flight: 0,
                heals_total: 0,
            };
            orders.push(sender);
            tasks.spawn(spoke.run());
        }
        Ok(Self { names, orders, shared, _tasks: tasks })
    }

    /// Names of the clusters.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Lets the spokes dial, all at the same time.
    pub fn connect(&self) {
        self.shared.may_dial.send_replace(true);
    }

    /// Sets the number of objects that each report lists.
    ///
    /// # Errors
    /// Never for these objects.
    pub fn set_listed_objects(&self, count: usize) -> anyhow::Result<()> {
        let objects = KINDS.iter().cycle().take(count).enumerate().map(|(n, (group, kind))| {
            serde_json::from_value(json!({
                "group": group, "kind": kind, "namespace": "workload", "name": format!("object-{n}"),
                "health": "Current",
            }))
        });
        *self.shared.objects.lock() = objects.collect::<Result<_, _>>()?;
        Ok(())
    }

    /// Events so far.
    pub fn observed(&self) -> Observed {
        self.shared.observed.lock().clone()
    }

    /// Waits until `count` of the events is at least `wanted`.
    ///
    /// # Errors
    /// When `limit` has passed; the error contains all counts.
    pub async fn wait_for(
        &self,
        wanted: usize,
        limit: Duration,
        count: impl Fn(&Observed) -> usize,
    ) -> anyhow::Result<()> {
        let reached = until("simulated spokes", limit, || async {
            Ok((count(&self.shared.observed.lock()) >= wanted).then_some(()))
        });
        reached.await.with_context(|| format!("{wanted} wanted: {}", self.observed().summary()))
    }

    /// Makes the spoke of this index report on an application, and waits for the acknowledgement.
    ///
    /// # Errors
    /// When its session ends before.
    pub async fn report(&self, spoke: usize, application: &str) -> anyhow::Result<()> {
        let (acknowledged, received) = oneshot::channel();
        let order = Order::Report { application: application.to_owned(), acknowledged };
        self.orders.get(spoke).context("no such spoke")?.send(order)?;
        received.await.context("the session ended before the report was acknowledged")
    }

    /// Makes each spoke keep so many reports unacknowledged; 0 stops.
    pub fn keep_in_flight(&self, reports: usize) {
        for orders in &self.orders {
            // A spoke ends only with the fleet.
            let _ = orders.send(Order::KeepInFlight(reports));
        }
    }
}

/// A spoke that completes handshakes without sessions.
#[derive(Debug)]
pub struct Handshakes {
    endpoint: Endpoint,
    hub: SocketAddr,
    pin: Pin,
    identity: Identity,
}

impl Handshakes {
    /// Joins a cluster called `name`.
    ///
    /// # Errors
    /// When the hub refuses it.
    pub async fn join(api: &Api, hub: SocketAddr, name: &str) -> anyhow::Result<Self> {
        let endpoint = Endpoint::client(([127, 0, 1, 1], 0).into())?;
        let identity = join_as(api, &endpoint, hub, name).await?;
        Ok(Self { endpoint, hub, pin: api.pin, identity })
    }

    /// Connects and closes the connection.
    ///
    /// # Errors
    /// When the handshake fails.
    pub async fn complete_one(&self) -> anyhow::Result<()> {
        let connection = connect(&self.endpoint, self.hub, self.pin, &self.identity).await?;
        connection.close(0_u32.into(), b"");
        Ok(())
    }
}

/// Completes a handshake.
async fn connect(
    endpoint: &Endpoint,
    hub: SocketAddr,
    pin: Pin,
    identity: &Identity,
) -> anyhow::Result<Connection> {
    let tls = attest_certs::tls::spoke_session(&[pin], &identity.bundle)?;
    let server = attest_certs::tls::HUB_SERVER_NAME;
    let connecting = endpoint.connect_with(client_config(tls)?, hub, server)?;
    Ok(tokio::time::timeout(GREETING_WITHIN, connecting).await??)
}

/// A destination at a spoke.
struct Held {
    position: Seen,
    directive: Directive,
}

/// One simulated spoke.
struct Spoke {
    socket: Endpoint,
    identity: Identity,
    policy: Vec<u8>,
    shared: Arc<Shared>,
    orders: mpsc::UnboundedReceiver<Order>,
    held: BTreeMap<(String, String), Held>,
    in_flight: usize,
    heals_total: u64,
}

/// State of one session.
struct Session {
    control: SendStream,
    /// Number of the last report.
    number: u64,
    unacknowledged: usize,
    has_synced: bool,
    awaited: Option<(u64, oneshot::Sender<()>)>,
}

impl Spoke {
    async fn run(mut self) {
        if self.shared.may_dial.subscribe().wait_for(|may| *may).await.is_err() {
            return;
        }
        let (mut attempt, mut window_ms) = (0, 0);
        loop {
            let ending = match self.dial().await {
                Ok((connection, control, receive, welcome)) => {
                    (attempt, window_ms) = (0, welcome.reconnect_window_ms);
                    // The connection has the reason of its end.
                    let _ = self.session(&connection, control, receive).await;
                    self.note_end(&connection);
                    Ending::Other
                }
                Err(error) => self.note_failed_dial(&error),
            };
            let wait_ms = reconnect_ms(ending, attempt, window_ms, random());
            attempt = attempt.saturating_add(1);
            tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        }
    }

    async fn dial(&self) -> anyhow::Result<(Connection, SendStream, RecvStream, Welcome)> {
        let Shared { hub, pin, .. } = *self.shared;
        let connection = connect(&self.socket, hub, pin, &self.identity).await?;
        let positions = self.held.values().map(|held| held.position.clone()).collect();
        let greeting = greet(&connection, &self.identity.cluster, self.policy.clone(), positions);
        let (control, receive, welcome) = tokio::time::timeout(GREETING_WITHIN, greeting).await??;
        Ok((connection, control, receive, welcome))
    }

    async fn session(
        &mut self,
        connection: &Connection,
        control: SendStream,
        receive: RecvStream,
    ) -> anyhow::Result<()> {
        let mut session =
            Session { control, number: 0, unacknowledged: 0, has_synced: false, awaited: None };
        let messages = messages(receive);
        tokio::pin!(messages);
        loop {
            while session.unacknowledged < self.in_flight {
                let Some(directive) = self.next_directive() else { break };
                self.report(&mut session, &directive).await?;
            }
            tokio::select! {
                message = messages.next() => self.handle(&message.context("finished")?, &mut session),
                stream = connection.accept_uni() => {
                    let push = take_push(&mut stream?).await?;
                    let directive = self.hold(push);
                    self.report(&mut session, &directive).await?;
                }
                order = self.orders.recv() => {
                    self.obey(order.context("the fleet ended")?, &mut session).await?;
                }
            }
        }
    }

    /// The directives in turn.
    fn next_directive(&self) -> Option<Directive> {
        let turn = usize::try_from(self.heals_total).ok()?.checked_rem(self.held.len())?;
        Some(self.held.values().nth(turn)?.directive.clone())
    }

    fn handle(&self, message: &ToSpoke, session: &mut Session) {
        match &message.body {
            Some(ToSpokeBody::Sync(_)) if !session.has_synced => {
                session.has_synced = true;
                self.shared.observed.lock().synced_at.push(Instant::now());
            }
            Some(ToSpokeBody::Acknowledge(number)) => {
                session.unacknowledged = session.unacknowledged.saturating_sub(1);
                self.shared.observed.lock().acknowledged += 1;
                if let Some((_, waiting)) =
                    session.awaited.take_if(|(awaited, _)| awaited == number)
                {
                    let _ = waiting.send(());
                }
            }
            _ => {}
        }
    }

    fn hold(&mut self, push: Push) -> Directive {
        let directive = push.directive;
        let key = (directive.application.to_string(), directive.namespace.to_string());
        let position = Seen {
            application: key.0.clone(),
            namespace: key.1.clone(),
            epoch: directive.epoch,
            sequence: directive.sequence,
            directive: push.digest.raw().to_vec(),
            generation: 0,
            attempt: 0,
        };
        self.held.insert(key, Held { position, directive: directive.clone() });
        self.shared.observed.lock().pushed_at.push(Instant::now());
        directive
    }

    async fn obey(&mut self, order: Order, session: &mut Session) -> anyhow::Result<()> {
        match order {
            Order::KeepInFlight(reports) => self.in_flight = reports,
            Order::Report { application, acknowledged } => {
                let held = self.held.iter().find(|((name, _), _)| *name == application);
                let directive = held.context("no such application")?.1.directive.clone();
                session.awaited = Some((session.number + 1, acknowledged));
                self.report(session, &directive).await?;
            }
        }
        Ok(())
    }

    async fn report(&mut self, session: &mut Session, directive: &Directive) -> anyhow::Result<()> {
        self.heals_total += 1;
        session.number += 1;
        session.unacknowledged += 1;
        let objects = self.shared.objects.lock().clone();
        let report = report(directive, objects, self.heals_total);
        send_report(&mut session.control, session.number, &report).await
    }

    fn note_end(&self, connection: &Connection) {
        let mut observed = self.shared.observed.lock();
        let count = match connection.close_reason() {
            Some(ConnectionError::Reset) => &mut observed.resets,
            Some(ConnectionError::TimedOut) => &mut observed.idle_timeouts,
            Some(_) | None => &mut observed.other_ends,
        };
        *count += 1;
    }

    fn note_failed_dial(&self, error: &anyhow::Error) -> Ending {
        let is_refused = matches!(
            error.downcast_ref::<ConnectionError>(),
            Some(ConnectionError::ConnectionClosed(close))
                if close.error_code == TransportErrorCode::CONNECTION_REFUSED
        );
        let mut observed = self.shared.observed.lock();
        if is_refused {
            observed.dials_refused += 1;
            Ending::Refused
        } else {
            observed.dials_failed += 1;
            Ending::Other
        }
    }
}

/// The messages on a control stream, until it ends.
fn messages(receive: RecvStream) -> impl Stream<Item = ToSpoke> {
    futures::stream::unfold(receive, |mut receive| async {
        let message = read::<ToSpoke>(&mut receive).await.ok().flatten()?;
        Some((message, receive))
    })
}

/// Randomness for jitter.
fn random() -> u64 {
    let mut bytes = [0; 8];
    let _ = getrandom::fill(&mut bytes);
    u64::from_le_bytes(bytes)
}
