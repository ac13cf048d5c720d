use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::extract::{Request, State};
use axum::http::{Method, header::CONTENT_TYPE};
use axum::response::IntoResponse;

use super::super::repositories::tests::{parts, repository};
use super::super::task::{PassRequest, Poll};
use super::*;
use crate::core::store::records::{self, ApplicationRecord};
use crate::process::parts::Parts;

#[test]
fn ten_applications_of_one_repository_ask_it_once_when_their_polls_fall_due() {
    let directory = tempfile::tempdir().unwrap();
    let Parts { core, waker, reconciler, api, .. } = &parts(directory.path());
    let (url, opened) = serve_repository(directory.path());
    core.records.commit("repository", &[records::put(&repository(&url, "first"))]).unwrap();
    let names: Vec<String> = (0..10).map(|number| format!("web-{number}")).collect();
    for name in &names {
        core.records
            .commit("application", &[records::put(&ApplicationRecord::sample(name, &url))])
            .unwrap();
        waker.request(name, false);
    }
    let look = |poll: Poll| {
        opened.store(0, Ordering::SeqCst);
        std::thread::scope(|scope| {
            for name in &names {
                let task = Task::Whole(PassRequest { poll, asked_for: false });
                scope.spawn(move || reconciler.reconcile(name, task));
            }
        });
        for name in &names {
            let problem = api.views.get(name).unwrap().problem.clone();
            // The commit is read, and has no such directory.
            assert_eq!(problem.map(|waiting| waiting.reason.as_str()), Some("PathMissing"));
            assert!(reconciler.cache(name).lock().source.is_resolved());
        }
        opened.load(Ordering::SeqCst)
    };

    look(Poll::Now);
    // What an operator asks for, the repository is asked.
    assert_eq!(look(Poll::Now), 10);
    assert_eq!(look(Poll::Due), 1);
    assert_eq!(look(Poll::No), 0);
    core.records.commit("repository", &[records::put(&repository(&url, "changed"))]).unwrap();
    assert_eq!(look(Poll::Due), 1);
    assert_eq!(look(Poll::Due), 0);
    core.records.commit("repository", &[records::put(&repository(&url, "again"))]).unwrap();
    assert_eq!(look(Poll::Due), 1);
}

#[test]
fn an_application_whose_reconcile_panicked_counts_as_not_read_until_the_next_one() {
    let directory = tempfile::tempdir().unwrap();
    let Parts { core, waker, reconciler, api, .. } = parts(directory.path());
    let (url, _) = serve_repository(directory.path());
    core.records.commit("repository", &[records::put(&repository(&url, "first"))]).unwrap();
    let record = ApplicationRecord::sample("web", &url);
    core.records.commit("application", &[records::put(&record)]).unwrap();
    let number = waker.request("web", false);
    waker.take();
    let completion =
        |outcome| Completion { reconciler: reconciler.clone(), name: "web".to_owned(), outcome };
    let problem = || api.views.get("web").unwrap().problem.clone().map(|problem| problem.reason);

    drop(completion(PassOutcome::None));
    assert_eq!(problem(), Some(Reason::ReconcilePanicked));
    assert!(waker.is_complete("web", number), "a waiting client is answered");

    let task = Task::Whole(PassRequest { poll: Poll::Now, asked_for: false });
    reconciler.reconcile("web", task);
    drop(completion(PassOutcome::Published));
    assert_eq!(problem(), Some(Reason::PathMissing));
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
    let header = |name: &str| head.headers.get(name).map_or("", |value| value.to_str().unwrap());
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
