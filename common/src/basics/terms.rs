//! Terms that documents and policies share: roles of CI keys, verification modes, the builder id.

use serde::{Deserialize, Serialize};

/// Builder id of `attest run`, and the default of a policy that names none.
pub const BUILDER_ID: &str = "https://attest.continuu.ms/builder/v1";

/// What a CI key may sign.
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

/// How strictly failures are treated. Ordered: a later one is stricter.
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
