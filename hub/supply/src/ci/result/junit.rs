//! JUnit XML: the passed tests, and that none failed.

use std::path::Path;

use roxmltree::{Document, Node};

use super::{ResultError, malformed};

/// Maximum number of listed names. A receipt has a size limit; all tests are counted.
const NAMES_MAX: usize = 1_000;
/// Maximum length of the name of a test, in characters.
const NAME_CHARS_MAX: usize = 160;

/// Returns the names of the passed tests.
///
/// # Errors
/// [`ResultError`] for another format, for a failed test, and without a passed test.
pub(super) fn passed_tests(path: &Path, bytes: &[u8]) -> Result<Vec<String>, ResultError> {
    let text = str::from_utf8(bytes).map_err(|_| malformed(path, "is not UTF-8"))?;
    let document = Document::parse(text)
        .map_err(|error| malformed(path, format!("is not well-formed XML: {error}")))?;
    let root = document.root_element();
    if !is_suite(&root) {
        let problem = "is not JUnit XML: its root is neither testsuites nor testsuite";
        return Err(malformed(path, problem));
    }
    let (mut passed, mut failed, mut total) = (Vec::new(), Vec::new(), 0_usize);
    for case in root.descendants().filter(|node| node.has_tag_name("testcase")) {
        total += 1;
        if has_child(&case, &["failure", "error"]) {
            failed.push(test_name(&case));
        } else if !has_child(&case, &["skipped"]) && passed.len() < NAMES_MAX {
            passed.push(test_name(&case));
        }
    }
    if failed.is_empty() {
        failed.extend(failed_suite(&root));
    }
    if !failed.is_empty() {
        return Err(ResultError::TestsFailed { failed, total });
    }
    if passed.is_empty() {
        return Err(ResultError::NoTests { path: path.to_owned() });
    }
    Ok(passed)
}

fn is_suite(node: &Node<'_, '_>) -> bool {
    node.is_element() && matches!(node.tag_name().name(), "testsuites" | "testsuite")
}

fn has_child(case: &Node<'_, '_>, names: &[&str]) -> bool {
    case.children().any(|child| names.contains(&child.tag_name().name()))
}

fn test_name(case: &Node<'_, '_>) -> String {
    let class = case.attribute("classname").unwrap_or_default();
    let name = case.attribute("name").unwrap_or_default();
    let full = if class.is_empty() { name.to_owned() } else { format!("{class}.{name}") };
    full.chars().take(NAME_CHARS_MAX).collect()
}

/// Returns a suite that counts failures. A runner that crashed counts one without a test case for it.
fn failed_suite(root: &Node<'_, '_>) -> Option<String> {
    for suite in root.descendants().filter(is_suite) {
        for attribute in ["failures", "errors"] {
            let count = suite.attribute(attribute).unwrap_or("0").trim();
            if !count.trim_start_matches('0').is_empty() {
                let name = suite.attribute("name").unwrap_or("testsuites");
                return Some(format!("{name} ({attribute}={count})"));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(text: &str) -> &'static str {
        passed_tests(Path::new("junit.xml"), text.as_bytes())
            .map_or_else(|e| e.reason().as_str(), |_| "passed")
    }

    #[test]
    fn a_run_passes_only_if_a_test_ran_and_none_failed() {
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

        assert_eq!(passed_tests(Path::new("x"), text.as_bytes()).unwrap(), ["a.b", "c"]);
    }
}
