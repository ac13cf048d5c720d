//! An API server that knows Secrets only and fails as a test says. For faults that a real one does not make on demand.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::{AUTHORIZATION, USER_AGENT};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::client::{Access, ApiServer};
use crate::metrics::Metrics;

/// The server, and the kubeconfig that leads to it.
pub(crate) struct FakeApi {
    world: Arc<Mutex<World>>,
    directory: TempDir,
}

#[derive(Default)]
struct World {
    version: u64,
    /// By path.
    objects: BTreeMap<String, Value>,
    asked: Vec<String>,
    agents: Vec<String>,
    tokens: Vec<String>,
    /// Paths, by their beginning, for which there are no rights until a binding is made.
    forbidden: Option<String>,
    /// Writes to carry out and to answer with an error.
    answers_lost: u32,
    /// What a TokenRequest is answered with.
    fresh_token: String,
    is_slow: bool,
    underway: usize,
    underway_most: usize,
}

impl FakeApi {
    pub(crate) async fn start() -> Self {
        attest_certs::install_provider();
        let world = Arc::<Mutex<World>>::default();
        let app = Router::new().fallback(answer).with_state(Arc::clone(&world));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        let directory = tempfile::tempdir().unwrap();
        let fake = Self { world, directory };
        fake.write_kubeconfig(&format!("http://{address}"), "first");
        fake
    }

    fn write_kubeconfig(&self, server: &str, token: &str) {
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": server}}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        std::fs::write(self.kubeconfig(), text.to_string()).unwrap();
    }

    pub(crate) fn kubeconfig(&self) -> std::path::PathBuf {
        self.directory.path().join("kubeconfig")
    }

    pub(crate) async fn open(&self) -> ApiServer {
        let access = Access::Kubeconfig(self.kubeconfig());
        ApiServer::open(&access, Metrics::new().unwrap()).await.unwrap()
    }

    /// The next writes are carried out and answered with an error.
    pub(crate) fn lose_answers(&self, writes: u32) {
        self.world.lock().unwrap().answers_lost = writes;
    }

    /// Everything below this path is forbidden until a binding is made.
    pub(crate) fn forbid(&self, path: &str) {
        self.world.lock().unwrap().forbidden = Some(path.to_owned());
    }

    /// Somebody else writes this object, as it is.
    pub(crate) fn touch(&self, path: &str) {
        let mut world = self.world.lock().unwrap();
        let object = world.objects[path].clone();
        world.put(path.to_owned(), object);
    }

    /// A TokenRequest is answered with this.
    pub(crate) fn give_token(&self, token: &str) {
        token.clone_into(&mut self.world.lock().unwrap().fresh_token);
    }

    /// What requests were authorized with.
    pub(crate) fn tokens(&self) -> Vec<String> {
        self.world.lock().unwrap().tokens.clone()
    }

    /// Requests take a moment, so that they meet.
    pub(crate) fn be_slow(&self) {
        self.world.lock().unwrap().is_slow = true;
    }

    /// Most requests that were under way at a time.
    pub(crate) fn underway_most(&self) -> usize {
        self.world.lock().unwrap().underway_most
    }

    /// Paths and queries of all requests.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.world.lock().unwrap().asked.clone()
    }

    pub(crate) fn agents(&self) -> Vec<String> {
        self.world.lock().unwrap().agents.clone()
    }
}

async fn answer(
    State(world): State<Arc<Mutex<World>>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, String) {
    world.lock().unwrap().handle_message(&uri, &headers);
    if world.lock().unwrap().is_slow {
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    let (status, value) = world.lock().unwrap().act(&method, &uri, &body);
    (status, value.to_string())
}

impl World {
    fn handle_message(&mut self, uri: &Uri, headers: &HeaderMap) {
        self.asked.push(uri.to_string());
        let text = |name| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
        self.agents.push(text(USER_AGENT).to_owned());
        self.tokens.push(text(AUTHORIZATION).to_owned());
        self.underway += 1;
        self.underway_most = self.underway_most.max(self.underway);
    }

    fn act(&mut self, method: &Method, uri: &Uri, body: &[u8]) -> (StatusCode, Value) {
        self.underway -= 1;
        let path = uri.path();
        if path.ends_with("/token") {
            return (StatusCode::CREATED, json!({"status": {"token": self.fresh_token}}));
        }
        let body: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
        if *method == Method::POST && path.ends_with("/rolebindings") {
            self.forbidden = None;
        }
        if self.forbidden.as_ref().is_some_and(|forbidden| path.starts_with(forbidden)) {
            return refused(StatusCode::FORBIDDEN, "Forbidden");
        }
        let outcome = match uri.query().and_then(|query| query.strip_prefix("labelSelector=")) {
            Some(selector) => (StatusCode::OK, self.list(selector)),
            None => self.carry_out(method, path, body),
        };
        if *method != Method::GET && self.answers_lost > 0 {
            self.answers_lost -= 1;
            // Not one after which the client asks again by itself.
            return refused(StatusCode::INTERNAL_SERVER_ERROR, "InternalError");
        }
        outcome
    }

    fn list(&self, selector: &str) -> Value {
        let mut parameters = selector.split('&');
        let (label, wanted) = parameters.next().unwrap().split_once("%3D").unwrap();
        let number = |name: &str, value: &str| value.strip_prefix(name)?.parse::<usize>().ok();
        let (mut limit, mut begin) = (usize::MAX, 0);
        for parameter in parameters {
            limit = number("limit=", parameter).unwrap_or(limit);
            begin = number("continue=", parameter).unwrap_or(begin);
        }
        let all = self.objects.values();
        let all: Vec<&Value> =
            all.filter(|object| object["metadata"]["labels"][label] == wanted).collect();
        let items: Vec<&&Value> = all.iter().skip(begin).take(limit).collect();
        let end = begin + items.len();
        let next = if end < all.len() { end.to_string() } else { String::new() };
        json!({"kind": "SecretList", "metadata": {"continue": next}, "items": items})
    }

    fn carry_out(&mut self, method: &Method, path: &str, body: Value) -> (StatusCode, Value) {
        match method.as_str() {
            "GET" if path.ends_with("/secrets") || path.ends_with("/attesttrustpolicies") => {
                let list = json!({"metadata": {"resourceVersion": "1"}, "items": []});
                (StatusCode::OK, list)
            }
            "GET" if path == "/version" => (StatusCode::OK, json!({"gitVersion": "v1.37.2"})),
            "GET" => match self.objects.get(path) {
                Some(object) => (StatusCode::OK, object.clone()),
                None => refused(StatusCode::NOT_FOUND, "NotFound"),
            },
            "POST" => {
                let name = body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                let path = format!("{path}/{name}");
                if self.objects.contains_key(&path) {
                    return refused(StatusCode::CONFLICT, "AlreadyExists");
                }
                (StatusCode::CREATED, self.put(path, body))
            }
            "PUT" => {
                let Some(stored) = self.objects.get(path) else {
                    return refused(StatusCode::NOT_FOUND, "NotFound");
                };
                let (has, wants) =
                    (&stored["metadata"]["resourceVersion"], &body["metadata"]["resourceVersion"]);
                if !wants.is_null() && has != wants {
                    return refused(StatusCode::CONFLICT, "Conflict");
                }
                (StatusCode::OK, self.put(path.to_owned(), body))
            }
            "DELETE" => {
                let Some(stored) = self.objects.get(path) else {
                    return refused(StatusCode::NOT_FOUND, "NotFound");
                };
                let wants = &body["preconditions"]["uid"];
                if !wants.is_null() && stored["metadata"]["uid"] != *wants {
                    return refused(StatusCode::CONFLICT, "Conflict");
                }
                (StatusCode::OK, self.objects.remove(path).unwrap())
            }
            _ => refused(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
        }
    }

    fn put(&mut self, path: String, mut object: Value) -> Value {
        self.version += 1;
        let former = self.objects.get(&path).map(|former| former["metadata"]["uid"].clone());
        object["metadata"]["uid"] =
            former.unwrap_or_else(|| format!("uid-{}", self.version).into());
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.objects.insert(path, object.clone());
        object
    }
}

/// As an API server says it of an object that it names.
fn refused(status: StatusCode, reason: &str) -> (StatusCode, Value) {
    let document = json!({
        "kind": "Status", "status": "Failure", "reason": reason, "message": reason,
        "code": status.as_u16(), "details": {"name": "it"},
    });
    (status, document)
}
