//! Manifests as kubectl reads them: what is accepted here has the value that kubectl's own reader gives it.
#![allow(clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use attest_tests::kube_reader::KubeReader;

use readings::{Outcome, compare};

#[path = "kubectl/forms.rs"]
mod forms;
#[path = "kubectl/readings.rs"]
mod readings;

/// Fewest forms to compare.
const FORMS_MIN: usize = 551;

#[test]
fn every_form_of_yaml_is_read_as_kubectl_reads_it_or_refused() {
    let Some(reader) = KubeReader::find().expect("kube-reader") else { return };
    let forms = forms::all();

    let outcomes = compare(&reader, &forms);

    let different: Vec<String> = outcomes
        .iter()
        .zip(&forms)
        .filter_map(|(outcome, form)| match outcome {
            Outcome::Different(how) => Some(format!("{:?}: {how}", String::from_utf8_lossy(form))),
            Outcome::Same | Outcome::Refused | Outcome::RefusedByBoth => None,
        })
        .collect();
    assert!(different.is_empty(), "{} forms differ:\n{}", different.len(), different.join("\n"));
    let compared = outcomes.iter().filter(|outcome| **outcome == Outcome::Same).count();
    assert!(compared >= FORMS_MIN, "only {compared} of {} forms are accepted by both", forms.len());
}
