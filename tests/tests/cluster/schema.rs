//! Objects of built-in kinds with fields of their OpenAPI schema filled: no field is lost or changed between Git and the
//! API server.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use attest_common::basics::canonical::to_vec;
use attest_common::basics::json::escaped;
use attest_common::documents::manifest;
use attest_common::objects::absent::without_nulls;
use attest_supply::yaml;
use attest_tests::cluster;
use attest_tests::kube_reader::KubeReader;
use futures::{StreamExt as _, TryStreamExt as _};
use kube::Client;
use serde_json::{Value, json};

use generator::Schemas;
use writer::Writer;

mod generator;
mod writer;

/// Fewest objects that are read, and that an API server accepts.
const OBJECTS_MIN: usize = 2_000;
/// Concurrent requests.
const REQUESTS_MAX: usize = 8;

/// An object as it is written, and as each side reads it.
struct Sample {
    text: String,
    kubectl: Value,
    rendered: manifest::Object,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_field_is_lost_or_changed_between_git_and_the_api_server() -> anyhow::Result<()> {
    let Some(reader) = KubeReader::find()? else { return Ok(()) };
    let Some(site) = cluster::shared("one").await? else { return Ok(()) };
    let client = site.cluster.client().await?;
    let kinds = Kinds::read(&client).await?;

    let samples = samples(&reader, &kinds.objects()?)?;

    ensure!(samples.len() >= OBJECTS_MIN, "only {} objects", samples.len());
    let paths = samples.iter().map(|sample| kinds.path(&sample.kubectl));
    let paths: Vec<String> = paths.collect::<anyhow::Result<_>>()?;
    let compared: Vec<Compared> = futures::stream::iter(samples.iter().zip(&paths))
        .map(|(sample, path)| compare(&client, sample, path))
        .buffered(REQUESTS_MAX)
        .try_collect()
        .await?;
    let different: Vec<String> = compared
        .iter()
        .zip(&samples)
        .filter_map(|(compared, sample)| match compared {
            Compared::Different(how) => Some(format!("{}\n{how}\n", sample.text)),
            Compared::Same | Compared::Refused => None,
        })
        .collect();
    assert!(different.is_empty(), "{} objects:\n{}", different.len(), different.join("\n"));
    let accepted = compared.iter().filter(|compared| **compared == Compared::Same).count();
    assert!(accepted >= OBJECTS_MIN, "only {accepted} of {} objects are accepted", samples.len());
    Ok(())
}

/// Reads every object on both sides, and compares all fields of the rendering with those that kubectl reads.
fn samples(reader: &KubeReader, objects: &[Value]) -> anyhow::Result<Vec<Sample>> {
    let texts: Vec<String> =
        (1..).zip(objects).map(|(seed, object)| Writer::new(seed).file(object)).collect();
    let files: Vec<Vec<u8>> = texts.iter().map(|text| text.clone().into_bytes()).collect();
    let readings = reader.read(&files)?;
    let mut samples = Vec::new();
    for ((text, reading), written) in texts.into_iter().zip(readings).zip(objects) {
        let kubectl = reading.map_err(anyhow::Error::msg).with_context(|| text.clone())?;
        let [kubectl] = kubectl.as_slice() else { anyhow::bail!("not one document:\n{text}") };
        ensure!(is_same(kubectl, written), "kubectl reads another object:\n{text}\n{kubectl}");
        let values = yaml::read("x.yaml", text.as_bytes(), &mut Vec::new())?;
        let rendering = manifest::write(values).with_context(|| text.clone())?;
        let rendered = manifest::read(&rendering)?.into_iter().next().context("no object")?;
        let expected = without_empty_metadata(kubectl.clone());
        ensure!(
            is_same(rendered.value(), &expected),
            "{text}\nkubectl: {expected}\nrendered: {}",
            rendered.value()
        );
        samples.push(Sample { text, kubectl: kubectl.clone(), rendered });
    }
    Ok(samples)
}

/// Compares numbers by value.
fn is_same(one: &Value, other: &Value) -> bool {
    to_vec(one).is_ok_and(|one| to_vec(other).is_ok_and(|other| one == other))
}

/// Metadata that a producer drops where it is null or empty, as the API server does.
fn without_empty_metadata(mut value: Value) -> Value {
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|field, value| {
            let is_nothing = value.is_null() || *value == json!("") || *value == json!([]);
            !(is_nothing && matches!(field.as_str(), "namespace" | "finalizers"))
        });
    }
    drop_null_creation_timestamps(&mut value);
    value
}

fn drop_null_creation_timestamps(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(metadata) = fields.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.retain(|name, value| name != "creationTimestamp" || !value.is_null());
            }
            fields.values_mut().for_each(drop_null_creation_timestamps);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_null_creation_timestamps),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Compared {
    /// The API server makes the same object of both.
    Same,
    /// The API server refuses what kubectl sends.
    Refused,
    Different(String),
}

/// Sends the object as `kubectl create` does and as a spoke does, both as a dry run.
async fn compare(client: &Client, sample: &Sample, path: &str) -> anyhow::Result<Compared> {
    let name = sample.kubectl["metadata"]["name"].as_str().unwrap_or_default();
    let body = without_nulls(sample.rendered.key(), sample.rendered.value());
    let create = format!("{path}?dryRun=All&fieldValidation=Strict");
    let apply = format!("{path}/{name}?dryRun=All&fieldManager=attest&fieldValidation=Strict");
    let create = || send(client, "POST", &create, "application/json", &sample.kubectl);
    let Ok(created) = create().await? else { return Ok(Compared::Refused) };
    let again = create().await?.map_err(anyhow::Error::msg)?;
    let applied = send(client, "PATCH", &apply, "application/apply-patch+yaml", &body).await?;
    Ok(match applied {
        Err(refused) => Compared::Different(format!("refused: {refused}")),
        Ok(applied) => differences(&sample.kubectl, &created, &again, &applied)
            .map_or(Compared::Same, |how| Compared::Different(format!("{how}\nsent: {body}"))),
    })
}

async fn send(
    client: &Client,
    method: &str,
    path: &str,
    content_type: &str,
    body: &Value,
) -> anyhow::Result<Result<Value, String>> {
    // As the spoke does: what is applied is read as YAML, which takes some characters for line breaks.
    let body = escaped(&body.to_string(), |c| matches!(c, '\u{7f}'..='\u{9f}' | '\u{2028}'));
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", content_type)
        .body(body.into_bytes())?;
    match client.request::<Value>(request).await {
        Ok(object) => Ok(Ok(object)),
        Err(kube::Error::Api(status)) => Ok(Err(status.message)),
        Err(error) => Err(error.into()),
    }
}

/// The first field that differs, except for those that differ between two equal requests and for the
/// times of requests, which the server writes in whole seconds.
fn differences(sent: &Value, created: &Value, again: &Value, applied: &Value) -> Option<String> {
    let [sent, created, again, applied] = [sent, created, again, applied].map(|object| {
        let mut fields = BTreeMap::new();
        leaves(object, String::new(), &mut fields);
        fields
    });
    let of_server = ["/metadata/managedFields", "/metadata/generation"];
    let is_of_server = |path: &String| {
        let is_time = !sent.contains_key(path)
            && [&created, &applied].into_iter().all(|of| is_time(of.get(path)));
        is_time || of_server.iter().any(|field| path.starts_with(field))
    };
    let all = created.keys().chain(applied.keys());
    let different = all.filter(|path| created.get(*path) != applied.get(*path));
    let mut different =
        different.filter(|path| created.get(*path) == again.get(*path) && !is_of_server(path));
    let path = different.next()?;
    Some(format!("{path}: created {:?}, applied {:?}", created.get(path), applied.get(path)))
}

fn is_time(value: Option<&Value>) -> bool {
    value.and_then(Value::as_str).is_some_and(|text| text.parse::<jiff::Timestamp>().is_ok())
}

fn leaves(value: &Value, path: String, fields: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(inner) if !inner.is_empty() => {
            inner.iter().for_each(|(name, value)| leaves(value, format!("{path}/{name}"), fields));
        }
        Value::Array(items) if !items.is_empty() => {
            let items = items.iter().enumerate();
            items.for_each(|(index, value)| leaves(value, format!("{path}/{index}"), fields));
        }
        Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Array(_)
        | Value::Object(_) => {
            fields.insert(path, value.clone());
        }
    }
}

/// The kinds of the objects in `schema/bases.yaml`.
struct Kinds {
    bases: Vec<Value>,
    /// The OpenAPI document of each `apiVersion`.
    documents: BTreeMap<String, Value>,
}

impl Kinds {
    async fn read(client: &Client) -> anyhow::Result<Self> {
        let text = include_str!("schema/bases.yaml");
        let bases = yaml::read("bases.yaml", text.as_bytes(), &mut Vec::new())?;
        let mut documents = BTreeMap::new();
        for base in &bases {
            let version = api_version(base);
            if !documents.contains_key(version) {
                let path = format!("/openapi/v3/{}", prefix(version));
                let request = http::Request::get(path).body(Vec::new())?;
                documents.insert(version.to_owned(), client.request::<Value>(request).await?);
            }
        }
        Ok(Self { bases, documents })
    }

    /// Each object of the list, and each with one more field filled.
    fn objects(&self) -> anyhow::Result<Vec<Value>> {
        let mut objects = Vec::new();
        for base in &self.bases {
            let (version, kind) = (api_version(base), base["kind"].as_str().unwrap_or_default());
            let schemas = Schemas(self.documents.get(version).context("no schema")?);
            let (group, version) = version.split_once('/').unwrap_or(("", version));
            let schema = schemas.of(group, version, kind);
            let schema = schema.with_context(|| format!("{kind} has no schema"))?;
            objects.push(base.clone());
            objects.extend(schemas.variants(schema, base));
        }
        Ok(objects)
    }

    /// The path at which objects of this kind are created.
    fn path(&self, object: &Value) -> anyhow::Result<String> {
        let (version, kind) = (api_version(object), &object["kind"]);
        let (group, bare) = version.split_once('/').unwrap_or(("", version));
        let wanted = json!({"group": group, "version": bare, "kind": kind});
        let paths = self.documents[version]["paths"].as_object().context("no paths")?;
        let found = paths.iter().find(|(path, item)| {
            let creates = item.pointer("/post/x-kubernetes-group-version-kind");
            creates == Some(&wanted) && !path.contains("/{name}/") && !path.ends_with("/{name}")
        });
        let path = found.map(|(path, _)| path.replace("{namespace}", "default"));
        path.with_context(|| format!("{kind} has no path"))
    }
}

fn api_version(object: &Value) -> &str {
    object["apiVersion"].as_str().unwrap_or_default()
}

fn prefix(version: &str) -> String {
    if version.contains('/') { format!("apis/{version}") } else { format!("api/{version}") }
}
