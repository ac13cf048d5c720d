//! Receipts: the rules for statements about a build, a test run and a scan as evidence of a release.
//!
//! A table maps names of attestations to predicate types, roles and content rules. Predicate types are compared as a
//! whole; an unknown name is an error. `verify` checks the signatures.

use serde_json::Value;

use crate::basics::ids::{Digest, Timestamp};
use crate::basics::reason::Reason;
use crate::basics::terms::{Mode, Role};
use crate::documents::release::{Release, Render};
use crate::documents::statement::Statement;

/// SLSA provenance, version 1.
pub const PROVENANCE_TYPE: &str = "https://slsa.dev/provenance/v1";
/// in-toto test result, version 0.1.
pub const TEST_RESULT_TYPE: &str = "https://in-toto.io/attestation/test-result/v0.1";
/// in-toto vulnerability scan, version 0.2.
pub const VULNS_TYPE: &str = "https://in-toto.io/attestation/vulns/v0.2";
/// `buildType` of a provenance written by `attest run`.
pub const BUILD_TYPE: &str = "https://attest.continuu.ms/run/v1";
/// Allowed parameters of a provenance. An unknown parameter may change the build (SLSA, verifying artifacts).
pub const EXTERNAL_PARAMETERS: [&str; 4] = ["application", "repository", "step", "environment"];
const HOUR_MS: i64 = 60 * 60 * 1000;
/// Tolerated difference between clocks, in milliseconds.
pub const CLOCK_SKEW_MAX_MS: i64 = 120 * 1000;
/// Time after expiry in which Standard mode admits with a warning, in milliseconds.
pub const STANDARD_GRACE_MS: i64 = 72 * 60 * 60 * 1000;

/// Rule for the name of an attestation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttestationRule {
    pub name: &'static str,
    pub predicate_type: &'static str,
    pub role: Role,
}

const RULES: [AttestationRule; 3] = [
    AttestationRule { name: "build", predicate_type: PROVENANCE_TYPE, role: Role::Builder },
    AttestationRule { name: "test", predicate_type: TEST_RESULT_TYPE, role: Role::Tester },
    AttestationRule { name: "security-scan", predicate_type: VULNS_TYPE, role: Role::Scanner },
];

/// Returns the rule for the name of an attestation.
pub fn rule(name: &str) -> Option<AttestationRule> {
    RULES.into_iter().find(|rule| rule.name == name)
}

/// Context against which a receipt is checked.
#[derive(Clone, Copy, Debug)]
pub struct ReceiptContext<'a> {
    pub release: &'a Release,
    pub render: &'a Render,
    pub content: Digest,
    /// Builder ids that the signing key may use.
    pub builder_ids: &'a [String],
    pub mode: Mode,
    pub now: Timestamp,
    /// False when the release already runs here: ages count only at first admission.
    pub enforce_ages: bool,
    /// Maximum age of a scan, in hours.
    pub scan_age_hours_max: u32,
}

/// Checks the statement of a receipt. Returns warnings.
pub fn check(
    name: &str,
    statement: &Statement,
    about: &ReceiptContext<'_>,
) -> Result<Vec<String>, ReceiptError> {
    let rule = rule(name).ok_or_else(|| ReceiptError::AttestationUnknown(short(name)))?;
    if statement.predicate_type != rule.predicate_type {
        return Err(ReceiptError::PredicateType {
            attestation: rule.name,
            expected: rule.predicate_type,
            found: short(&statement.predicate_type),
        });
    }
    match rule.role {
        Role::Builder => build(statement, about).map(|()| Vec::new()),
        Role::Tester => test(statement, about),
        Role::Scanner => scan(statement, about),
        Role::Releaser => Err(ReceiptError::AttestationUnknown(short(name))),
    }
}

fn build(statement: &Statement, about: &ReceiptContext<'_>) -> Result<(), ReceiptError> {
    covers_rendering("build", statement, about)?;
    let builder = predicate_field(statement, "/runDetails/builder/id");
    if !about.builder_ids.iter().any(|id| builder.as_str() == Some(id)) {
        return Err(forbidden_build("runDetails.builder.id", builder));
    }
    let build_type = predicate_field(statement, "/buildDefinition/buildType");
    if build_type.as_str() != Some(BUILD_TYPE) {
        return Err(forbidden_build("buildDefinition.buildType", build_type));
    }
    let parameters = predicate_field(statement, "/buildDefinition/externalParameters");
    let has_known_keys = parameters.as_object().is_some_and(|object| {
        object.keys().all(|name| EXTERNAL_PARAMETERS.contains(&name.as_str()))
    });
    if !has_known_keys {
        return Err(forbidden_build("buildDefinition.externalParameters", parameters));
    }
    let source = &about.release.source;
    let dependencies = predicate_field(statement, "/buildDefinition/resolvedDependencies");
    let names_source = dependencies.as_array().into_iter().flatten().any(|dependency| {
        let uri = dependency.get("uri").and_then(Value::as_str);
        let commit = dependency.pointer("/digest/gitCommit").and_then(Value::as_str);
        uri == Some(&source.repo) && commit == Some(&source.git_commit)
    });
    if names_source { Ok(()) } else { Err(ReceiptError::SourceMismatch) }
}

/// Returns a field of the predicate; null when it is absent.
fn predicate_field<'a>(statement: &'a Statement, pointer: &str) -> &'a Value {
    statement.predicate.pointer(pointer).unwrap_or(&Value::Null)
}

fn forbidden_build(field: &'static str, found: &Value) -> ReceiptError {
    ReceiptError::Build { field, found: short(&found.to_string()) }
}

fn test(statement: &Statement, about: &ReceiptContext<'_>) -> Result<Vec<String>, ReceiptError> {
    covers_rendering("test", statement, about)?;
    let result = statement.predicate.get("result").and_then(Value::as_str).unwrap_or("missing");
    match statement.predicate.get("failedTests") {
        None => {}
        Some(Value::Array(list)) if list.is_empty() => {}
        Some(Value::Array(_)) => return Err(ReceiptError::TestFailed { result: short(result) }),
        Some(_) => return Err(ReceiptError::FailedTestsMalformed),
    }
    match (result, about.mode) {
        ("PASSED", _) => Ok(Vec::new()),
        ("WARNED", Mode::Standard) => Ok(vec!["the tests passed with warnings".to_owned()]),
        _ => Err(ReceiptError::TestFailed { result: short(result) }),
    }
}

fn scan(statement: &Statement, about: &ReceiptContext<'_>) -> Result<Vec<String>, ReceiptError> {
    for image in &about.render.images {
        if !statement.covers(&image.digest) {
            return Err(ReceiptError::SubjectIncomplete { image: short(&image.reference) });
        }
    }
    if about.render.images.is_empty() {
        covers_rendering("security-scan", statement, about)?;
    }
    let mut warnings = Vec::new();
    if about.enforce_ages {
        let finished = statement
            .predicate
            .pointer("/metadata/scanFinishedOn")
            .and_then(Value::as_str)
            .and_then(|text| text.parse::<Timestamp>().ok())
            .ok_or(ReceiptError::ScanWithoutTime)?;
        let age_ms = about.now.as_millisecond() - finished.as_millisecond();
        let grace_ms = if about.mode == Mode::Standard { STANDARD_GRACE_MS } else { 0 };
        let hours_max = about.scan_age_hours_max;
        let age_max_ms = i64::from(hours_max) * HOUR_MS;
        if age_ms < -CLOCK_SKEW_MAX_MS || age_ms > age_max_ms + grace_ms {
            return Err(ReceiptError::ScanStale { finished, hours_max });
        }
        if age_ms > age_max_ms {
            warnings.push(format!("the scan of {finished} exceeds its maximum age"));
        }
    }
    let results = statement
        .predicate
        .pointer("/scanner/result")
        .and_then(Value::as_array)
        .ok_or(ReceiptError::ScanMalformed)?;
    for finding in results {
        if severity(finding) >= SEVERITY_REFUSED {
            let id = finding.get("id").and_then(Value::as_str).unwrap_or("unnamed");
            return Err(ReceiptError::Vulnerable { id: short(id) });
        }
    }
    Ok(warnings)
}

/// Lowest rejected severity, high (7.0), in tenths of the CVSS scale.
const SEVERITY_REFUSED: u32 = 70;
const SEVERITY_WORST: u32 = 100;

/// Returns the highest severity that a finding states. A severity that cannot be parsed counts as the highest.
fn severity(finding: &Value) -> u32 {
    let Some(entries) = finding.get("severity").and_then(Value::as_array) else {
        return SEVERITY_WORST;
    };
    entries.iter().map(severity_of_entry).max().unwrap_or(SEVERITY_WORST)
}

/// Returns the severity of one method. Only scores of CVSS are numbers out of ten: others, such as the probability of
/// EPSS, have another scale.
fn severity_of_entry(entry: &Value) -> u32 {
    let is_cvss = lowercase_text(entry, "method").starts_with("cvss");
    match lowercase_text(entry, "score").as_str() {
        "none" | "negligible" | "unimportant" => 0,
        "low" => 39,
        "medium" | "moderate" => 69,
        "high" | "important" => 89,
        number if is_cvss => tenths(number).unwrap_or(SEVERITY_WORST),
        _ => SEVERITY_WORST,
    }
}

fn lowercase_text(entry: &Value, field: &str) -> String {
    entry.get(field).and_then(Value::as_str).unwrap_or_default().to_ascii_lowercase()
}

/// Parses a number from 0 to 10 with at most one decimal, in tenths: `5.2` → 52.
fn tenths(text: &str) -> Option<u32> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let whole: u32 = whole.parse().ok()?;
    let part: u32 = (part.len() == 1).then(|| part.parse().ok())??;
    let value = whole.checked_mul(10)?.checked_add(part)?;
    (value <= SEVERITY_WORST).then_some(value)
}

fn covers_rendering(
    attestation: &'static str,
    statement: &Statement,
    about: &ReceiptContext<'_>,
) -> Result<(), ReceiptError> {
    if statement.covers_named(&about.render.subject, &about.content) {
        Ok(())
    } else {
        Err(ReceiptError::Subject { attestation, subject: short(&about.render.subject) })
    }
}

fn short(text: &str) -> String {
    text.chars().take(160).collect()
}

/// Reason that a receipt is not evidence for a release.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiptError {
    #[error("unknown attestation `{0}`; must be build, test or security-scan")]
    AttestationUnknown(String),
    #[error("the {attestation} receipt has predicate type `{found}`; must be {expected}")]
    PredicateType { attestation: &'static str, expected: &'static str, found: String },
    #[error("the {attestation} receipt is not about `{subject}` with this digest")]
    Subject { attestation: &'static str, subject: String },
    #[error("the scan does not cover image `{image}`")]
    SubjectIncomplete { image: String },
    #[error("the build receipt's {field} is {found}, which the policy does not allow")]
    Build { field: &'static str, found: String },
    #[error("the build receipt names another repository or commit than the release")]
    SourceMismatch,
    #[error("the test receipt's result is {result}")]
    TestFailed { result: String },
    #[error("the test receipt's failedTests is not a list")]
    FailedTestsMalformed,
    #[error("the scan has no time of completion")]
    ScanWithoutTime,
    #[error(
        "the scan finished {finished}, which is in the future or more than {hours_max} hours ago (`maxScanAgeHours` of \
         the trust policy); scan again with `attest run` or `attest release`"
    )]
    ScanStale { finished: Timestamp, hours_max: u32 },
    #[error("the scan has no list of results")]
    ScanMalformed,
    #[error("the scan found {id}, of high or unknown severity")]
    Vulnerable { id: String },
}

impl ReceiptError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::AttestationUnknown(_) => Reason::AttestationUnknown,
            Self::PredicateType { .. } => Reason::PredicateType,
            Self::Subject { .. } => Reason::SubjectMismatch,
            Self::SubjectIncomplete { .. } => Reason::SubjectIncomplete,
            Self::Build { .. } => Reason::BuilderParameters,
            Self::SourceMismatch => Reason::SourceMismatch,
            Self::TestFailed { .. } => Reason::TestFailed,
            Self::ScanWithoutTime | Self::ScanStale { .. } => Reason::AttestationStale,
            Self::ScanMalformed | Self::FailedTestsMalformed => Reason::PredicateMalformed,
            Self::Vulnerable { .. } => Reason::Vulnerable,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn severities_that_cannot_be_understood_are_the_worst() {
        for (score, expected) in
            [("low", 39), ("MEDIUM", 69), ("5.2", 52), ("9.8", 98), ("10", 100), ("0.0", 0)]
        {
            assert_eq!(
                severity(&json!({"severity": [{"method": "cvss", "score": score}]})),
                expected
            );
        }
        for method in ["epss", "nvd", "", "vendor"] {
            let finding = json!({"severity": [{"method": method, "score": "0.9"}]});
            assert_eq!(severity(&finding), SEVERITY_WORST, "{method}");
        }
        for method in ["CVSS", "CVSSv3.1", "cvss_v4"] {
            let finding = json!({"severity": [{"method": method, "score": "3.9"}]});
            assert_eq!(severity(&finding), 39, "{method}");
        }
        for odd in ["", "terrible", "11.0", "5.22", "-1", "1e3"] {
            assert_eq!(
                severity(&json!({"severity": [{"method": "cvss", "score": odd}]})),
                SEVERITY_WORST,
                "{odd}"
            );
        }
        assert_eq!(severity(&json!({})), SEVERITY_WORST);
        assert_eq!(severity(&json!({"severity": []})), SEVERITY_WORST);
    }
}
