//! The command tree beside the table of inputs: a flag without a test that shows its effect or its refusal is a defect.

use std::collections::BTreeSet;

use super::*;

/// One line for each input: command, flag, and the test. `tests/tests/inputs.rs` checks that the tests exist.
const EFFECTS: &str = include_str!("../../../tests/tests/inputs/effects.txt");

fn collect(command: &clap::Command, path: &str, flags: &mut BTreeSet<(String, String)>) {
    for flag in command.get_arguments().filter_map(clap::Arg::get_long) {
        flags.insert((path.to_owned(), format!("--{flag}")));
    }
    for below in command.get_subcommands() {
        collect(below, &format!("{path} {}", below.get_name()), flags);
    }
}

#[test]
fn every_flag_has_a_test_that_shows_its_effect_or_its_refusal() {
    let mut flags = BTreeSet::new();
    collect(&Cli::command(), "attest", &mut flags);

    let rows: BTreeSet<(String, String)> = EFFECTS
        .lines()
        .filter(|line| line.starts_with("attest ") || line.starts_with("attest\t"))
        .filter_map(|line| {
            let mut cells = line.split('\t');
            Some((cells.next()?.to_owned(), cells.next()?.to_owned()))
        })
        .collect();

    let lines = |found: Vec<&(String, String)>| {
        let lines: Vec<String> =
            found.into_iter().map(|(of, flag)| format!("{of}\t{flag}\t")).collect();
        lines.join("\n")
    };
    let missing = lines(flags.difference(&rows).collect());
    assert!(missing.is_empty(), "add to tests/tests/inputs/effects.txt:\n{missing}");
    let unknown = lines(rows.difference(&flags).collect());
    assert!(unknown.is_empty(), "no such flags:\n{unknown}");
}
