//! Every spoke of a fleet at the same time: SIGKILL of the hub under hundreds of sessions.
#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use attest_tests::testbed::Testbed;

const SPOKES: usize = 500;
/// Limit of each wait, for a busy machine.
const WITHIN: Duration = Duration::from_secs(300);
/// The repository is not polled again during the test.
const FLAGS: [&str; 2] = ["--poll-interval-ms", "3600000"];

#[tokio::test]
async fn a_hub_that_is_killed_under_its_fleet_resets_every_session_and_sends_no_plan_again() {
    let mut testbed = Testbed::start(&FLAGS).await.unwrap();
    let repository = testbed.workload().unwrap();
    testbed.release(&repository, "v1").unwrap();
    let spokes = testbed.join(SPOKES).await.unwrap();
    spokes.connect();
    spokes.wait_for(SPOKES, WITHIN, |observed| observed.synced_at.len()).await.unwrap();
    testbed.apply("workload", &repository.url(), spokes.names()).await.unwrap();
    spokes.wait_for(SPOKES, WITHIN, |observed| observed.acknowledged).await.unwrap();
    testbed.all_synced(1, WITHIN).await.unwrap();
    let before = spokes.observed();

    testbed.hub.kill_and_restart().await.unwrap();
    let sessions = before.synced_at.len() + SPOKES;
    spokes.wait_for(sessions, WITHIN, |observed| observed.synced_at.len()).await.unwrap();
    testbed.all_synced(1, WITHIN).await.unwrap();

    let after = spokes.observed();
    let (resets, timeouts) =
        (after.resets - before.resets, after.idle_timeouts - before.idle_timeouts);
    assert_eq!((resets, timeouts), (SPOKES, 0), "{}", after.summary());
    assert_eq!(after.other_ends, before.other_ends, "{}", after.summary());
    assert_eq!(after.pushed_at.len(), before.pushed_at.len(), "plans were sent again");
}
