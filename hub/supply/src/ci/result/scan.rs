//! Scanner reports as the predicate of in-toto's vulns v0.2.
//!
//! Findings are carried over, never judged: what is too severe is decided by `attest_common::documents::receipt`.

use std::path::Path;

use attest_common::basics::ids::Timestamp;
use serde_json::{Value, json};

use super::{ResultError, malformed};

/// Most findings that are carried over; a receipt has a size limit.
const FINDINGS_MAX: usize = 1_500;

/// A predicate that is taken as it is.
pub(super) fn vulns(path: &Path, predicate: Value) -> Result<Value, ResultError> {
    let finished = predicate.pointer("/metadata/scanFinishedOn").and_then(Value::as_str);
    if finished.is_none_or(|text| text.parse::<Timestamp>().is_err()) {
        return Err(malformed(path, "says no time in metadata.scanFinishedOn"));
    }
    if !predicate.pointer("/scanner/result").is_some_and(Value::is_array) {
        return Err(malformed(path, "has no list scanner.result"));
    }
    Ok(predicate)
}

/// `grype -o json`.
pub(super) fn grype(
    path: &Path,
    report: &Value,
    ran: (Timestamp, Timestamp),
) -> Result<Value, ResultError> {
    let matches = report.get("matches").and_then(Value::as_array);
    let matches =
        matches.ok_or_else(|| malformed(path, "is no grype report: no list `matches`"))?;
    let findings = matches.iter().map(|found| {
        let vulnerability = found.get("vulnerability").unwrap_or(&Value::Null);
        Finding {
            id: text(vulnerability, "id"),
            severity: text(vulnerability, "severity"),
            package: found.pointer("/artifact/name").and_then(Value::as_str).unwrap_or_default(),
        }
    });
    let at = |pointer: &str| report.pointer(pointer).and_then(Value::as_str);
    let database = at("/descriptor/db/status/built").or_else(|| at("/descriptor/db/built"));
    let schema = at("/descriptor/db/status/schemaVersion");
    let scanner = Scanner {
        uri: "https://github.com/anchore/grype",
        version: at("/descriptor/version"),
        database_version: schema,
        database_updated: database,
        said_finished: at("/descriptor/timestamp"),
    };
    scanner.predicate(path, findings, ran)
}

/// `trivy image --format json`.
pub(super) fn trivy(
    path: &Path,
    report: &Value,
    ran: (Timestamp, Timestamp),
) -> Result<Value, ResultError> {
    if report.get("SchemaVersion").and_then(Value::as_u64) != Some(2) {
        return Err(malformed(path, "is no trivy report of SchemaVersion 2"));
    }
    // trivy leaves empty lists out.
    let results = report.get("Results").and_then(Value::as_array).into_iter().flatten();
    let vulnerabilities = results
        .filter_map(|result| result.get("Vulnerabilities").and_then(Value::as_array))
        .flatten();
    let findings = vulnerabilities.map(|found| Finding {
        id: text(found, "VulnerabilityID"),
        severity: text(found, "Severity"),
        package: text(found, "PkgName"),
    });
    let scanner = Scanner {
        uri: "https://github.com/aquasecurity/trivy",
        version: report.pointer("/Trivy/Version").and_then(Value::as_str),
        database_version: None,
        database_updated: None,
        said_finished: report.get("CreatedAt").and_then(Value::as_str),
    };
    scanner.predicate(path, findings, ran)
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
    said_finished: Option<&'a str>,
}

impl Scanner<'_> {
    fn predicate<'a>(
        &self,
        path: &Path,
        findings: impl Iterator<Item = Finding<'a>>,
        (started, finished): (Timestamp, Timestamp),
    ) -> Result<Value, ResultError> {
        // A report that was kept from an earlier run is as old as it says.
        let said = self.said_finished.and_then(|text| text.parse::<Timestamp>().ok());
        let finished = said.map_or(finished, |said| said.min(finished));
        let mut result = Vec::new();
        for Finding { id, severity, package } in findings {
            if result.len() >= FINDINGS_MAX {
                let problem = format!("lists more than {FINDINGS_MAX} findings");
                return Err(malformed(path, &problem));
            }
            result.push(json!({
                "id": id,
                "severity": [{"method": "vendor", "score": severity.to_ascii_lowercase()}],
                "annotations": [{"package": package}],
            }));
        }
        let mut database = json!({});
        if let Some(fields) = database.as_object_mut() {
            for (name, value) in
                [("version", self.database_version), ("lastUpdate", self.database_updated)]
            {
                if let Some(value) = value {
                    fields.insert(name.to_owned(), Value::from(value));
                }
            }
        }
        Ok(json!({
            "scanner": {
                "uri": self.uri,
                "version": self.version.unwrap_or("unknown"),
                "db": database,
                "result": result,
            },
            "metadata": {
                "scanStartedOn": started.min(finished).to_string(),
                "scanFinishedOn": finished.to_string(),
            },
        }))
    }
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran() -> (Timestamp, Timestamp) {
        ("2026-01-01T00:00:00Z".parse().unwrap(), "2026-01-01T00:01:00Z".parse().unwrap())
    }

    #[test]
    fn findings_of_grype_keep_id_and_severity() {
        let report = json!({
            "matches": [{"vulnerability": {"id": "CVE-1", "severity": "High"}, "artifact": {"name": "xz"}}],
            "descriptor": {"version": "0.90.0", "db": {"status": {"built": "2025-12-31T00:00:00Z"}}},
        });

        let predicate = grype(Path::new("x"), &report, ran()).unwrap();

        assert_eq!(predicate.pointer("/scanner/result/0/id").unwrap(), "CVE-1");
        assert_eq!(predicate.pointer("/scanner/result/0/severity/0/score").unwrap(), "high");
        assert_eq!(predicate.pointer("/metadata/scanFinishedOn").unwrap(), "2026-01-01T00:01:00Z");
        assert_eq!(predicate.pointer("/scanner/db/lastUpdate").unwrap(), "2025-12-31T00:00:00Z");
    }

    #[test]
    fn a_trivy_report_is_as_old_as_it_says() {
        let report = json!({"SchemaVersion": 2, "CreatedAt": "2025-06-01T00:00:00Z"});

        let predicate = trivy(Path::new("x"), &report, ran()).unwrap();

        assert_eq!(predicate.pointer("/metadata/scanFinishedOn").unwrap(), "2025-06-01T00:00:00Z");
        assert_eq!(predicate.pointer("/scanner/result").unwrap(), &json!([]));
    }

    #[test]
    fn reports_of_another_kind_are_refused() {
        let reason = |found: Result<Value, ResultError>| {
            found.map_or_else(|e| e.reason().as_str(), |_| "taken")
        };
        assert_eq!(reason(grype(Path::new("x"), &json!({}), ran())), "ResultMalformed");
        assert_eq!(reason(trivy(Path::new("x"), &json!({}), ran())), "ResultMalformed");
        assert_eq!(
            reason(vulns(Path::new("x"), json!({"scanner": {"result": []}}))),
            "ResultMalformed"
        );
    }
}
