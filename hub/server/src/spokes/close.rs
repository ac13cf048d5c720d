//! Codes with which the hub closes a connection.

use quinn::VarInt;

/// The connection gave way to a newer one of the same cluster.
pub(crate) const CLOSE_REPLACED: VarInt = VarInt::from_u32(1);
/// The spoke is not, or no longer, admitted.
pub(crate) const CLOSE_NOT_ADMITTED: VarInt =
    VarInt::from_u32(attest_common::session::CLOSE_NOT_ADMITTED);
/// The spoke broke the protocol.
pub(crate) const CLOSE_PROTOCOL: VarInt = VarInt::from_u32(3);
/// The hub ends, or its certificate or the spoke's does: come back.
pub(crate) const CLOSE_COME_BACK: VarInt = VarInt::from_u32(4);
/// Joining is over.
pub(crate) const CLOSE_DONE: VarInt = VarInt::from_u32(0);
