//! An OCI image layout: the digest of its one image, computed from the blobs that lie there.
//!
//! Image specification, `image-layout.md`. Nothing is unpacked.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use attest_common::basics::ids::Digest;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{ResultError, json, malformed};

const BUFFER_BYTES: usize = 64 * 1024;
/// Most manifests in an index (platforms and attestations).
const MANIFESTS_MAX: usize = 256;
/// Most blobs one manifest names.
const BLOBS_MAX: usize = 1_000;
const INDEX_TYPES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// The digest of the layout's image: of its manifest, or of the index when it has several platforms.
pub(super) fn image(layout: &Path) -> Result<Digest, ResultError> {
    let version = json(&layout.join("oci-layout"))?;
    if version.get("imageLayoutVersion").and_then(Value::as_str) != Some("1.0.0") {
        return Err(malformed(layout, "is no OCI image layout of version 1.0.0"));
    }
    let index_file = layout.join("index.json");
    let index = json(&index_file)?;
    let manifests = list(&index, "manifests", MANIFESTS_MAX, &index_file)?;
    let [descriptor] = manifests.as_slice() else {
        let problem = format!("names {} images; write one image to a layout", manifests.len());
        return Err(malformed(&index_file, &problem));
    };
    let digest = blob(layout, descriptor, &index_file)?;
    let file = place(layout, digest);
    let document = json(&file)?;
    if is_index(descriptor, &document) {
        for descriptor in list(&document, "manifests", MANIFESTS_MAX, &file)? {
            let platform = blob(layout, descriptor, &file)?;
            let file = place(layout, platform);
            manifest(layout, &json(&file)?, &file)?;
        }
    } else {
        manifest(layout, &document, &file)?;
    }
    Ok(digest)
}

fn is_index(descriptor: &Value, document: &Value) -> bool {
    let media_type =
        |value: &Value| value.get("mediaType").and_then(Value::as_str).map(str::to_owned);
    media_type(descriptor)
        .or_else(|| media_type(document))
        .is_some_and(|found| INDEX_TYPES.contains(&found.as_str()))
}

/// Checks every blob that an image manifest names.
fn manifest(layout: &Path, document: &Value, file: &Path) -> Result<(), ResultError> {
    let config = document.get("config").ok_or_else(|| malformed(file, "is no image manifest"))?;
    blob(layout, config, file)?;
    for layer in list(document, "layers", BLOBS_MAX, file)? {
        blob(layout, layer, file)?;
    }
    Ok(())
}

fn list<'a>(
    document: &'a Value,
    field: &str,
    max: usize,
    file: &Path,
) -> Result<Vec<&'a Value>, ResultError> {
    match document.get(field).and_then(Value::as_array) {
        Some(items) if items.len() <= max => Ok(items.iter().collect()),
        Some(_) => Err(malformed(file, &format!("lists more than {max} {field}"))),
        None => Err(malformed(file, &format!("has no list `{field}`"))),
    }
}

fn place(layout: &Path, digest: Digest) -> std::path::PathBuf {
    layout.join("blobs").join("sha256").join(digest.hex())
}

/// The digest of the blob that a descriptor names, after comparing it with the bytes.
fn blob(layout: &Path, descriptor: &Value, file: &Path) -> Result<Digest, ResultError> {
    let written = descriptor.get("digest").and_then(Value::as_str).unwrap_or_default();
    let digest: Digest =
        written.parse().map_err(|_| malformed(file, "has a descriptor without sha256 digest"))?;
    let path = place(layout, digest);
    let failed = |source| ResultError::Files { path: path.clone(), source };
    let mut reader = File::open(&path).map_err(failed)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut size = 0_u64;
    loop {
        let count = reader.read(&mut buffer).map_err(failed)?;
        if count == 0 {
            break;
        }
        hasher.update(buffer.get(..count).unwrap_or_default());
        size += count as u64;
    }
    let same = Digest::from_raw(hasher.finalize().into()) == digest
        && descriptor.get("size").and_then(Value::as_u64) == Some(size);
    if same { Ok(digest) } else { Err(ResultError::Blob { path, digest: written.to_owned() }) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn descriptor(layout: &Path, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        std::fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
        std::fs::write(place(layout, digest), bytes).unwrap();
        json!({"digest": digest.to_string(), "size": bytes.len()})
    }

    fn layout() -> (tempfile::TempDir, Digest) {
        let directory = tempfile::tempdir().unwrap();
        let layout = directory.path();
        let manifest = json!({
            "config": descriptor(layout, b"{}"),
            "layers": [descriptor(layout, b"layer")],
        });
        let manifest = descriptor(layout, manifest.to_string().as_bytes());
        let digest = manifest["digest"].as_str().unwrap().parse().unwrap();
        std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        std::fs::write(layout.join("index.json"), json!({"manifests": [manifest]}).to_string())
            .unwrap();
        (directory, digest)
    }

    #[test]
    fn the_digest_is_that_of_the_manifest() {
        let (directory, digest) = layout();

        assert_eq!(image(directory.path()).unwrap(), digest);
    }

    #[test]
    fn a_blob_that_was_changed_or_lost_is_noticed() {
        let (directory, _) = layout();
        let layer = place(directory.path(), Digest::of(b"layer"));

        std::fs::write(&layer, b"Layer").unwrap();
        assert_eq!(image(directory.path()).unwrap_err().reason().as_str(), "ResultBlob");
        std::fs::remove_file(&layer).unwrap();
        assert_eq!(image(directory.path()).unwrap_err().reason().as_str(), "ResultMissing");
    }

    #[test]
    fn two_images_in_one_layout_are_ambiguous() {
        let (directory, digest) = layout();
        let one = json!({"digest": digest.to_string(), "size": 1});
        let index = json!({"manifests": [one, one]}).to_string();
        std::fs::write(directory.path().join("index.json"), index).unwrap();

        assert_eq!(image(directory.path()).unwrap_err().reason().as_str(), "ResultMalformed");
    }
}
