//! Durable state of the spoke, in Secrets of its cluster: records, content, and the last refusals. Stores; does not decide.

pub mod content;
pub mod error;
pub mod index;
pub mod progress;
pub mod records;
pub mod refusals;
