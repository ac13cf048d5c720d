//! An https server of Git repositories with one thread per connection, for benches of many repositories: it lists
//! references itself, and starts `git upload-pack` for commits only.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use attest_certs::authority::{Authority, Host};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// Validity of the certificate.
const VALIDITY: Duration = Duration::from_secs(24 * 3600);
/// Largest body of a request in bytes.
const BODY_BYTES_MAX: u64 = 1024 * 1024;
/// Capabilities of protocol version 2.
const CAPABILITIES: [&str; 5] =
    ["version 2\n", "agent=git/2\n", "ls-refs\n", "fetch=shallow\n", "object-format=sha1\n"];

/// A server of the bare repositories below a directory. Ends with the process.
#[derive(Debug)]
pub struct GitServer {
    port: u16,
    ca_pem: String,
    projects: PathBuf,
}

impl GitServer {
    /// Serves the repositories below `projects` to every client.
    ///
    /// # Errors
    /// When no certificate can be issued, or no socket be opened.
    pub fn serve(projects: &Path) -> anyhow::Result<Self> {
        let authority = Authority::create("git.bench")?;
        let issued = authority.issue_hub("git", &[Host::parse("localhost")], VALIDITY)?;
        let bundle = issued.bundle()?;
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(bundle.chain().to_vec(), bundle.key().clone_key())?;
        let config = Arc::new(config);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let server = Self {
            port: listener.local_addr()?.port(),
            ca_pem: authority.certificate_pem(),
            projects: projects.to_owned(),
        };
        let projects = server.projects.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (config, projects) = (Arc::clone(&config), projects.clone());
                // A failed connection is the hub's, which reports it.
                std::thread::spawn(move || serve_connection(stream, config, &projects));
            }
        });
        Ok(server)
    }

    /// Certificate of the authority that the hub must be given.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// URL of a bare repository.
    ///
    /// # Errors
    /// When it is not below the served directory.
    pub fn url(&self, repository: &Path) -> anyhow::Result<String> {
        let path = repository.strip_prefix(&self.projects)?;
        Ok(format!("https://localhost:{}/{}", self.port, path.display()))
    }
}

fn serve_connection(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    projects: &Path,
) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let connection = ServerConnection::new(config)?;
    let mut reader = BufReader::new(StreamOwned::new(connection, stream));
    while let Some(request) = Request::read(&mut reader)? {
        let (status, kind, body) = match respond(&request, projects)? {
            Some((kind, body)) => ("200 OK", kind, body),
            None => ("403 Forbidden", "result", Vec::new()),
        };
        let mut response = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/x-git-upload-pack-{kind}\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        response.extend_from_slice(&body);
        reader.get_mut().write_all(&response)?;
        reader.get_mut().flush()?;
    }
    Ok(())
}

struct Request {
    target: String,
    body: Vec<u8>,
}

impl Request {
    /// Reads a request; `None` at the end of the connection.
    fn read(reader: &mut impl BufRead) -> anyhow::Result<Option<Self>> {
        let mut first = String::new();
        if reader.read_line(&mut first).is_err() || first.is_empty() {
            return Ok(None);
        }
        let target = first.split(' ').nth(1).context("no target")?.to_owned();
        let (mut length, mut is_chunked) = (0, false);
        loop {
            let header = line(reader)?.to_ascii_lowercase();
            match header.split_once(':') {
                None => break,
                Some(("content-length", value)) => length = value.trim().parse()?,
                Some(("transfer-encoding", value)) => is_chunked = value.trim() == "chunked",
                Some(_) => {}
            }
        }
        let mut body = Vec::new();
        if is_chunked {
            loop {
                let chunk = u64::from_str_radix(&line(reader)?, 16)?;
                take(reader, chunk, &mut body)?;
                line(reader)?;
                if chunk == 0 {
                    break;
                }
            }
        } else {
            take(reader, length, &mut body)?;
        }
        Ok(Some(Self { target, body }))
    }
}

fn line(reader: &mut impl BufRead) -> anyhow::Result<String> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

fn take(reader: &mut impl BufRead, length: u64, to: &mut Vec<u8>) -> anyhow::Result<()> {
    ensure!(length <= BODY_BYTES_MAX, "the body is too large");
    reader.by_ref().take(length).read_to_end(to)?;
    Ok(())
}

/// Returns the kind of the answer, and its body; `None` refuses, as every push.
fn respond(request: &Request, projects: &Path) -> anyhow::Result<Option<(&'static str, Vec<u8>)>> {
    let path = request.target.trim_start_matches('/');
    if let Some(path) = path.strip_suffix("/info/refs?service=git-upload-pack") {
        ensure!(projects.join(path).is_dir(), "no such repository");
        let service = packet("# service=git-upload-pack\n") + "0000";
        let capabilities = CAPABILITIES.map(packet).concat() + "0000";
        return Ok(Some(("advertisement", (service + &capabilities).into_bytes())));
    }
    let Some(path) = path.strip_suffix("/git-upload-pack") else { return Ok(None) };
    let repository = projects.join(path);
    let body = String::from_utf8_lossy(&request.body);
    if body.contains("command=ls-refs") {
        return Ok(Some(("result", list_references(&repository, &body)?.into_bytes())));
    }
    Ok(Some(("result", upload_pack(&repository, &request.body)?)))
}

/// Lists HEAD and its branch, as far as the request names them.
fn list_references(repository: &Path, request: &str) -> anyhow::Result<String> {
    let head = std::fs::read_to_string(repository.join("HEAD"))?;
    let branch = head.trim().strip_prefix("ref: ").context("HEAD is detached")?;
    let commit = std::fs::read_to_string(repository.join(branch))?;
    let prefixes: Vec<&str> =
        request.split("ref-prefix ").skip(1).filter_map(|rest| rest.lines().next()).collect();
    let listed = ["HEAD", branch]
        .into_iter()
        .filter(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)))
        .map(|name| packet(&format!("{} {name}\n", commit.trim())));
    Ok(listed.collect::<String>() + "0000")
}

fn upload_pack(repository: &Path, request: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut child = Command::new("git")
        .args(["upload-pack", "--stateless-rpc"])
        .arg(repository)
        .env("GIT_PROTOCOL", "version=2")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("no pipe")?.write_all(request)?;
    Ok(child.wait_with_output()?.stdout)
}

fn packet(line: &str) -> String {
    format!("{:04x}{line}", line.len() + 4)
}
