//! Converts scanner reports to the predicate vulns v0.2 of in-toto.
//!
//! Findings are copied. `attest_common::documents::receipt` decides about their severity.

use std::path::Path;

use attest_common::basics::ids::Timestamp;
use serde_json::{Map, Value, json};

use super::{ResultError, malformed};

/// Maximum number of findings. A receipt has a size limit.
const FINDINGS_MAX: usize = 1_500;

/// Checks a predicate of the format.
///
/// # Errors
/// [`ResultError::Malformed`] without a time or a list of findings.
pub(super) fn from_vulns(path: &Path, predicate: Value) -> Result<Value, ResultError> {
    let finished = predicate.pointer("/metadata/scanFinishedOn").and_then(Value::as_str);
    if finished.is_none_or(|text| text.parse::<Timestamp>().is_err()) {
        return Err(malformed(path, "has no time in metadata.scanFinishedOn"));
    }
    if !predicate.pointer("/scanner/result").is_some_and(Value::is_array) {
        return Err(malformed(path, "has no list scanner.result"));
    }
    Ok(predicate)
}

/// Converts the output of `grype -o json`.
///
/// # Errors
/// [`ResultError::Malformed`] for another format and for too many findings.
pub(super) fn from_grype(
    path: &Path,
    report: &Value,
    period: (Timestamp, Timestamp),
) -> Result<Value, ResultError> {
    let matches = report
        .get("matches")
        .and_then(Value::as_array)
        .ok_or_else(|| malformed(path, "is not a grype report: it has no list `matches`"))?;
    let findings = matches.iter().map(|found| {
        let vulnerability = found.get("vulnerability").unwrap_or(&Value::Null);
        Finding {
            id: text_field(vulnerability, "id"),
            severity: text_field(vulnerability, "severity"),
            package: text_at(found, "/artifact/name").unwrap_or_default(),
        }
    });
    let scanner = Scanner {
        uri: "https://github.com/anchore/grype",
        version: text_at(report, "/descriptor/version"),
        database_version: text_at(report, "/descriptor/db/status/schemaVersion"),
        database_updated: text_at(report, "/descriptor/db/status/built")
            .or_else(|| text_at(report, "/descriptor/db/built")),
        reported_finish: text_at(report, "/descriptor/timestamp"),
    };
    scanner.predicate(path, findings, period)
}

/// Converts the output of `trivy image --format json`.
///
/// # Errors
/// [`ResultError::Malformed`] for another format and for too many findings.
pub(super) fn from_trivy(
    path: &Path,
    report: &Value,
    period: (Timestamp, Timestamp),
) -> Result<Value, ResultError> {
    if report.get("SchemaVersion").and_then(Value::as_u64) != Some(2) {
        return Err(malformed(path, "is not a trivy report of SchemaVersion 2"));
    }
    // trivy omits empty lists.
    let results = report.get("Results").and_then(Value::as_array).into_iter().flatten();
    let vulnerabilities = results
        .filter_map(|result| result.get("Vulnerabilities").and_then(Value::as_array))
        .flatten();
    let findings = vulnerabilities.map(|found| Finding {
        id: text_field(found, "VulnerabilityID"),
        severity: text_field(found, "Severity"),
        package: text_field(found, "PkgName"),
    });
    let scanner = Scanner {
        uri: "https://github.com/aquasecurity/trivy",
        version: text_at(report, "/Trivy/Version"),
        database_version: None,
        database_updated: None,
        reported_finish: text_at(report, "/CreatedAt"),
    };
    scanner.predicate(path, findings, period)
}

struct Finding<'a> {
    id: &'a str,
    severity: &'a str,
    package: &'a str,
}

struct Scanner<'a> {
    uri: &'static str,
    version: Option<&'a str>,
    database_version: Option<&'a str>,
    database_updated: Option<&'a str>,
    reported_finish: Option<&'a str>,
}

impl Scanner<'_> {
    fn predicate<'a>(
        &self,
        path: &Path,
        findings: impl Iterator<Item = Finding<'a>>,
        (started, step_finished): (Timestamp, Timestamp),
    ) -> Result<Value, ResultError> {
        // The report of an earlier run keeps its own time.
        let reported = self.reported_finish.and_then(|text| text.parse::<Timestamp>().ok());
        let finished = reported.map_or(step_finished, |reported| reported.min(step_finished));
        let mut result = Vec::new();
        for Finding { id, severity, package } in findings {
            if result.len() >= FINDINGS_MAX {
                return Err(malformed(path, format!("lists more than {FINDINGS_MAX} findings")));
            }
            result.push(json!({
                "id": id,
                "severity": [{"method": "vendor", "score": severity.to_ascii_lowercase()}],
                "annotations": [{"package": package}],
            }));
        }
        Ok(json!({
            "scanner": {
                "uri": self.uri,
                "version": self.version.unwrap_or("unknown"),
                "db": self.database(),
                "result": result,
            },
            "metadata": {
                "scanStartedOn": started.min(finished).to_string(),
                "scanFinishedOn": finished.to_string(),
            },
        }))
    }

    fn database(&self) -> Map<String, Value> {
        let fields = [("version", self.database_version), ("lastUpdate", self.database_updated)];
        let known = fields
            .into_iter()
            .filter_map(|(name, value)| value.map(|value| (name.to_owned(), Value::from(value))));
        known.collect()
    }
}

fn text_field<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn text_at<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer).and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn period() -> (Timestamp, Timestamp) {
        ("2026-01-01T00:00:00Z".parse().unwrap(), "2026-01-01T00:01:00Z".parse().unwrap())
    }

    #[test]
    fn findings_of_grype_keep_id_and_severity() {
        let report = json!({
            "matches": [{"vulnerability": {"id": "CVE-1", "severity": "High"}, "artifact": {"name": "xz"}}],
            "descriptor": {"version": "0.90.0", "db": {"status": {"built": "2025-12-31T00:00:00Z"}}},
        });

        let predicate = from_grype(Path::new("x"), &report, period()).unwrap();

        assert_eq!(predicate.pointer("/scanner/result/0/id").unwrap(), "CVE-1");
        assert_eq!(predicate.pointer("/scanner/result/0/severity/0/score").unwrap(), "high");
        assert_eq!(predicate.pointer("/metadata/scanFinishedOn").unwrap(), "2026-01-01T00:01:00Z");
        assert_eq!(predicate.pointer("/scanner/db/lastUpdate").unwrap(), "2025-12-31T00:00:00Z");
    }

    #[test]
    fn a_trivy_report_keeps_its_own_time() {
        let report = json!({"SchemaVersion": 2, "CreatedAt": "2025-06-01T00:00:00Z"});

        let predicate = from_trivy(Path::new("x"), &report, period()).unwrap();

        assert_eq!(predicate.pointer("/metadata/scanFinishedOn").unwrap(), "2025-06-01T00:00:00Z");
        assert_eq!(predicate.pointer("/scanner/result").unwrap(), &json!([]));
    }

    #[test]
    fn reports_of_another_format_are_rejected() {
        let reason = |found: Result<Value, ResultError>| {
            found.map_or_else(|e| e.reason().as_str(), |_| "taken")
        };
        assert_eq!(reason(from_grype(Path::new("x"), &json!({}), period())), "ResultMalformed");
        assert_eq!(reason(from_trivy(Path::new("x"), &json!({}), period())), "ResultMalformed");
        assert_eq!(
            reason(from_vulns(Path::new("x"), json!({"scanner": {"result": []}}))),
            "ResultMalformed"
        );
    }
}
