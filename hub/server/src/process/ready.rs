//! `attest-hub --check-ready HOST:PORT`: asks a running hub whether it is ready. `helm test` runs it in a pod of the image,
//! which contains no other program that could.

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::{Duration, Instant};

use clap::Parser;

/// Time within which the hub has to become ready.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Timeout of one attempt.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// Delay between attempts.
const ATTEMPT_INTERVAL: Duration = Duration::from_secs(1);
/// Most bytes read of an answer.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// The only flag of a check.
#[derive(Debug, Parser)]
#[command(name = "attest-hub")]
pub struct ReadinessCheck {
    /// Ask the hub whose `/ready` is at this address, instead of running one.
    #[arg(long, value_name = "HOST:PORT")]
    check_ready: String,
}

impl ReadinessCheck {
    /// Returns the check that the command line asks for, if it asks for one.
    pub fn requested() -> Option<Self> {
        Self::try_parse().ok()
    }

    /// Waits until the hub is ready.
    ///
    /// # Errors
    /// The last answer, when the hub does not become ready in time.
    pub fn run(&self) -> Result<(), String> {
        let started = Instant::now();
        loop {
            match self.attempt() {
                Ok(()) => return Ok(()),
                Err(error) if started.elapsed() >= READY_WITHIN => {
                    return Err(format!("the hub at {} is not ready: {error}", self.check_ready));
                }
                Err(_) => std::thread::sleep(ATTEMPT_INTERVAL),
            }
        }
    }

    fn attempt(&self) -> Result<(), String> {
        let answer = request(&self.check_ready).map_err(|error| error.to_string())?;
        let status = answer.split(' ').nth(1).unwrap_or_default();
        if status == "200" { Ok(()) } else { Err(answer.trim().to_owned()) }
    }
}

fn request(address: &str) -> std::io::Result<String> {
    let resolved = address.to_socket_addrs()?.next();
    let resolved = resolved.ok_or_else(|| std::io::Error::other("the name has no address"))?;
    let mut stream = TcpStream::connect_timeout(&resolved, ATTEMPT_TIMEOUT)?;
    stream.set_read_timeout(Some(ATTEMPT_TIMEOUT))?;
    write!(stream, "GET /ready HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
