//! Rate limits of this spoke: bursts and steady rates of what costs the cluster or the hub something.

use std::time::Duration;

use attest_common::basics::rate::RateLimit;

/// Most refusals recorded in a burst, after a quiet time.
pub const REFUSALS_AT_ONCE_MAX: u32 = 64;
/// Most refusals recorded each second after the burst; further ones are only counted.
pub const REFUSALS_PER_SECOND_MAX: u32 = 20;

/// Most directives that one destination admits in a burst, after a quiet time.
pub const ADMISSIONS_AT_ONCE_MAX: u32 = 10;
/// Interval in which it admits one more after the burst: each costs writes, and content that stays in etcd
/// until it is compacted. Of those that wait the newest stays.
pub const ADMISSION_EVERY: Duration = Duration::from_secs(3);

/// Most new destinations that a cluster admits in a burst, after a quiet time.
pub const NEW_DESTINATIONS_AT_ONCE_MAX: u32 = 200;
/// Interval in which it admits one more after the burst: the record of a destination stays permanently, and
/// their number is limited.
pub const NEW_DESTINATION_EVERY: Duration = Duration::from_secs(10);

/// Most discovery requests to the API server that pushes cause in a burst, after a quiet time.
pub const DISCOVERIES_AT_ONCE_MAX: u32 = 20;
/// Interval in which they cause one more after the burst: each returns two large documents.
pub const DISCOVERY_EVERY: Duration = Duration::from_secs(1);

/// Most sessions with a hub that are dialled again in a burst without a growing delay, after a quiet time.
pub const SESSIONS_AT_ONCE_MAX: u32 = 20;
/// Interval in which there is one more after the burst: each costs a handshake and a log line.
pub const SESSION_EVERY: Duration = Duration::from_secs(10);

/// Most writes of the list of refusals in a burst, after a quiet time.
pub const REFUSAL_WRITES_AT_ONCE_MAX: u32 = 30;
/// Interval in which there is one more after the burst; it contains everything since the previous one.
pub const REFUSAL_WRITE_EVERY: Duration = Duration::from_secs(10);

/// Most bytes that admissions write to etcd in a burst, after a quiet time: as much as the content of a cluster
/// may have, so that the first deployments of a cluster do not wait.
pub const WRITTEN_AT_ONCE_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Most bytes that they write in a minute after the burst. etcd keeps replaced values for about ten minutes;
/// with these two limits they stay far below its smallest quota of 2 GiB.
pub const WRITTEN_PER_MINUTE_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Delay before an admission that exceeded the budget of bytes is tried again.
pub const WRITTEN_RETRY: Duration = Duration::from_secs(10);

/// Most bytes of stored content that pushes cause to be read in a burst, after a quiet time: all of it once,
/// as after a start of the hub.
pub const LOOKED_UP_AT_ONCE_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Most bytes of it that they cause to be read in a minute after the burst. Beyond that, the hub is asked.
pub const LOOKED_UP_PER_MINUTE_BYTES_MAX: u64 = 32 * 1024 * 1024;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// Limit of recorded refusals.
pub const REFUSALS: RateLimit =
    RateLimit::per(REFUSALS_AT_ONCE_MAX as u64, REFUSALS_PER_SECOND_MAX as u64, SECOND);
/// Limit of admissions at one destination.
pub const ADMISSIONS: RateLimit =
    RateLimit::one_every(ADMISSIONS_AT_ONCE_MAX as u64, ADMISSION_EVERY);
/// Limit of new destinations in the whole cluster.
pub const NEW_DESTINATIONS: RateLimit =
    RateLimit::one_every(NEW_DESTINATIONS_AT_ONCE_MAX as u64, NEW_DESTINATION_EVERY);
/// Limit of discovery requests caused by pushes.
pub const DISCOVERIES: RateLimit =
    RateLimit::one_every(DISCOVERIES_AT_ONCE_MAX as u64, DISCOVERY_EVERY);
/// Limit of sessions with the hub that are dialled again without a growing delay.
pub const SESSIONS: RateLimit = RateLimit::one_every(SESSIONS_AT_ONCE_MAX as u64, SESSION_EVERY);
/// Limit of writes of the list of refusals.
pub const REFUSAL_WRITES: RateLimit =
    RateLimit::one_every(REFUSAL_WRITES_AT_ONCE_MAX as u64, REFUSAL_WRITE_EVERY);
/// Budget of bytes that admissions write.
pub const WRITES: RateLimit =
    RateLimit::per(WRITTEN_AT_ONCE_BYTES_MAX, WRITTEN_PER_MINUTE_BYTES_MAX, MINUTE);
/// Budget of bytes of stored content that pushes cause to be read.
pub const LOOK_UPS: RateLimit =
    RateLimit::per(LOOKED_UP_AT_ONCE_BYTES_MAX, LOOKED_UP_PER_MINUTE_BYTES_MAX, MINUTE);

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use attest_common::basics::rate::TokenBucket;

    use super::*;

    #[test]
    fn each_limit_allows_its_burst_and_then_its_steady_rate() {
        let start = Instant::now();
        for (limit, burst, pause, after_pause) in [
            (REFUSALS, REFUSALS_AT_ONCE_MAX, SECOND, REFUSALS_PER_SECOND_MAX),
            (ADMISSIONS, ADMISSIONS_AT_ONCE_MAX, ADMISSION_EVERY, 1),
            (ADMISSIONS, ADMISSIONS_AT_ONCE_MAX, 5 * ADMISSION_EVERY, 5),
            (NEW_DESTINATIONS, NEW_DESTINATIONS_AT_ONCE_MAX, NEW_DESTINATION_EVERY, 1),
            (DISCOVERIES, DISCOVERIES_AT_ONCE_MAX, DISCOVERY_EVERY, 1),
            (SESSIONS, SESSIONS_AT_ONCE_MAX, SESSION_EVERY, 1),
            (REFUSAL_WRITES, REFUSAL_WRITES_AT_ONCE_MAX, REFUSAL_WRITE_EVERY, 1),
        ] {
            let mut bucket = TokenBucket::new(limit);
            let mut taken = |at: Instant| (0..1_000).filter(|_| bucket.take(at)).count();

            assert_eq!(taken(start), burst as usize, "{limit:?}");
            assert_eq!(taken(start + pause), after_pause as usize, "{limit:?}");
        }
    }
}
