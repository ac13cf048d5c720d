//! The reading half of a look: which commit, what it says, what it renders to. Blocks.
//!
//! What was read for a commit is kept until the next commit; a rendering until its files change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use attest_common::basics::ids::{Digest, Name, Timestamp};
use attest_common::basics::text;
use attest_runtime::clock::{micros_since, now};

use super::answers::Answer;
use super::pass::Look;
use super::queue::Poll;
use crate::core::store::StoreError;
use crate::core::store::records::{self, RepositoryRecord};
use crate::core::store::records::{Application, Destination};
use crate::process::hub::Hub;
use crate::reconcile::planner::{Evidence, Rendered, Waiting};
use attest_supply::render::{self, Overlay, RenderError};
use attest_supply::source::{
    ATTEST_DIRECTORY, Credentials, Login, Remote, RepositoryUrl, Resolved, SourceError,
    SshIdentity, Tree,
};

/// How long the answer counts to whether a credential may push, in seconds.
const PUSH_CHECK_INTERVAL_S: i64 = 24 * 60 * 60;
/// After how long a repository is asked again that gave none, in seconds.
const PUSH_RETRY_INTERVAL_S: i64 = 60 * 60;

impl Look<'_> {
    /// Which commit the revision names now.
    pub(super) fn revision(&mut self) -> Result<(Remote, Resolved), Waiting> {
        let Application { repo_url, revision, .. } = &self.record.application;
        let asked = (repo_url.clone(), revision.clone());
        let remote = remote(self.hub, repo_url)?;
        let is_same = self.memory.asked.as_ref() == Some(&asked);
        if let Some(resolved) = self.memory.resolved.clone()
            && is_same
            && self.task.poll == Poll::No
        {
            return Ok((remote, resolved));
        }
        let begun = Instant::now();
        let ask = || {
            let answer = self.hub.source.look(&remote, revision, &self.hub.interrupt);
            answer.map_err(|error| source_waiting(&error))
        };
        let answer = if self.task.poll == Poll::Due {
            self.hub.pipeline.answers.shared(&remote, revision, self.memory.newest, ask)
        } else {
            Answer::of(&remote, ask)
        };
        let name = self.record.application.name.as_str();
        self.hub.pipeline.asked(name, answer.answered, answer.said.is_ok());
        self.memory.newest = Some(answer.asked);
        self.memory.unanswered = answer.said.as_ref().err().cloned();
        let resolved = answer.said?;
        self.memory.timings.git_us = micros_since(begun);
        if !is_same {
            // Nothing of this repository has been read: what another one said is not its word.
            self.memory.commit = None;
        }
        self.memory.asked = Some(asked);
        self.memory.resolved = Some(resolved.clone());
        Ok((remote, resolved))
    }

    /// True when a commit of this very repository and revision was read before.
    pub(super) fn remembers(&self) -> bool {
        let Application { repo_url, revision, .. } = &self.record.application;
        let asked = (repo_url.clone(), revision.clone());
        self.memory.commit.is_some() && self.memory.asked.as_ref() == Some(&asked)
    }

    /// Reads receipts, statements and committed renderings of the commit, once.
    pub(super) fn evidence(&mut self, remote: &Remote, resolved: &Resolved) -> Result<(), Waiting> {
        let again = !self.memory.unfinished.is_empty()
            && (self.task.poll != Poll::No || self.task.asked_for);
        let is_read = self.memory.commit.as_ref() == Some(&resolved.commit);
        if is_read && self.directories_are_known() && !again {
            return Ok(());
        }
        let begun = Instant::now();
        let tree = self.fetch(remote, resolved)?;
        self.memory.timings.git_us += micros_since(begun);
        let begun = Instant::now();
        let application = self.record.application.name.as_str();
        let receipts = format!("{ATTEST_DIRECTORY}/receipts/{application}");
        let renderings = format!("{ATTEST_DIRECTORY}/rendered/{application}");
        let committed = tree.under(&renderings).filter_map(|(path, bytes)| {
            let name = path.rsplit('/').next()?.strip_suffix(".jsonl")?;
            Some((name.to_owned(), bytes.to_vec()))
        });
        let receipts = tree.under(&receipts).map(|(_, bytes)| bytes);
        let evidence = Evidence::read(receipts, committed);
        self.render_all(&tree);
        let rendered = self.memory.rendered.values().filter_map(|r| r.as_ref().ok());
        let digests = rendered.map(|rendered| rendered.digest).collect();
        self.memory.evidence = Arc::new(evidence.kept_for(&digests));
        self.memory.timings.render_us = micros_since(begun);
        self.memory.commit = Some(resolved.commit.clone());
        Ok(())
    }

    fn fetch(&self, remote: &Remote, resolved: &Resolved) -> Result<Tree, Waiting> {
        let application = &self.record.application;
        let mut wanted: BTreeSet<&str> = BTreeSet::from([application.path.as_str()]);
        wanted.extend(application.destinations.iter().filter_map(|d| d.path.as_deref()));
        let wanted: Vec<&str> = wanted.into_iter().collect();
        self.hub
            .source
            .fetch(remote, resolved, &wanted, &self.hub.interrupt)
            .map_err(|error| source_waiting(&error))
    }

    /// Renders every directory that a destination needs, unless the same files were rendered before.
    fn render_all(&mut self, tree: &Tree) {
        let root = tree.source_root().map(str::to_owned);
        let source_tree =
            tree.git_tree().or_else(|| tree.git_commit()).unwrap_or_default().to_owned();
        let commit = tree.git_commit().unwrap_or_default().to_owned();
        self.memory.directories.clear();
        let mut rendered = BTreeMap::new();
        let unfinished = std::mem::take(&mut self.memory.unfinished);
        self.memory.rendered.retain(|key, _| !unfinished.contains(key));
        for destination in &self.record.application.destinations {
            let environment = self.environment_of(&destination.cluster);
            let overlay = Overlay {
                path: &self.record.application.path,
                own_path: destination.path.as_deref(),
                cluster: Some(destination.cluster.as_str()),
                environment: environment.as_deref(),
            };
            let directory = render::select(tree, &overlay).map_err(|e| render_waiting(&e));
            if let Ok(directory) = &directory {
                let inside = root.as_ref().is_some_and(|root| {
                    directory == root || directory.starts_with(&format!("{root}/"))
                });
                // Outside the source root the tree's id says nothing about the files.
                let version = if inside { source_tree.clone() } else { commit.clone() };
                let key = (version, directory.clone());
                let former = self.memory.rendered.remove(&key).or_else(|| rendered.remove(&key));
                let now = former.unwrap_or_else(|| {
                    self.render(tree, directory).map_err(|error| {
                        if error.may_pass() {
                            self.memory.unfinished.insert(key.clone());
                        }
                        render_waiting(&error)
                    })
                });
                rendered.insert(key, now);
            }
            let path = self.record.application.path.clone();
            let key = (path, destination.clone(), environment);
            self.memory.directories.insert(key, directory);
        }
        self.memory.rendered = rendered;
        self.memory.source_tree = Some((source_tree, root));
    }

    fn render(&self, tree: &Tree, directory: &str) -> Result<Arc<Rendered>, RenderError> {
        let manifests = render::render(tree, directory, &[], &self.hub.kustomize)?;
        Ok(Arc::new(Rendered {
            digest: Digest::of(&manifests.rendering),
            bytes: manifests.rendering,
            objects: manifests.objects,
            renderer: (manifests.renderer.name, manifests.renderer.version),
            warnings: manifests.warnings.iter().map(ToString::to_string).collect(),
        }))
    }

    fn environment_of(&self, cluster: &Name) -> Option<String> {
        let record = self.hub.directory.named(cluster)?;
        self.hub.fleet.hint(&record.id).map(|hint| hint.policy.environment.to_string())
    }

    /// False when a destination is new, or a cluster's environment became known meanwhile.
    fn directories_are_known(&self) -> bool {
        let application = &self.record.application;
        application.destinations.iter().all(|destination| {
            let environment = self.environment_of(&destination.cluster);
            let key = (application.path.clone(), destination.clone(), environment);
            self.memory.directories.contains_key(&key)
        })
    }

    pub(super) fn rendered_for(&self, destination: &Destination) -> Result<Arc<Rendered>, Waiting> {
        let environment = self.environment_of(&destination.cluster);
        let key = (self.record.application.path.clone(), destination.clone(), environment);
        let nothing = || Waiting::new("AwaitingCluster", "its directory is not known yet");
        let directory = self.memory.directories.get(&key).cloned().ok_or_else(nothing)??;
        let found = self.memory.rendered.iter().find(|((_, d), _)| *d == directory);
        found.map(|(_, rendered)| rendered.clone()).ok_or_else(nothing)?
    }
}

/// How a repository is reached with what the hub holds for it.
pub(crate) fn remote(hub: &Hub, url: &str) -> Result<Remote, Waiting> {
    let parsed = RepositoryUrl::parse(url, &hub.urls)
        .map_err(|error| Waiting::new(error.reason(), error.to_string()))?;
    let record = hub
        .records
        .get::<RepositoryRecord>(parsed.normalised())
        .map_err(|error| Waiting::new(error.reason(), text::error_chain(&error)))?;
    let Some(record) = record else {
        return Ok(Remote { url: parsed, credentials: Credentials::default() });
    };
    if record.can_push == Some(true) && !record.allow_push_credential {
        let message = format!(
            "the credential for {url} may push, and who owns the hub must not make CI sign: \
             give it read access only, then `attest gitops repo add` again (or --allow-push-credential)"
        );
        return Err(Waiting::new("CredentialCanPush", message));
    }
    Ok(Remote { url: parsed, credentials: credentials(&record) })
}

/// The credentials that a record holds.
pub(crate) fn credentials(record: &RepositoryRecord) -> Credentials {
    let login = record.username.clone().zip(record.password.clone());
    let ssh = record.ssh_key.clone().zip(record.known_hosts.clone());
    Credentials {
        login: login.map(|(username, password)| Login { username, password }),
        ssh: ssh.map(|(key, hosts)| SshIdentity {
            private_key: key.into_bytes(),
            known_hosts: hosts.into_bytes(),
        }),
        ca_pem: record.ca.clone().map(String::into_bytes),
    }
}

/// Asks again whether the hub's credentials may push, where the last question is old enough.
pub(super) fn check_push_credentials(hub: &Hub) {
    let unread = |error: &StoreError, what: &str| {
        tracing::error!(
            reason = error.reason(),
            "Whether credentials may push is not known: {what}: {}",
            text::error_chain(error)
        );
    };
    let all = match hub.records.all::<RepositoryRecord>() {
        Ok(all) => all,
        Err(error) => return unread(&error, "the repositories cannot be read"),
    };
    let mut asked = false;
    for record in all.iter().filter(|record| is_push_check_due(record, now())) {
        let Ok(url) = RepositoryUrl::parse(&record.address, &hub.urls) else { continue };
        let remote = Remote { url, credentials: credentials(record) };
        let answer = hub.source.can_push(&remote, &hub.interrupt);
        if hub.stop.is_cancelled() {
            return;
        }
        asked = true;
        if let Err(error) = note_push_answer(hub, record, answer) {
            unread(&error, &record.url);
        }
    }
    if asked {
        hub.pipeline.wake_all();
    }
}

/// By when it was asked last, so that a hub that starts often asks no less.
fn is_push_check_due(record: &RepositoryRecord, now: Timestamp) -> bool {
    let unanswered = record.can_push.is_none() || record.problem.is_some();
    let interval_s = if unanswered { PUSH_RETRY_INTERVAL_S } else { PUSH_CHECK_INTERVAL_S };
    let age_s = record.checked_at.map(|at| now.as_second().saturating_sub(at.as_second()));
    // A time to come is that of a clock which was wrong.
    age_s.is_none_or(|age_s| age_s < 0 || age_s >= interval_s)
}

/// Keeps what was answered for the credentials of `asked`, unless they were changed or removed meanwhile.
fn note_push_answer(
    hub: &Hub,
    asked: &RepositoryRecord,
    answer: Result<bool, SourceError>,
) -> Result<(), StoreError> {
    let Some(stored) = hub.records.stored::<RepositoryRecord>(&asked.url)? else { return Ok(()) };
    if credentials(&stored.value) != credentials(asked) {
        return Ok(());
    }
    let mut record = stored.value.clone();
    match answer {
        Ok(can_push) => (record.can_push, record.problem) = (Some(can_push), None),
        Err(error) => {
            record.problem = Some((error.reason().to_owned(), text::error_chain(&error)));
        }
    }
    record.checked_at = Some(now());
    match hub.records.commit("repository", &[records::replace(&stored, &record)]) {
        // Whoever was faster asked with what is there now.
        Err(StoreError::Conflict { .. }) => Ok(()),
        done => done,
    }
}

fn source_waiting(error: &SourceError) -> Waiting {
    Waiting::new(error.reason(), text::error_chain(error))
}

fn render_waiting(error: &RenderError) -> Waiting {
    Waiting::new(error.reason(), text::error_chain(error))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::TcpListener;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio};
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use axum::extract::{Request, State};
    use axum::http::{Method, header::CONTENT_TYPE};
    use axum::response::IntoResponse;

    use super::*;
    use crate::core::store::records::ApplicationRecord;
    use crate::home::{self, Advertise};
    use crate::process::hub::Settings;
    use crate::reconcile::pass::{self, Memory};
    use crate::reconcile::queue::Task;
    use attest_supply::render::Kustomize;
    use attest_supply::source::UrlPolicy;

    #[test]
    fn ten_applications_of_one_repository_ask_it_once_when_their_polls_fall_due() {
        let directory = tempfile::tempdir().unwrap();
        let hub = hub(directory.path());
        let (url, opened) = serve_repository(directory.path());
        let names: Vec<String> = (0..10).map(|number| format!("web-{number}")).collect();
        let memories: Vec<Mutex<Memory>> = names.iter().map(|_| Mutex::default()).collect();
        for name in &names {
            hub.records
                .commit("application", &[records::put(&ApplicationRecord::sample(name, &url))])
                .unwrap();
            hub.pipeline.look(name, false);
        }
        let look = |poll: Poll| {
            opened.store(0, Ordering::SeqCst);
            std::thread::scope(|scope| {
                for (name, memory) in names.iter().zip(&memories) {
                    let (hub, task) = (&hub, Task { plan: true, poll, asked_for: false });
                    scope.spawn(move || {
                        pass::application(hub, name, task, &mut memory.lock().unwrap());
                    });
                }
            });
            for (name, memory) in names.iter().zip(&memories) {
                let problem = hub.pipeline.view(name).unwrap().problem.clone();
                // The commit is read, and has no such directory.
                assert_eq!(problem.map(|waiting| waiting.reason).as_deref(), Some("PathMissing"));
                assert!(memory.lock().unwrap().resolved.is_some());
            }
            opened.load(Ordering::SeqCst)
        };

        look(Poll::Now);
        // What an operator asks for, the repository is asked.
        assert_eq!(look(Poll::Now), 10);
        assert_eq!(look(Poll::Due), 1);
        assert_eq!(look(Poll::No), 0);
        hub.records.commit("repository", &[records::put(&repository(&url, "changed"))]).unwrap();
        assert_eq!(look(Poll::Due), 1);
        assert_eq!(look(Poll::Due), 0);
        hub.records.commit("repository", &[records::delete(&repository(&url, ""))]).unwrap();
        assert_eq!(look(Poll::Due), 1);
    }

    #[test]
    fn credentials_that_were_changed_during_the_question_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let hub = hub(directory.path());
        let record = |password: &str| repository("https://git.example/a", password);
        let kept = || hub.records.get::<RepositoryRecord>("https://git.example/a").unwrap();
        hub.records.commit("repository", &[records::put(&record("new"))]).unwrap();

        note_push_answer(&hub, &record("old"), Ok(true)).unwrap();
        assert_eq!(kept().unwrap().can_push, Some(false));
        note_push_answer(&hub, &record("new"), Ok(true)).unwrap();
        let kept = kept().unwrap();

        assert_eq!((kept.password.as_deref(), kept.can_push), (Some("new"), Some(true)));
    }

    #[test]
    fn a_credential_is_asked_about_a_day_after_the_last_answer_and_sooner_without_one() {
        let now: Timestamp = "2026-03-01T12:00:00Z".parse().unwrap();
        let ago = |hours: i64| Timestamp::from_second(now.as_second() - hours * 3_600).unwrap();
        let problem = || Some(("RepositoryUnreachable".to_owned(), "no".to_owned()));
        for (checked_at, can_push, problem, expected) in [
            (None, Some(false), None, true),
            (Some(ago(25)), Some(false), None, true),
            (Some(ago(23)), Some(false), None, false),
            (Some(ago(23)), Some(true), None, false),
            (Some(ago(2)), None, problem(), true),
            (Some(ago(2)), Some(false), problem(), true),
            (Some(ago(0)), None, problem(), false),
            (Some(ago(-2)), Some(false), None, true),
        ] {
            let record = RepositoryRecord {
                checked_at,
                can_push,
                problem,
                ..repository("https://git.example/a", "")
            };
            assert_eq!(is_push_check_due(&record, now), expected, "{checked_at:?} {can_push:?}");
        }
    }

    #[test]
    fn a_hub_that_starts_asks_about_the_credentials_whose_day_is_over() {
        let directory = tempfile::tempdir().unwrap();
        let hub = hub(directory.path());
        let (old, fresh) = ("https://127.0.0.1:1/old", "https://127.0.0.1:1/fresh");
        let long_ago: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let yesterday = RepositoryRecord { checked_at: Some(long_ago), ..repository(old, "a") };
        let today = RepositoryRecord { checked_at: Some(now()), ..repository(fresh, "a") };
        hub.records
            .commit("repository", &[records::put(&yesterday), records::put(&today)])
            .unwrap();

        check_push_credentials(&hub);

        let kept = |url| hub.records.get::<RepositoryRecord>(url).unwrap().unwrap();
        assert!(kept(old).checked_at > Some(long_ago));
        assert_eq!((kept(fresh).checked_at, kept(fresh).problem), (today.checked_at, None));
    }

    fn hub(directory: &Path) -> Arc<Hub> {
        attest_certs::install_provider();
        let path = directory.join("home");
        let advertise = Advertise {
            spoke_address: "127.0.0.1:4433".into(),
            api_url: "https://127.0.0.1:8443".into(),
        };
        home::create(&path, &advertise).unwrap();
        let settings = Settings {
            urls: UrlPolicy { allow_http: true, ..UrlPolicy::default() },
            poll_interval: Duration::from_secs(300),
            kustomize: Kustomize::none(),
        };
        Hub::start(home::open(&path).unwrap(), settings).unwrap()
    }

    fn repository(url: &str, password: &str) -> RepositoryRecord {
        RepositoryRecord {
            url: url.into(),
            address: url.into(),
            username: Some("hub".into()),
            password: Some(password.into()),
            ssh_key: None,
            known_hosts: None,
            ca: None,
            allow_push_credential: false,
            can_push: Some(false),
            problem: None,
            checked_at: None,
        }
    }

    /// Serves one repository with one empty commit over http; returns its address and the number of polls so far.
    fn serve_repository(directory: &Path) -> (String, Arc<AtomicUsize>) {
        let bare = directory.join("a.git");
        git(directory, &["init", "--quiet", "--bare", "-b", "main", "a.git"]);
        let tree = git(&bare, &["mktree"]);
        let commit = git(&bare, &["commit-tree", "-m", "first", &tree]);
        git(&bare, &["update-ref", "refs/heads/main", &commit]);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/a", listener.local_addr().unwrap());
        let polls = Arc::new(AtomicUsize::new(0));
        let state = (directory.to_owned(), polls.clone());
        let router = axum::Router::new().fallback(answer_request).with_state(state);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                listener.set_nonblocking(true).unwrap();
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                axum::serve(listener, router).await.unwrap();
            });
        });
        (url, polls)
    }

    /// Answers a request with `git http-backend`. A poll begins with its only GET.
    async fn answer_request(
        State((projects, polls)): State<(PathBuf, Arc<AtomicUsize>)>,
        request: Request,
    ) -> impl IntoResponse {
        let (head, body) = request.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        let is_poll = head.method == Method::GET;
        polls.fetch_add(is_poll.into(), Ordering::SeqCst);
        let header =
            |name: &str| head.headers.get(name).map_or("", |value| value.to_str().unwrap());
        let mut backend = Command::new("git")
            .arg("http-backend")
            .env("GIT_PROJECT_ROOT", projects)
            .env("GIT_HTTP_EXPORT_ALL", "1")
            .env("GIT_PROTOCOL", header("git-protocol"))
            .env("REQUEST_METHOD", head.method.as_str())
            .env("PATH_INFO", head.uri.path())
            .env("QUERY_STRING", head.uri.query().unwrap_or_default())
            .env("CONTENT_TYPE", header("content-type"))
            .env("CONTENT_LENGTH", body.len().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        backend.stdin.take().unwrap().write_all(&body).unwrap();
        let output = backend.wait_with_output().unwrap().stdout;
        let end = output.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
        let kind = if is_poll { "advertisement" } else { "result" };
        let content_type = format!("application/x-git-upload-pack-{kind}");
        ([(CONTENT_TYPE, content_type)], output[end + 4..].to_vec())
    }

    fn git(directory: &Path, arguments: &[&str]) -> String {
        let output = Command::new("git")
            .args(["-c", "user.name=CI", "-c", "user.email=ci@example.invalid"])
            .args(arguments)
            .current_dir(directory)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}
