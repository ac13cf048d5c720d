//! Replays the seeds of every fuzz target and mutations of them.

use attest_tests::fuzz::TARGETS;

#[test]
fn no_target_fails_on_its_seeds_and_their_mutations() {
    for target in TARGETS {
        let campaign = target.campaign(1, |so_far| so_far.inputs >= target.replayed as u64);

        if let Some(failure) = campaign.failure {
            let input = String::from_utf8_lossy(&failure.input);
            panic!("{}: {}\ninput: {input:?}\n{:?}", target.name, failure.message, failure.input);
        }
        assert!(campaign.inputs >= target.replayed as u64, "{}", target.name);
    }
}
