//! Keys of mappings: refused where kubectl merges (`<<`) differently, and where two keys are one text once they are read.
//!
//! For kubectl, a merge replaces the keys before it; here and in most readers a key of the mapping always wins.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use serde_saphyr::granit_parser::{Event, ScalarStyle};

type Keys = BTreeSet<String>;

/// Follows the events of one document.
#[derive(Debug, Default)]
pub(super) struct KeyCheck {
    open: Vec<Open>,
    /// Keys of each mapping that has an anchor.
    anchors: BTreeMap<usize, Rc<Keys>>,
}

/// An open mapping or sequence.
#[derive(Debug)]
struct Open {
    anchor: usize,
    shape: Shape,
    is_merged: bool,
    /// Keys that are written in a mapping.
    own: Keys,
    /// Keys that are merged into a mapping, or those of all mappings of a merged sequence.
    merged: Keys,
}

#[derive(Debug, PartialEq, Eq)]
enum Shape {
    Sequence,
    Mapping { next: Next, has_merge: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Key,
    Value,
    /// The value of `<<`.
    Merge,
}

impl KeyCheck {
    /// Takes the next event.
    ///
    /// # Errors
    /// The problem, for the author of the file.
    pub(super) fn event(&mut self, event: &Event<'_>) -> Result<(), String> {
        match event {
            Event::Scalar(text, style, _, tag) => {
                let is_merge = text == "<<"
                    && (*style == ScalarStyle::Plain && tag.is_none()
                        || tag.as_ref().is_some_and(|tag| tag.suffix() == "merge"));
                self.scalar(text, is_merge)
            }
            Event::Alias(anchor) => self.alias(*anchor),
            Event::SequenceStart(_, anchor, _) => self.start(*anchor, Shape::Sequence),
            Event::MappingStart(_, anchor, _) => {
                self.start(*anchor, Shape::Mapping { next: Next::Key, has_merge: false })
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::DocumentEnd => {
                *self = Self::default();
                Ok(())
            }
            Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(..)
            | Event::Anchor(..)
            | Event::UnresolvedAlias(_)
            | Event::Comment(..)
            | _ => Ok(()),
        }
    }

    fn scalar(&mut self, text: &str, is_merge: bool) -> Result<(), String> {
        if self.expects_merged() {
            return Err("`<<` takes a mapping or a sequence of mappings".to_owned());
        }
        let Some(Open { shape: Shape::Mapping { next, has_merge }, own, .. }) =
            self.open.last_mut()
        else {
            return Ok(());
        };
        match (*next, is_merge) {
            (Next::Key, true) if *has_merge => return Err("`<<` is given twice".to_owned()),
            (Next::Key, true) => (*next, *has_merge) = (Next::Merge, true),
            (Next::Key, false) if !own.insert(text.to_owned()) => {
                return Err(format!("key `{text}` is given twice"));
            }
            (Next::Key, false) => *next = Next::Value,
            (Next::Value | Next::Merge, _) => *next = Next::Key,
        }
        Ok(())
    }

    fn alias(&mut self, anchor: usize) -> Result<(), String> {
        if self.expects_merged() {
            let Some(keys) = self.anchors.get(&anchor).map(Rc::clone) else {
                return Err("`<<` takes an alias of a mapping".to_owned());
            };
            self.merge(&keys)?;
        }
        self.advance();
        Ok(())
    }

    fn start(&mut self, anchor: usize, shape: Shape) -> Result<(), String> {
        let is_merged = self.expects_merged();
        let is_in_sequence = self.open.last().is_some_and(|open| open.shape == Shape::Sequence);
        if is_merged && is_in_sequence && shape == Shape::Sequence {
            return Err("`<<` takes a mapping or a sequence of mappings".to_owned());
        }
        self.open.push(Open { anchor, shape, is_merged, own: Keys::new(), merged: Keys::new() });
        Ok(())
    }

    fn end(&mut self) -> Result<(), String> {
        let Some(Open { anchor, shape, is_merged, own, merged: mut keys }) = self.open.pop() else {
            return Ok(());
        };
        keys.extend(own);
        if is_merged {
            self.merge(&keys)?;
        }
        if anchor != 0 && shape != Shape::Sequence {
            self.anchors.insert(anchor, Rc::new(keys));
        }
        self.advance();
        Ok(())
    }

    /// Returns true if the next node is merged.
    fn expects_merged(&self) -> bool {
        self.open.last().is_some_and(|open| match open.shape {
            Shape::Sequence => open.is_merged,
            Shape::Mapping { next, .. } => next == Next::Merge,
        })
    }

    /// Adds the keys of a merged node to the node that is open.
    fn merge(&mut self, merged: &Keys) -> Result<(), String> {
        let Some(open) = self.open.last_mut() else { return Ok(()) };
        if open.shape != Shape::Sequence
            && let Some(key) = open.own.intersection(merged).next()
        {
            return Err(format!(
                "kubectl replaces key {key:?} by that of the `<<` after it: put `<<` first"
            ));
        }
        open.merged.extend(merged.iter().cloned());
        Ok(())
    }

    /// In a mapping, a value follows a key and a key a value.
    fn advance(&mut self) {
        if let Some(Open { shape: Shape::Mapping { next, .. }, .. }) = self.open.last_mut() {
            *next = if *next == Next::Key { Next::Value } else { Next::Key };
        }
    }
}
