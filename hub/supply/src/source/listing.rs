//! Lists the references of a repository by one request of Git's protocol version 2, on a connection that is kept.
//!
//! Only for repositories over https that a complete exchange has resolved before, and only to find that nothing has
//! changed. After any other answer a complete exchange follows, which finds the new commit or classifies the failure.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::time::{Duration, Instant};

use attest_common::basics::locked::Locked;

use super::Remote;
use super::revision::{self, Resolved};
use super::transport::KeptClients;
use super::url::Scheme;

/// Time limit of a request, in seconds. A complete exchange follows a request that takes longer.
const LISTING_SECONDS_MAX: u64 = 10;
/// Maximum size of an answer in bytes: only references with the prefix of the revision are listed.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;
/// Maximum number of repositories and revisions of which the newest commit is kept.
const POLLED_MAX: usize = 32 * 1024;
const ANSWER_TYPE: &[u8] = b"application/x-git-upload-pack-result";
const REQUEST_TYPE: &str = "application/x-git-upload-pack-request";

/// Newest commits of the repositories that were polled, and the connections to their servers.
#[derive(Debug, Default)]
pub(super) struct Listings {
    clients: KeptClients,
    polled: Locked<BTreeMap<PolledKey, Polled>>,
}

/// Address of a repository, and revision.
type PolledKey = (String, String);

/// Result of the newest complete exchange.
#[derive(Clone, Debug)]
struct Polled {
    /// Repository and credentials of the exchange, which has checked them.
    remote: Remote,
    /// Address of the repository after redirects on the same host.
    address: String,
    resolved: Resolved,
    /// False when the server does not answer such a request.
    lists: bool,
}

/// Outcome of a request.
#[derive(Debug, PartialEq, Eq)]
enum Listing {
    /// Names and commits.
    References(Vec<(String, String)>),
    /// The server answers, but not with references.
    Unsupported,
    Failed,
}

impl Listings {
    /// Keeps the result of a complete exchange with the repository, which was found at `address`.
    pub(super) fn note(
        &self,
        remote: &Remote,
        address: String,
        revision: &str,
        resolved: &Resolved,
    ) {
        if remote.url.scheme() != Scheme::Https {
            return;
        }
        let key = (remote.url.address(), revision.to_owned());
        let mut polled = self.polled.lock();
        if polled.len() >= POLLED_MAX && !polled.contains_key(&key) {
            polled.clear();
        }
        let lists = polled.get(&key).is_none_or(|known| known.lists || known.remote != *remote);
        let noted = Polled { remote: remote.clone(), address, resolved: resolved.clone(), lists };
        polled.insert(key, noted);
    }

    /// Returns the commit of the newest complete exchange if the server lists the same one now. `None` requires a
    /// complete exchange.
    pub(super) fn unchanged(
        &self,
        remote: &Remote,
        revision: &str,
        candidates: &[String],
    ) -> Option<Resolved> {
        let key = (remote.url.address(), revision.to_owned());
        let known = self.polled.lock().get(&key).cloned()?;
        if known.remote != *remote || !known.lists {
            return None;
        }
        match self.list(remote, &known, candidates) {
            Listing::References(listed) => {
                let found =
                    revision::resolve_revision(&remote.url, revision, candidates, listed).ok()?;
                (found == known.resolved).then_some(found)
            }
            Listing::Unsupported => {
                self.polled.lock().entry(key).and_modify(|known| known.lists = false);
                None
            }
            Listing::Failed => {
                // A server that does not answer is asked once in a poll.
                self.polled.lock().remove(&key);
                None
            }
        }
    }

    fn list(&self, remote: &Remote, known: &Polled, candidates: &[String]) -> Listing {
        let limit = Duration::from_secs(LISTING_SECONDS_MAX);
        let Ok(client) = self.clients.client(remote, limit, Instant::now()) else {
            return Listing::Failed;
        };
        let request = client
            .post(format!("{}/git-upload-pack", known.address))
            .header("Content-Type", REQUEST_TYPE)
            .header("Accept", "application/x-git-upload-pack-result")
            .header("Git-Protocol", "version=2")
            .body(request_body(&known.resolved.commit, candidates));
        let request = match &remote.credentials.login {
            Some(login) => request.basic_auth(&login.username, Some(&login.password)),
            None => request,
        };
        let Ok(response) = request.send() else { return Listing::Failed };
        if !response.status().is_success() {
            return Listing::Failed;
        }
        let content_type = response.headers().get("content-type").map(|value| value.as_bytes());
        let is_answer = content_type == Some(ANSWER_TYPE);
        let mut answer = Vec::new();
        match response.take(ANSWER_BYTES_MAX).read_to_end(&mut answer) {
            Ok(_) if is_answer => {
                parse_answer(&answer).map_or(Listing::Unsupported, Listing::References)
            }
            Ok(_) => Listing::Unsupported,
            Err(_) => Listing::Failed,
        }
    }
}

/// Returns the request for the references whose names begin with a candidate, in the object format of a known commit.
fn request_body(commit: &str, candidates: &[String]) -> Vec<u8> {
    let format = match commit.len() {
        SHA256_DIGITS => packet("object-format=sha256\n"),
        _ => String::new(),
    };
    let mut body = packet("command=ls-refs\n") + &format + "0001" + &packet("peel\n");
    for candidate in candidates {
        body += &packet(&format!("ref-prefix {candidate}\n"));
    }
    body += "0000";
    body.into_bytes()
}

fn packet(line: &str) -> String {
    format!("{:04x}{line}", line.len() + LENGTH_BYTES)
}

/// Digits of a commit's name in a repository of object format `sha256`. The format `sha1` need not be named.
const SHA256_DIGITS: usize = 64;
/// Size of the length of a packet, which counts itself.
const LENGTH_BYTES: usize = 4;

/// Returns name and commit of each reference in an answer. A tag is followed to its commit. `None` if the answer is not
/// a complete list.
fn parse_answer(answer: &[u8]) -> Option<Vec<(String, String)>> {
    let mut listed = Vec::new();
    let mut rest = answer;
    loop {
        let (length, after) = rest.split_at_checked(LENGTH_BYTES)?;
        if !length.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let length = usize::from_str_radix(std::str::from_utf8(length).ok()?, 16).ok()?;
        if length == 0 {
            return after.is_empty().then_some(listed);
        }
        let (line, after) = after.split_at_checked(length.checked_sub(LENGTH_BYTES)?)?;
        listed.push(parse_reference(std::str::from_utf8(line).ok()?)?);
        rest = after;
    }
}

/// `OBJECT NAME`, and attributes: `peeled:OBJECT` is the object of a tag.
fn parse_reference(line: &str) -> Option<(String, String)> {
    let mut words = line.trim_end_matches('\n').split(' ');
    let (object, name) = (words.next()?, words.next()?);
    let peeled = words.find_map(|attribute| attribute.strip_prefix("peeled:"));
    let commit = peeled.unwrap_or(object);
    revision::is_commit_id(commit).then(|| (name.to_owned(), commit.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    const TAG: &str = "89abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn a_request_asks_for_the_candidates_only() {
        let candidates = ["refs/heads/main".to_owned(), "refs/tags/main".to_owned()];
        let rest =
            "00010009peel\n001fref-prefix refs/heads/main\n001eref-prefix refs/tags/main\n0000";

        for (commit, format) in
            [(COMMIT.to_owned(), ""), ("a".repeat(SHA256_DIGITS), "0019object-format=sha256\n")]
        {
            let body = String::from_utf8(request_body(&commit, &candidates)).unwrap();
            assert_eq!(body, format!("0014command=ls-refs\n{format}{rest}"));
        }
    }

    #[test]
    fn an_answer_lists_names_and_commits() {
        let lines = [
            format!("{COMMIT} HEAD symref-target:refs/heads/main\n"),
            format!("{COMMIT} refs/heads/main\n"),
            format!("{TAG} refs/tags/v1 peeled:{COMMIT}\n"),
        ];
        let answer = lines.map(|line| packet(&line)).concat() + "0000";

        let listed = parse_answer(answer.as_bytes()).unwrap();

        let expected = ["HEAD", "refs/heads/main", "refs/tags/v1"];
        assert_eq!(listed, expected.map(|name| (name.to_owned(), COMMIT.to_owned())));
        assert_eq!(parse_answer(b"0000"), Some(Vec::new()));
    }

    #[test]
    fn anything_else_is_not_an_answer() {
        let line = packet(&format!("{COMMIT} refs/heads/main\n"));
        let refused = packet("ERR access denied\n") + "0000";
        for answer in [
            "",
            "000",
            "0001",
            "+00f",
            "zzzz",
            "<html>",
            &line,
            &format!("{line}0000more"),
            &format!("{line}0100short"),
            &refused,
            &(packet("unborn HEAD symref-target:refs/heads/main\n") + "0000"),
        ] {
            assert_eq!(parse_answer(answer.as_bytes()), None, "{answer}");
        }
    }
}
