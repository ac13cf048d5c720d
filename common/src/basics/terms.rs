//! Terms that documents and policies share: roles of CI keys, verification modes, the builder id.

use serde::{Deserialize, Serialize};

/// Builder id of `attest run`, and the default of policies that name none.
pub const BUILDER_ID: &str = "https://attest.continuu.ms/builder/v1";

/// Role of a CI key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    Builder,
    Tester,
    Scanner,
    Releaser,
}

impl Role {
    /// Every CI role.
    pub const ALL: [Self; 4] = [Self::Builder, Self::Tester, Self::Scanner, Self::Releaser];
}

/// Verification mode, in order of strictness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Mode {
    Disabled,
    Audit,
    Standard,
    Strict,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Disabled => "Disabled",
            Self::Audit => "Audit",
            Self::Standard => "Standard",
            Self::Strict => "Strict",
        })
    }
}
