//! Free loopback ports for servers with a configured port.
//!
//! They lie below the ephemeral range, so that a port stays free until it is bound, and while its server
//! restarts.

use std::collections::HashSet;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use anyhow::bail;
use attest_common::basics::locked::Locked;

const FIRST: u16 = 15_000;
const COUNT: u16 = 16_000;

/// Returns a free port on 127.0.0.1, for TCP and UDP, never the same twice in this process.
///
/// # Errors
/// When there is none left.
pub fn free() -> anyhow::Result<u16> {
    static GIVEN: Locked<Option<HashSet<u16>>> = Locked::new(None);
    let mut given = GIVEN.lock();
    let given = given.get_or_insert_default();
    let mut random = [0; 2];
    getrandom::fill(&mut random)?;
    let start = u16::from_le_bytes(random) % COUNT;
    for step in 0..COUNT {
        let port = FIRST + (start + step) % COUNT;
        if !given.contains(&port)
            && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
            && UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
        {
            given.insert(port);
            return Ok(port);
        }
    }
    bail!("no free port on 127.0.0.1 between {FIRST} and {}", FIRST + COUNT)
}
