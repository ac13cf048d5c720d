//! Signed documents: in-toto statements, releases, receipts, renderings, plans and directives.

pub mod annotations;
pub mod manifest;
pub mod plan;
pub mod receipt;
pub mod release;
pub mod statement;
