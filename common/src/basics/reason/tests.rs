//! The registry is consistent, and any text is read.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

#[test]
fn every_reason_reads_back_from_its_word() {
    for reason in Reason::ALL {
        assert_eq!(Reason::parse(reason.as_str()), Some(*reason));
        assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
        let read: ReportedReason = serde_json::from_value(reason.as_str().into()).unwrap();
        assert_eq!(read, *reason);
    }
}

#[test]
fn every_reason_is_one_word_with_a_meaning_and_a_remedy_in_one_line() {
    for reason in Reason::ALL {
        let word = reason.as_str();
        assert!(word.starts_with(|c: char| c.is_ascii_uppercase()), "{word}");
        assert!(word.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{word}");
        for text in [reason.meaning(), reason.remedy()] {
            assert!(!text.is_empty() && !text.contains(['|', '\n']), "{word}: {text}");
            assert!(!text.ends_with('.') && !text.starts_with(' '), "{word}: {text}");
        }
    }
}

#[test]
fn the_subjects_list_each_reason_once() {
    let listed: Vec<Reason> =
        SUBJECTS.iter().flat_map(|subject| subject.reasons).copied().collect();

    assert_eq!(listed, Reason::ALL);
    assert_eq!(listed.iter().collect::<BTreeSet<_>>().len(), listed.len());
}

#[test]
fn words_of_the_previous_release_are_read_as_the_new_ones() {
    assert!(RENAMED.is_sorted());
    for (old, reason) in RENAMED {
        assert_eq!(Reason::of_word(old), None, "{old} is in use again");
        assert_eq!(ReportedReason::parse(old), reason);
    }
}

#[test]
fn the_page_of_reasons_names_each_once_with_its_meaning() {
    let page = page();

    for reason in Reason::ALL {
        let row = format!("| `{reason}` | {} | {} |", reason.meaning(), reason.remedy());
        assert_eq!(page.matches(&row).count(), 1, "{reason}");
    }
}

proptest! {
    #[test]
    fn any_text_is_read_as_a_reason_of_bounded_length(text in ".{0,400}") {
        let read = ReportedReason::parse(&text);

        prop_assert!(read.as_str().chars().count() <= REASON_CHARACTERS_MAX);
        prop_assert!(!read.as_str().chars().any(char::is_control));
        prop_assert_eq!(ReportedReason::parse(read.as_str()), read);
    }
}
