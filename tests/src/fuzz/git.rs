//! Targets for Git: the files of a clone, and the answers of a server.

use std::cell::RefCell;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use attest_common::basics::locked::Locked;
use attest_supply::source::{Credentials, GitSource, Remote, RepositoryUrl, UrlPolicy, WorkTree};
use tempfile::TempDir;

/// Longest time of one exchange with a server.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Advertisement of a server with protocol version 2.
pub(super) const ADVERTISEMENT: &[u8] = b"001e# service=git-upload-pack\n0000000eversion 2\n\
0015agent=git/2.47.0\n0013ls-refs=unborn\n0012fetch=shallow\n0012server-option\n0017object-format=sha1\n0000";

/// Commit and tree of the clone.
pub(super) const COMMIT: &str = "1111111111111111111111111111111111111111";
const TREE: &str = "2222222222222222222222222222222222222222";

/// Files of a clone that an input replaces; its first byte chooses one.
const FILES: [&str; 6] = [
    ".git/HEAD",
    ".git/packed-refs",
    ".git/refs/heads/main",
    ".git/index",
    ".git/objects/22/22222222222222222222222222222222222222",
    "attest.yaml",
];

thread_local! {
    static CLONE: RefCell<Option<TempDir>> = const { RefCell::new(None) };
}

/// Reads a clone with one file replaced by the input.
pub(super) fn files(input: &[u8]) {
    let Some((choice, content)) = input.split_first() else { return };
    CLONE.with_borrow_mut(|clone| {
        if clone.is_none() {
            *clone = tempfile::tempdir().ok();
        }
        let Some(directory) = clone.as_ref().map(TempDir::path) else { return };
        let file = FILES.get(usize::from(*choice) % FILES.len()).copied().unwrap_or_default();
        if write_clone(directory, file, content).is_ok() {
            read_clone(directory);
        }
    });
}

fn read_clone(directory: &Path) {
    let Ok(tree) = WorkTree::discover(directory, attest_supply::recipe::declared_source_root)
    else {
        return;
    };
    let _ = tree.head_commit();
    let _ = tree.head_tree("k8s");
    let _ = tree.read_index(&["k8s"]);
    let _ = tree.read_files(&["k8s"]);
}

fn write_clone(directory: &Path, replaced: &str, content: &[u8]) -> std::io::Result<()> {
    let commit =
        format!("tree {TREE}\nauthor a <a@b> 1 +0000\ncommitter a <a@b> 1 +0000\n\nmessage\n");
    let packed =
        format!("# pack-refs with: peeled fully-peeled sorted \n{COMMIT} refs/heads/other\n");
    let object = |id: &str| format!(".git/objects/{}/{}", &id[..2], &id[2..]);
    let tree_object = loose("tree", b"40000 k8s\0\x33\x33\x33\x33\x33\x33\x33\x33\x33\x33\x33\x33\x33\x33\x33\x33\x33\x33\x33\x33");
    let mut written: Vec<(String, Vec<u8>)> = vec![
        (".git/HEAD".into(), b"ref: refs/heads/main\n".to_vec()),
        (".git/config".into(), b"[core]\n\trepositoryformatversion = 0\n\tbare = false\n".to_vec()),
        (".git/packed-refs".into(), packed.into_bytes()),
        (".git/refs/heads/main".into(), format!("{COMMIT}\n").into_bytes()),
        (object(COMMIT), loose("commit", commit.as_bytes())),
        (object(TREE), tree_object),
        ("attest.yaml".into(), b"sourceRoot: k8s\n".to_vec()),
        ("k8s/a.yaml".into(), b"a: 1\n".to_vec()),
    ];
    written.retain(|(path, _)| path != replaced);
    let content = match replaced.contains("objects") {
        true => loose("tree", content),
        false => content.to_vec(),
    };
    written.push((replaced.to_owned(), content));
    if replaced != ".git/index" {
        let _ = std::fs::remove_file(directory.join(".git/index"));
    }
    for (path, bytes) in written {
        let path = directory.join(path);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(path, bytes)?;
    }
    Ok(())
}

/// A loose object: zlib with blocks that are not compressed (RFC 1950, RFC 1951).
fn loose(kind: &str, content: &[u8]) -> Vec<u8> {
    let mut object = format!("{kind} {}\0", content.len()).into_bytes();
    object.extend_from_slice(content);
    let mut stream = vec![0x78, 0x01];
    let blocks = object.chunks(usize::from(u16::MAX)).count();
    for (index, block) in object.chunks(usize::from(u16::MAX)).enumerate() {
        let length = u16::try_from(block.len()).unwrap_or(u16::MAX);
        stream.push(u8::from(index + 1 == blocks));
        stream.extend_from_slice(&length.to_le_bytes());
        stream.extend_from_slice(&(!length).to_le_bytes());
        stream.extend_from_slice(block);
    }
    let (mut low, mut high) = (1_u32, 0_u32);
    for byte in &object {
        low = (low + u32::from(*byte)) % 65_521;
        high = (high + low) % 65_521;
    }
    stream.extend_from_slice(&((high << 16) | low).to_be_bytes());
    stream
}

/// Polls a server that answers with the input: its first byte chooses the answers that it replaces, the rest are well
/// formed.
pub(super) fn answers(input: &[u8]) {
    let Some(server) = Server::shared() else { return };
    let _one_at_a_time = server.turn.lock();
    *server.answer.lock() = Arc::new(input.to_vec());
    let (source, remote) = (&server.source, &server.remote);
    let interrupt = Arc::new(AtomicBool::new(false));
    let found = match input.first().is_some_and(|choice| choice % 4 < 2) {
        true => source.poll(remote, "main", &interrupt),
        false => source.poll_and_receive(remote, "main", &interrupt),
    };
    if let Ok(resolved) = found {
        let _ = source.fetch(remote, &resolved, &["k8s"], &interrupt);
    }
}

/// A server on loopback, and the cache of its client.
struct Server {
    turn: Locked<()>,
    answer: Arc<Locked<Arc<Vec<u8>>>>,
    source: GitSource,
    remote: Remote,
    _cache: TempDir,
}

impl Server {
    fn shared() -> Option<&'static Self> {
        static SERVER: OnceLock<Option<Server>> = OnceLock::new();
        SERVER.get_or_init(|| Self::start().ok()).as_ref()
    }

    fn start() -> anyhow::Result<Self> {
        attest_certs::install_provider();
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("http://{}/repository.git", listener.local_addr()?);
        let policy = UrlPolicy { allow_http: true, ..UrlPolicy::default() };
        let remote = Remote {
            url: RepositoryUrl::parse(&url, &policy)?,
            credentials: Credentials::default(),
            allow_loopback: true,
        };
        let cache = tempfile::tempdir()?;
        let source = GitSource::new(cache.path(), attest_supply::recipe::declared_source_root)
            .with_timeout(TIMEOUT);
        let answer = Arc::new(Locked::new(Arc::new(Vec::new())));
        let shared = Arc::clone(&answer);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let answer = Arc::clone(&shared.lock());
                std::thread::spawn(move || serve(stream, &answer));
            }
        });
        Ok(Self { turn: Locked::new(()), answer, source, remote, _cache: cache })
    }
}

/// Answers one request, and closes the connection.
fn serve(stream: TcpStream, input: &[u8]) -> Option<()> {
    stream.set_read_timeout(Some(TIMEOUT)).ok()?;
    let mut reader = BufReader::new(stream);
    let mut request = String::new();
    reader.read_line(&mut request).ok()?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if line.trim().is_empty() {
            break;
        }
        let header = line.to_ascii_lowercase();
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = Vec::new();
    reader.by_ref().take(length).read_to_end(&mut body).ok()?;
    let (choice, content) = input.split_first().unwrap_or((&0, &[]));
    let is_listing = request.starts_with("GET");
    let refs = format!("003d{COMMIT} refs/heads/main\n0000");
    let is_ls_refs = String::from_utf8_lossy(&body).contains("ls-refs");
    let (kind, answer) = match (is_listing, is_ls_refs) {
        (true, _) if choice % 2 == 0 => ("advertisement", ADVERTISEMENT),
        (true, _) => ("advertisement", content),
        (false, true) if choice % 8 >= 4 => ("result", refs.as_bytes()),
        (false, _) => ("result", content),
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/x-git-upload-pack-{kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        answer.len()
    );
    let mut stream = reader.into_inner();
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(answer).ok()
}
