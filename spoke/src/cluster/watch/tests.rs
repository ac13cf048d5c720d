use std::sync::atomic::{AtomicBool, Ordering};

use http::{Request, Response};
use kube::client::Body;
use serde_json::json;
use tower::service_fn;

use super::*;
use crate::ledger::records::tests::object_key;

fn scope(version: &str) -> Scope {
    Scope {
        group: String::new(),
        version: version.to_owned(),
        kind: "ConfigMap".to_owned(),
        plural: "configmaps".to_owned(),
        namespace: Some("shop".to_owned()),
    }
}

fn followed(version: &str) -> Followed {
    Followed { scope: scope(version), empty: Arc::default() }
}

/// Watches at an API server that forbids everything until `allowed`.
fn watches(allowed: &Arc<AtomicBool>) -> Watches {
    let allowed = Arc::clone(allowed);
    let answer = service_fn(move |request: Request<Body>| {
        let allowed = allowed.load(Ordering::SeqCst);
        async move {
            let watching = request.uri().query().is_some_and(|q| q.contains("watch=true"));
            if watching && allowed {
                std::future::pending::<()>().await;
            }
            let (code, body) = if allowed {
                let list = json!({
                    "kind": "ConfigMapList", "apiVersion": "v1",
                    "metadata": {"resourceVersion": "7"}, "items": [],
                });
                (200, list)
            } else {
                (403, json!({"kind": "Status", "code": 403, "reason": "Forbidden"}))
            };
            let body = Body::from(body.to_string().into_bytes());
            Ok::<_, std::io::Error>(Response::builder().status(code).body(body).unwrap())
        }
    });
    let metrics = Metrics::new().unwrap();
    let client = kube::Client::new(answer, "default");
    Watches::new(ApiServer::of(client, metrics.clone()), metrics)
}

/// What is known once `enough` holds.
async fn news(inbox: &Inbox, enough: impl Fn(&News) -> bool) -> News {
    let mut all = News::default();
    while !enough(&all) {
        inbox.arrived().await;
        let News { objects, scopes, .. } = inbox.take();
        all.objects.extend(objects);
        all.scopes.extend(scopes);
    }
    all
}

#[tokio::test]
async fn a_watch_that_is_forbidden_is_told_of_until_a_list_completes() {
    let allowed = Arc::new(AtomicBool::new(false));
    let (watches, inbox) = (watches(&allowed), Arc::new(Inbox::default()));
    let key = object_key("ConfigMap", "a");

    watches.follow(&inbox, &[(key.clone(), followed("v1"))].into(), &BTreeSet::new());
    let blind = news(&inbox, |news| !news.scopes.is_empty()).await;
    assert_eq!(blind.scopes, [(scope("v1"), Some(WatchRefusal::Forbidden))].into());
    assert!(blind.objects.is_empty());

    allowed.store(true, Ordering::SeqCst);
    let seen = news(&inbox, |news| news.scopes.get(&scope("v1")) == Some(&None)).await;
    assert_eq!(seen.objects[&key].live, Live::NotListed);
}

#[test]
fn a_watch_that_cannot_be_read_leaves_its_scope_unseen() {
    let unreadable = || {
        let error = serde_json::from_str::<Value>("{]").unwrap_err();
        kube::Error::SerdeError(error)
    };

    for error in [
        watcher::Error::InitialListFailed(unreadable()),
        watcher::Error::WatchFailed(unreadable()),
        watcher::Error::NoResourceVersion,
    ] {
        assert_eq!(refusal(&error), Some(WatchRefusal::Unreadable), "{error}");
    }
    let cut = kube::Error::ReadEvents(std::io::Error::other("reset"));
    assert_eq!(refusal(&watcher::Error::WatchFailed(cut)), None, "it is only opened again");
}

#[tokio::test]
async fn an_object_is_heard_of_from_the_watch_of_its_own_version_only() {
    let watches = watches(&Arc::new(AtomicBool::new(true)));
    let (old, new) = (Arc::new(Inbox::default()), Arc::new(Inbox::default()));
    let (a, b) = (object_key("ConfigMap", "a"), object_key("ConfigMap", "b"));

    watches.follow(&old, &[(a.clone(), followed("v1beta1"))].into(), &BTreeSet::new());
    watches.follow(&new, &[(b, followed("v1"))].into(), &BTreeSet::new());

    assert!(watches.route(&scope("v1"), &a).is_none());
    assert!(watches.route(&scope("v1beta1"), &a).is_some());
    assert_eq!(watches.routes(&scope("v1")).len(), 1);
}
