//! Limits of reading YAML, for a whole directory: files, bytes, documents, and nodes after aliases are expanded.
//!
//! A document is counted from the events of its parser, before anything of it is built.

use std::collections::BTreeMap;

/// Most files that are read for one rendering.
pub const YAML_FILES_MAX: usize = 5_000;
/// Most bytes that all files of one rendering have together.
pub const YAML_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Most documents in all files of one rendering.
pub const YAML_DOCUMENTS_MAX: usize = 5_000;
/// Most mappings, sequences and scalars in all files of one rendering, each alias counted with what it expands to.
pub const YAML_NODES_MAX: u64 = 500_000;
/// Most bytes of scalars in all files of one rendering, each alias counted with what it expands to.
pub const YAML_TEXT_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Deepest nesting, in mappings and sequences.
pub(super) const YAML_DEPTH_MAX: usize = 64;

/// The rule of kubectl's YAML reader: a document of more than this many nodes is judged by its aliases,
const JUDGED_NODES_MIN: u64 = 1_000;
/// if more than this many nodes come from them.
const JUDGED_ALIASED_NODES_MIN: u64 = 100;
/// Nodes up to which 99 % may come from aliases.
const RATIO_NODES_LOW: u64 = 400_000;
/// Nodes from which on 10 % may come from aliases.
const RATIO_NODES_HIGH: u64 = 4_000_000;
const RATIO_PER_MILLE_HIGH: u64 = 990;
const RATIO_PER_MILLE_LOW: u64 = 100;

/// Size of the files of one directory that have been read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct YamlBudget {
    files: usize,
    bytes: usize,
    documents: usize,
    size: Size,
}

/// A limit that is exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exceeded {
    /// The files have more of something than is allowed.
    Limit { what: &'static str, max: u64 },
    /// Too large a share of a document comes from aliases.
    Aliases,
}

impl std::fmt::Display for Exceeded {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Limit { what, max } => {
                write!(formatter, "more than {max} {what} in one rendering")
            }
            Self::Aliases => formatter
                .write_str("too much of the document comes from aliases, kubectl refuses it too"),
        }
    }
}

/// Nodes, and bytes of scalars.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Size {
    nodes: u64,
    text_bytes: u64,
}

impl Size {
    fn plus(self, other: Self) -> Self {
        Self {
            nodes: self.nodes.saturating_add(other.nodes),
            text_bytes: self.text_bytes.saturating_add(other.text_bytes),
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            nodes: self.nodes.saturating_sub(other.nodes),
            text_bytes: self.text_bytes.saturating_sub(other.text_bytes),
        }
    }
}

impl YamlBudget {
    /// Counts a file.
    pub(super) fn add_file(&mut self, bytes: usize) -> Result<(), Exceeded> {
        self.files += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        within("files", self.files as u64, YAML_FILES_MAX as u64)?;
        within("bytes", self.bytes as u64, YAML_BYTES_MAX as u64)
    }

    /// Counts a document that ended.
    pub(super) fn add_document(&mut self, document: &DocumentCount) -> Result<(), Exceeded> {
        self.documents += 1;
        self.size = self.size.plus(document.size);
        within("documents", self.documents as u64, YAML_DOCUMENTS_MAX as u64)?;
        self.fits(Size::default())
    }

    /// Checks a document that has not ended.
    pub(super) fn check(&self, document: &DocumentCount) -> Result<(), Exceeded> {
        self.fits(document.size)
    }

    fn fits(&self, more: Size) -> Result<(), Exceeded> {
        let size = self.size.plus(more);
        within("values, aliases expanded,", size.nodes, YAML_NODES_MAX)?;
        within("bytes of values, aliases expanded,", size.text_bytes, YAML_TEXT_BYTES_MAX)
    }
}

fn within(what: &'static str, number: u64, max: u64) -> Result<(), Exceeded> {
    if number > max { Err(Exceeded::Limit { what, max }) } else { Ok(()) }
}

/// The size of one document, with every alias counted as what it expands to.
#[derive(Debug, Default)]
pub(super) struct DocumentCount {
    size: Size,
    aliased_nodes: u64,
    anchors: BTreeMap<usize, Size>,
    /// Anchor of each open mapping or sequence (0 for none), and the size before it.
    open: Vec<(usize, Size)>,
}

impl DocumentCount {
    /// Counts a scalar; `anchor` is 0 when it has none.
    pub(super) fn scalar(&mut self, anchor: usize, bytes: usize) {
        let scalar = Size { nodes: 1, text_bytes: bytes as u64 };
        self.size = self.size.plus(scalar);
        self.remember(anchor, scalar);
    }

    /// Counts the start of a mapping or sequence.
    pub(super) fn start(&mut self, anchor: usize) -> Result<(), Exceeded> {
        self.open.push((anchor, self.size));
        self.size = self.size.plus(Size { nodes: 1, text_bytes: 0 });
        within("levels of nesting", self.open.len() as u64, YAML_DEPTH_MAX as u64)
    }

    /// Counts the end of a mapping or sequence.
    pub(super) fn end(&mut self) {
        if let Some((anchor, before)) = self.open.pop() {
            self.remember(anchor, self.size.minus(before));
        }
    }

    /// Counts an alias with everything that it expands to.
    pub(super) fn alias(&mut self, anchor: usize) -> Result<(), Exceeded> {
        // An alias inside its own anchor has no size yet; the reader refuses it.
        let expanded = self.anchors.get(&anchor).copied().unwrap_or_default();
        self.aliased_nodes = self.aliased_nodes.saturating_add(expanded.nodes);
        self.size = self.size.plus(expanded).plus(Size { nodes: 1, text_bytes: 0 });
        if is_excessive(self.size.nodes, self.aliased_nodes) {
            Err(Exceeded::Aliases)
        } else {
            Ok(())
        }
    }

    fn remember(&mut self, anchor: usize, size: Size) {
        if anchor != 0 {
            self.anchors.insert(anchor, size);
        }
    }
}

/// Returns true when kubectl's reader refuses a document of which this much comes from aliases: more than 99 % of up to
/// 400,000 nodes, falling to 10 % of 4,000,000 (`allowedAliasRatio` in `decode.go` of yaml.v3 and sigs.k8s.io/yaml).
fn is_excessive(nodes: u64, aliased_nodes: u64) -> bool {
    let above = nodes.clamp(RATIO_NODES_LOW, RATIO_NODES_HIGH) - RATIO_NODES_LOW;
    let fall = (RATIO_PER_MILLE_HIGH - RATIO_PER_MILLE_LOW) * above;
    let allowed_per_mille = RATIO_PER_MILLE_HIGH - fall / (RATIO_NODES_HIGH - RATIO_NODES_LOW);
    let aliased = u128::from(aliased_nodes) * 1_000;
    aliased_nodes > JUDGED_ALIASED_NODES_MIN
        && nodes > JUDGED_NODES_MIN
        && aliased > u128::from(nodes) * u128::from(allowed_per_mille)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_are_refused_where_kubectl_refuses_them() {
        for (nodes, aliased_nodes, expected) in [
            (1_000, 1_000, false),
            (1_001, 1_001, true),
            (2_000, 100, false),
            (10_000, 9_900, false),
            (10_000, 9_901, true),
            (400_000, 396_000, false),
            (400_000, 396_001, true),
            (2_200_000, 1_199_000, false),
            (2_200_000, 1_201_000, true),
            (4_000_000, 400_000, false),
            (4_000_000, 400_001, true),
            (40_000_000, 4_000_001, true),
            (u64::MAX, u64::MAX, true),
        ] {
            assert_eq!(is_excessive(nodes, aliased_nodes), expected, "{nodes} {aliased_nodes}");
        }
    }

    #[test]
    fn an_alias_counts_as_what_it_expands_to() {
        let mut count = DocumentCount::default();
        count.start(1).unwrap();
        count.scalar(2, 5);
        count.alias(2).unwrap();
        count.end();
        count.alias(1).unwrap();

        // The sequence, its scalar, the alias and its scalar; the second alias and all of these.
        assert_eq!(count.size, Size { nodes: 4 + 1 + 4, text_bytes: 20 });
        assert_eq!(count.aliased_nodes, 1 + 4);
    }
}
