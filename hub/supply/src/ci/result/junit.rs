//! JUnit XML: which tests passed, and that none failed.

use std::path::Path;

use super::{ResultError, malformed};

/// Most names that are listed; a receipt has a size limit, the count is checked over all of them.
const NAMES_MAX: usize = 1_000;
/// Longest name of a test that is kept, in characters.
const NAME_CHARS_MAX: usize = 160;

/// Names of the tests that passed.
pub(super) fn passed(path: &Path, bytes: &[u8]) -> Result<Vec<String>, ResultError> {
    let text = str::from_utf8(bytes).map_err(|_| malformed(path, "is not UTF-8"))?;
    let document = roxmltree::Document::parse(text)
        .map_err(|error| malformed(path, &format!("is not well-formed XML: {error}")))?;
    let root = document.root_element();
    if !matches!(root.tag_name().name(), "testsuites" | "testsuite") {
        return Err(malformed(
            path,
            "is not JUnit XML: its root is neither testsuites nor testsuite",
        ));
    }
    let (mut passed, mut failed, mut total) = (Vec::new(), Vec::new(), 0_usize);
    for case in root.descendants().filter(|node| node.has_tag_name("testcase")) {
        total += 1;
        let name = |attribute| case.attribute(attribute).unwrap_or_default();
        let full = match (name("classname"), name("name")) {
            ("", name) => name.to_owned(),
            (class, name) => format!("{class}.{name}"),
        };
        let full: String = full.chars().take(NAME_CHARS_MAX).collect();
        let says =
            |words: &[&str]| case.children().any(|child| words.contains(&child.tag_name().name()));
        if says(&["failure", "error"]) {
            failed.push(full);
        } else if !says(&["skipped"]) && passed.len() < NAMES_MAX {
            passed.push(full);
        }
    }
    // Runners that die in between count a failure without a case for it.
    for suite in root.descendants().filter(|node| {
        node.is_element() && matches!(node.tag_name().name(), "testsuites" | "testsuite")
    }) {
        for attribute in ["failures", "errors"] {
            let count = suite.attribute(attribute).unwrap_or("0").trim();
            if failed.is_empty() && !count.trim_start_matches('0').is_empty() {
                let suite = suite.attribute("name").unwrap_or("testsuites");
                failed.push(format!("{suite} ({attribute}={count})"));
            }
        }
    }
    if !failed.is_empty() {
        return Err(ResultError::TestsFailed { failed, total });
    }
    if passed.is_empty() {
        return Err(ResultError::NoTests { path: path.to_owned() });
    }
    Ok(passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(text: &str) -> &'static str {
        passed(Path::new("junit.xml"), text.as_bytes())
            .map_or_else(|e| e.reason().as_str(), |_| "passed")
    }

    #[test]
    fn a_run_passes_only_when_something_ran_and_nothing_failed() {
        for (text, expected) in [
            ("<testsuite><testcase classname='a' name='b'/></testsuite>", "passed"),
            (
                "<testsuites><testsuite failures='0'><testcase name='b'/></testsuite></testsuites>",
                "passed",
            ),
            ("<testsuite><testcase name='b'><failure/></testcase></testsuite>", "TestFailed"),
            (
                "<testsuite><testcase name='b'><error message='x'/></testcase></testsuite>",
                "TestFailed",
            ),
            ("<testsuite errors='1'><testcase name='b'/></testsuite>", "TestFailed"),
            ("<testsuite failures='x'><testcase name='b'/></testsuite>", "TestFailed"),
            ("<testsuite><testcase name='b'><skipped/></testcase></testsuite>", "NoTests"),
            ("<testsuites/>", "NoTests"),
            ("<html/>", "ResultMalformed"),
            ("<testsuite>", "ResultMalformed"),
            ("<!DOCTYPE x [<!ENTITY a 'b'>]><testsuite>&a;</testsuite>", "ResultMalformed"),
        ] {
            assert_eq!(reason(text), expected, "{text}");
        }
    }

    #[test]
    fn passed_tests_are_named_by_class_and_name() {
        let text = "<testsuite><testcase classname='a' name='b'/><testcase name='c'/></testsuite>";

        assert_eq!(passed(Path::new("x"), text.as_bytes()).unwrap(), ["a.b", "c"]);
    }
}
