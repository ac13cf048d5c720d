//! Codes with which the hub closes a connection.

use quinn::VarInt;

/// A newer connection of the same cluster replaced this one.
pub(crate) const CLOSE_REPLACED: VarInt = VarInt::from_u32(1);
/// The spoke is not, or no longer, admitted.
pub(crate) const CLOSE_NOT_ADMITTED: VarInt =
    VarInt::from_u32(attest_common::session::CLOSE_NOT_ADMITTED);
/// The spoke broke the protocol.
pub(crate) const CLOSE_PROTOCOL: VarInt = VarInt::from_u32(3);
/// The hub stops, or a certificate expired: the spoke reconnects.
pub(crate) const CLOSE_COME_BACK: VarInt = VarInt::from_u32(4);
/// The join request was answered.
pub(crate) const CLOSE_DONE: VarInt = VarInt::from_u32(0);
