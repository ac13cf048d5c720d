//! Random sequences of events: what must hold whatever arrives, and in whatever order.

use super::*;
use crate::cluster::apply::Target;
use crate::destination::command::Deletion;
use crate::destination::objects::IN_FLIGHT_MAX;

const SEEDS: u64 = 60;
const STEPS: u32 = 160;
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// A generator of numbers that gives the same for the same seed (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap() % end
    }

    fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// A destination in a cluster: the machine, its requests, and what is durable.
struct World {
    random: Random,
    machine: Machine,
    flights: Vec<Request>,
    entry: Option<Entry>,
    admitted: Vec<Admitted>,
    removed: Option<Removed>,
    /// Every object that an inventory has held.
    inventory: Vec<ObjectKey>,
    log: Vec<String>,
    writes: u32,
    deletions: u32,
    reverts: u32,
}

impl World {
    fn new(seed: u64, now: Instant) -> Self {
        let mut machine = Machine::new();
        machine.moment.now = now;
        Self {
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            machine,
            flights: Vec::new(),
            entry: None,
            admitted: Vec::new(),
            removed: None,
            inventory: Vec::new(),
            log: Vec::new(),
            writes: 0,
            deletions: 0,
            reverts: 0,
        }
    }

    fn run(mut self) -> Self {
        for _ in 0..STEPS {
            self.step();
            let position = self.entry.as_ref().map(|e| (e.record.epoch, e.record.sequence));
            self.feed(Event::Tick { position, claims: Claims::new(), rollout: None });
            let after = self.random.below(400);
            self.machine.later(Duration::from_millis(u64::try_from(after).unwrap()));
        }
        self
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..=3 => {
                self.admit();
                self.order(Origin::Admitted);
            }
            // Another process admits something.
            4 => self.admit(),
            5 => self.remove(),
            6..=9 => self.order(Origin::Loaded),
            10 => self.feed(freeze()),
            11 => self.feed(refusal(99)),
            12 => self.feed(Event::RepeatReport),
            13..=25 => self.observe(),
            _ => self.finish(),
        }
    }

    fn admit(&mut self) {
        let mut names = NAMES.to_vec();
        names.retain(|name| *name == "a" || self.random.percent(70));
        let text = ["one", "two", "three"][self.random.below(3)];
        let admitted = admit(self.entry.as_ref(), &names, text);
        self.record(admitted.entry.clone());
        self.admitted.push(admitted);
        self.removed = None;
    }

    fn remove(&mut self) {
        let is_bound = |entry: &&Entry| entry.record.binding.is_some();
        let Some(entry) = self.entry.as_ref().filter(is_bound) else { return };
        let removed = remove(entry);
        self.record(removed.entry.clone());
        self.feed(remove_order(&removed));
        self.removed = Some(removed);
    }

    fn record(&mut self, entry: Entry) {
        self.inventory.extend(entry.record.inventory.iter().map(|owned| owned.key.clone()));
        self.entry = Some(entry);
    }

    /// An order for what is recorded, as the agent gives it; sometimes one that is too late.
    fn order(&mut self, origin: Origin) {
        let Some(entry) = self.entry.clone() else { return };
        if let Some(removed) = self.removed.clone() {
            return self.feed(remove_order(&Removed { entry, ..removed }));
        }
        let is_late = self.random.percent(10);
        let digest = entry.directive_digest();
        let is_recorded = |admitted: &&Admitted| {
            entry.record.held.as_ref() == Some(&admitted.held)
                && digest == Some(admitted.admission.ordered.digest)
        };
        let order = self.admitted.iter().rev().find(|admitted| is_late || is_recorded(admitted));
        if let Some(admitted) = order.cloned() {
            self.feed(run_as_recorded(&admitted, origin, &entry));
        }
    }

    fn observe(&mut self) {
        let name = NAMES[self.random.below(NAMES.len())];
        let version = u64::try_from(self.random.below(1_000)).unwrap();
        let at = self.machine.moment.now;
        let observation = match self.random.below(4) {
            0 => present("uid", b"edited", version),
            1 => present("other", b"live", version),
            2 => present("uid", b"live", version),
            _ => Observation {
                kept_by_kubectl: Vec::new(),
                added: 0,
                live: Live::Gone { uid: "uid".to_owned() },
                verdict: Verdict::absent("", "ConfigMap"),
                at,
            },
        };
        self.feed(seen(name, Observation { at, ..observation }));
    }

    fn finish(&mut self) {
        if !self.flights.is_empty() {
            let index = self.random.below(self.flights.len());
            let request = self.flights.remove(index);
            let outcome = self.carry_out(request);
            self.feed(Event::Finished(Box::new(outcome)));
        }
    }

    fn carry_out(&mut self, request: Request) -> Outcome {
        let fails = self.random.percent(10);
        match request {
            Request::Prepare(_) if fails => Outcome::Prepared(Err(away())),
            Request::Prepare(_) => Outcome::Prepared(Ok(self.random.percent(50))),
            Request::AwaitDryRun(key) | Request::DryRun { key, .. } => self.dry_run(key),
            Request::Write { key, target, heal, .. } => {
                let result = match self.random.below(20) {
                    0 => Err(ApplyError::Api(away())),
                    1 => Err(ApplyError::Replaced(key.clone())),
                    _ => Ok(self.write(&target)),
                };
                Outcome::Wrote { key, heal, result }
            }
            Request::Look { key, .. } if fails => Outcome::Looked(key, Err(away())),
            Request::Look { key, .. } => Outcome::Looked(key, Ok(None)),
            Request::Delete(deletion) => {
                let result = match self.random.below(6) {
                    0 => Err(ApplyError::KindUnknown),
                    1 => Ok(Deleted::Leaving("a finalizer".to_owned())),
                    _ => Ok(Deleted::Gone),
                };
                Outcome::Deleted(deletion.key, result)
            }
            Request::Record(_) | Request::RecordRemoved if fails => {
                Outcome::Recorded(Err(LedgerError::Api(away())))
            }
            Request::Record(_) | Request::RecordRemoved => {
                Outcome::Recorded(Ok(self.write_record(&request)))
            }
            Request::Revert(revert) => Outcome::Reverted(Ok(self.write_revert(&revert))),
            Request::Return(_) => Outcome::Returned(Ok(())),
            Request::StoreSoak(_) => Outcome::SoakStored,
            Request::Withdraw(_) => Outcome::Withdrawn,
        }
    }

    fn dry_run(&mut self, key: ObjectKey) -> Outcome {
        let result = match self.random.below(20) {
            0 => return conflict(&key.name),
            1 => Err(ApplyError::KindUnknown),
            2 => Err(ApplyError::Replaced(key.clone())),
            3 => Err(ApplyError::Api(away())),
            force => Ok(DryRunPermit {
                force: force > 10,
                preexisting: force == 5,
                takeover: false,
                replaces: false,
            }),
        };
        Outcome::Checked(key, result)
    }

    fn write(&mut self, target: &Target) -> Written {
        let object = target.objects.get(&target.key).unwrap();
        let written = written(apply::desired(object.value()), "uid", b"live");
        let at = self.machine.moment.now;
        Written { observation: Observation { at, ..written.observation }, ..written }
    }

    fn write_record(&mut self, request: &Request) -> Recorded {
        let Some(mut entry) = self.entry.clone() else { return Recorded::Superseded };
        if let Request::Record(update) = request {
            if entry.record.held.as_ref() != Some(&update.held) {
                return Recorded::Superseded;
            }
            entry = update.apply(&entry).unwrap_or(entry);
        } else {
            if !entry.record.removed {
                return Recorded::Superseded;
            }
            entry.record.inventory.clear();
        }
        self.entry = Some(entry);
        Recorded::Done
    }

    fn write_revert(&mut self, revert: &Revert) -> bool {
        let is_mine = |entry: &Entry| is_of(Some(entry), Some(&revert.held), revert.directive);
        if let Some(Entry { record, confirmed, .. }) = self.entry.clone().filter(is_mine)
            && let Some((record, directive)) =
                record.reverted(revert.inventory == AddedInventory::Keep)
        {
            self.entry = Some(Entry { record, directive, confirmed });
        }
        self.entry.as_ref().is_some_and(|entry| entry.record.held.is_some())
    }

    fn feed(&mut self, event: Event) {
        let moment = self.machine.moment;
        for command in next(&mut self.machine.state, event, moment) {
            self.log.push(format!("{command:?}"));
            if let Command::Request(request) = command {
                self.check(&request);
                self.flights.push(request);
            } else if let Command::CancelRequests = command {
                self.cancel();
            }
        }
        self.check_flights();
    }

    /// Drops requests; a write of the record may have been carried out.
    fn cancel(&mut self) {
        for request in std::mem::take(&mut self.flights) {
            if writes_record(&request) && self.random.percent(50) {
                self.write_record(&request);
            }
        }
    }

    fn check(&mut self, request: &Request) {
        let key = about(request);
        let is_twice = key.is_some() && self.flights.iter().any(|flight| about(flight) == key);
        assert!(!is_twice, "two requests about one object: {request:?}");
        match (&self.machine.state.work, request) {
            (Work::Frozen { .. } | Work::Overtaken { .. }, _) => {
                panic!("begun while nothing may be: {request:?}")
            }
            (Work::Applying(applying), Request::Write { heal, .. }) => {
                self.writes += 1;
                assert!(
                    *heal || applying.rollback == Rollback::GivenUp,
                    "the rollback point exists"
                );
                let entry = self.entry.as_ref().unwrap();
                let is_recorded = entry.record.held.as_ref() == Some(&applying.held);
                let is_open = is_recorded && entry.record.rollback_point.is_some();
                assert!(*heal || !is_open, "the record has a rollback point");
            }
            (
                Work::Applying(_),
                Request::Prepare(_)
                | Request::DryRun { .. }
                | Request::AwaitDryRun(_)
                | Request::Look { .. }
                | Request::Record(_),
            )
            | (Work::Removing(_), Request::RecordRemoved)
            | (Work::Idle, Request::Withdraw(_)) => {}
            (Work::Reverting(_), Request::Revert(_)) => self.reverts += 1,
            (Work::Returning(_), Request::Return(_)) => {}
            (Work::Applying(_) | Work::Removing(_), Request::Delete(deletion)) => {
                self.check_deletion(deletion);
                self.deletions += 1;
            }
            (work, request) => panic!("{request:?} in {work:?}"),
        }
    }

    fn check_deletion(&self, deletion: &Deletion) {
        assert!(self.inventory.contains(&deletion.key), "never in an inventory: {deletion:?}");
        if let Work::Applying(applying) = &self.machine.state.work {
            assert!(!applying.objects.contains_key(&deletion.key), "it is rendered");
            assert_eq!(applying.rollback, Rollback::GivenUp, "the rollback point exists");
        }
    }

    fn check_flights(&self) {
        assert_eq!(self.machine.state.in_flight, self.flights.len());
        let is_record =
            |request: &&Request| writes_record(request) || matches!(request, Request::Revert(_));
        assert!(self.flights.iter().filter(is_record).count() <= 1, "two record writes");
        // One more that prepares, and one that records.
        assert!(self.flights.len() <= IN_FLIGHT_MAX + 2);
    }
}

fn about(request: &Request) -> Option<ObjectKey> {
    match request {
        Request::AwaitDryRun(key)
        | Request::DryRun { key, .. }
        | Request::Write { key, .. }
        | Request::Look { key, .. } => Some(key.clone()),
        Request::Delete(deletion) => Some(deletion.key.clone()),
        Request::Prepare(_)
        | Request::Record(_)
        | Request::RecordRemoved
        | Request::Revert(_)
        | Request::Return(_)
        | Request::StoreSoak(_)
        | Request::Withdraw(_) => None,
    }
}

fn writes_record(request: &Request) -> bool {
    matches!(request, Request::Record(_) | Request::RecordRemoved)
}

#[test]
fn no_sequence_of_events_writes_what_it_must_not() {
    let mut reached = [0; 3];
    for seed in 1..=SEEDS {
        let World { writes, deletions, reverts, .. } = World::new(seed, Instant::now()).run();
        for (sum, count) in reached.iter_mut().zip([writes, deletions, reverts]) {
            *sum += count;
        }
    }

    assert!(reached.iter().all(|count| *count >= 30), "what is checked happens: {reached:?}");
}

#[test]
fn the_same_events_at_the_same_times_ask_for_the_same() {
    let now = Instant::now();

    for seed in 1..=5 {
        assert_eq!(World::new(seed, now).run().log, World::new(seed, now).run().log);
    }
}
