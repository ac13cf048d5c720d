//! Compares the readings of kubectl and of this project.

use attest_common::basics::canonical;
use attest_supply::yaml;
use attest_tests::kube_reader::KubeReader;
use serde_json::Value;

/// The comparison of two readings of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Both give the same value.
    Same,
    /// kubectl accepts it, and it is refused here with a message.
    Refused,
    /// Both refuse it.
    RefusedByBoth,
    /// Both accept it with different values, or only kubectl refuses it.
    Different(String),
}

/// Compares the readings of each file.
pub(crate) fn compare(reader: &KubeReader, files: &[Vec<u8>]) -> Vec<Outcome> {
    let readings = reader.read(files).expect("kube-reader reads");
    files.iter().zip(readings).map(|(file, reading)| outcome(file, reading)).collect()
}

fn outcome(file: &[u8], reading: Result<Vec<Value>, String>) -> Outcome {
    let here = yaml::read("x.yaml", file, &mut Vec::new());
    match (reading, here) {
        (Ok(kubectl), Ok(here)) if is_same(&kubectl, &here) => Outcome::Same,
        (Ok(kubectl), Ok(here)) => {
            let (kubectl, here) = (Value::from(kubectl), Value::from(here));
            Outcome::Different(format!("kubectl reads {kubectl}, here {here}"))
        }
        (Ok(_), Err(_)) => Outcome::Refused,
        (Err(_), Err(_)) => Outcome::RefusedByBoth,
        (Err(error), Ok(here)) => {
            let here = Value::from(here);
            Outcome::Different(format!("kubectl refuses it ({}), here {here}", error.trim()))
        }
    }
}

/// Compares as signed: `1.0` and `1` are the same number.
fn is_same(one: &[Value], other: &[Value]) -> bool {
    let written = |values: &[Value]| canonical::to_vec(&values.to_vec().into()).ok();
    written(one).is_some() && written(one) == written(other)
}
