//! An https server in front of `git http-backend`: TLS with a private authority, Basic authentication, one CGI process
//! per request. It keeps connections open, and records connections and requests.

use std::io::{BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use attest_certs::authority::{Authority, Host};

pub(crate) const READER: (&str, &str) = ("reader", "may read");
pub(crate) const WRITER: (&str, &str) = ("writer", "may write");

/// A server that ends with the test process.
pub(crate) struct Web {
    pub(crate) port: u16,
    pub(crate) ca_pem: Vec<u8>,
    requests: Arc<Mutex<Vec<String>>>,
    connections: Arc<AtomicUsize>,
    silent: Arc<AtomicBool>,
}

impl Web {
    pub(crate) fn serve(projects: PathBuf) -> Self {
        attest_certs::tls::install_provider();
        let authority = Authority::create("git.test").unwrap();
        let hosts = [Host::parse("127.0.0.1"), Host::parse("localhost")];
        let issued = authority.issue_hub("web", &hosts, Duration::from_secs(3600)).unwrap();
        let bundle = issued.bundle().unwrap();
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(bundle.chain().to_vec(), bundle.key().clone_key())
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let written = Arc::clone(&requests);
        let connections = Arc::new(AtomicUsize::new(0));
        let accepted = Arc::clone(&connections);
        let silent = Arc::new(AtomicBool::new(false));
        let is_silent = Arc::clone(&silent);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                accepted.fetch_add(1, Ordering::SeqCst);
                let config = Arc::clone(&config);
                let (projects, written) = (projects.clone(), Arc::clone(&written));
                let is_silent = Arc::clone(&is_silent);
                std::thread::spawn(move || {
                    while is_silent.load(Ordering::SeqCst) {
                        std::thread::park();
                    }
                    serve_connection(stream, config, &projects, &written);
                });
            }
        });
        Self {
            port,
            ca_pem: authority.certificate_pem().into_bytes(),
            requests,
            connections,
            silent,
        }
    }

    /// Accepts connections from now on without an answer.
    pub(crate) fn fall_silent(&self) {
        self.silent.store(true, Ordering::SeqCst);
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://localhost:{}/{path}", self.port)
    }

    /// Number of connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Requests since the last time, as `METHOD TARGET`.
    pub(crate) fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }
}

fn serve_connection(
    stream: TcpStream,
    config: Arc<rustls::ServerConfig>,
    projects: &PathBuf,
    written: &Mutex<Vec<String>>,
) {
    let connection = rustls::ServerConnection::new(config).unwrap();
    let mut reader = BufReader::new(rustls::StreamOwned::new(connection, stream));
    while let Some(request) = read_request(&mut reader) {
        written.lock().unwrap().push(format!("{} {}", request.method, request.target));
        let response = respond(&request, projects);
        let tls = reader.get_mut();
        if tls.write_all(&response).and_then(|()| tls.flush()).is_err() {
            return;
        }
    }
}

struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(header, _)| header == name);
        found.map(|(_, value)| value.as_str())
    }
}

fn read_request(reader: &mut impl std::io::BufRead) -> Option<Request> {
    let first = line(reader)?;
    let mut parts = first.split(' ');
    let (method, target) = (parts.next()?.to_owned(), parts.next()?.to_owned());
    let mut headers = Vec::new();
    loop {
        let header = line(reader)?;
        let Some((name, value)) = header.split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut request = Request { method, target, headers, body: Vec::new() };
    if request.header("transfer-encoding") == Some("chunked") {
        loop {
            let length = u64::from_str_radix(&line(reader)?, 16).ok()?;
            reader.by_ref().take(length).read_to_end(&mut request.body).ok()?;
            line(reader)?;
            if length == 0 {
                break;
            }
        }
    } else if let Some(length) = request.header("content-length") {
        let length: u64 = length.parse().ok()?;
        reader.by_ref().take(length).read_to_end(&mut request.body).ok()?;
    }
    Some(request)
}

fn line(reader: &mut impl std::io::BufRead) -> Option<String> {
    let mut line = String::new();
    (reader.read_line(&mut line).ok()? > 0).then(|| line.trim_end().to_owned())
}

/// First part of a path that the server redirects to the rest of the path on the same host.
pub(crate) const MOVED: &str = "moved";
/// First part of a path that the server redirects to the rest of the path on another host.
pub(crate) const MOVED_ELSEWHERE: &str = "elsewhere";

fn redirect(target: &str) -> Option<Vec<u8>> {
    let (first, rest) = target.trim_start_matches('/').split_once('/')?;
    let location = match first {
        MOVED => format!("/{rest}"),
        MOVED_ELSEWHERE => format!("https://other.invalid/{rest}"),
        _ => return None,
    };
    let response = format!(
        "HTTP/1.1 301 Moved Permanently\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"
    );
    Some(response.into_bytes())
}

fn respond(request: &Request, projects: &PathBuf) -> Vec<u8> {
    if let Some(response) = redirect(&request.target) {
        return response;
    }
    let basic = |(user, password): (&str, &str)| {
        let both = format!("{user}:{password}");
        format!("Basic {}", data_encoding::BASE64.encode(both.as_bytes()))
    };
    let given = request.header("authorization").unwrap_or_default();
    let may_write = given == basic(WRITER);
    if !may_write && given != basic(READER) {
        return b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"git\"\r\n\
            Content-Length: 0\r\n\r\n"
            .to_vec();
    }
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    let mut backend = Command::new("git");
    backend
        .arg("http-backend")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_PROJECT_ROOT", projects)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REQUEST_METHOD", &request.method)
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("CONTENT_TYPE", request.header("content-type").unwrap_or_default())
        .env("CONTENT_LENGTH", request.body.len().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    if let Some(protocol) = request.header("git-protocol") {
        backend.env("GIT_PROTOCOL", protocol);
    }
    if may_write {
        backend.env("REMOTE_USER", WRITER.0);
    }
    let mut child = backend.spawn().unwrap();
    child.stdin.take().unwrap().write_all(&request.body).unwrap();
    let output = child.wait_with_output().unwrap().stdout;
    let end = output.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
    let (head, body) = (String::from_utf8_lossy(&output[..end]), &output[end + 4..]);
    let status = head.lines().find_map(|line| line.strip_prefix("Status: ")).unwrap_or("200 OK");
    let mut response = format!("HTTP/1.1 {status}\r\n");
    for header in head.lines().filter(|line| !line.starts_with("Status: ")) {
        response.push_str(&format!("{header}\r\n"));
    }
    response.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    let mut response = response.into_bytes();
    response.extend_from_slice(body);
    response
}
