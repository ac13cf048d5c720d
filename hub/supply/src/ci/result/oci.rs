//! An OCI image layout: the digest of its image, computed from the blobs.
//!
//! Image specification, `image-layout.md`. Nothing is unpacked.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use attest_common::basics::ids::Digest;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{ResultError, malformed, read_json, unreadable};

const BUFFER_BYTES: usize = 64 * 1024;
/// Maximum number of manifests in an index (platforms and attestations).
const MANIFESTS_MAX: usize = 256;
/// Maximum number of blobs of one manifest.
const BLOBS_MAX: usize = 1_000;
const INDEX_TYPES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// Returns the digest of the layout's image: of its manifest, or of the index of several platforms.
///
/// # Errors
/// [`ResultError`] for another format, for several images, and for a blob with another digest.
pub(super) fn image_digest(layout: &Path) -> Result<Digest, ResultError> {
    let version = read_json(&layout.join("oci-layout"))?;
    if version.get("imageLayoutVersion").and_then(Value::as_str) != Some("1.0.0") {
        return Err(malformed(layout, "is not an OCI image layout of version 1.0.0"));
    }
    let index_file = layout.join("index.json");
    let index = read_json(&index_file)?;
    let manifests = list_field(&index, "manifests", MANIFESTS_MAX, &index_file)?;
    let [descriptor] = manifests.as_slice() else {
        let problem = format!("lists {} images; write one image to a layout", manifests.len());
        return Err(malformed(&index_file, problem));
    };
    let digest = check_blob(layout, descriptor, &index_file)?;
    let file = blob_path(layout, digest);
    let document = read_json(&file)?;
    if is_index(descriptor, &document) {
        for descriptor in list_field(&document, "manifests", MANIFESTS_MAX, &file)? {
            let platform = check_blob(layout, descriptor, &file)?;
            let platform_file = blob_path(layout, platform);
            check_manifest(layout, &read_json(&platform_file)?, &platform_file)?;
        }
    } else {
        check_manifest(layout, &document, &file)?;
    }
    Ok(digest)
}

fn is_index(descriptor: &Value, document: &Value) -> bool {
    media_type(descriptor)
        .or_else(|| media_type(document))
        .is_some_and(|media_type| INDEX_TYPES.contains(&media_type))
}

fn media_type(value: &Value) -> Option<&str> {
    value.get("mediaType").and_then(Value::as_str)
}

/// Checks every blob of an image manifest.
fn check_manifest(layout: &Path, document: &Value, file: &Path) -> Result<(), ResultError> {
    let config =
        document.get("config").ok_or_else(|| malformed(file, "is not an image manifest"))?;
    check_blob(layout, config, file)?;
    for layer in list_field(document, "layers", BLOBS_MAX, file)? {
        check_blob(layout, layer, file)?;
    }
    Ok(())
}

fn list_field<'a>(
    document: &'a Value,
    field: &str,
    max: usize,
    file: &Path,
) -> Result<Vec<&'a Value>, ResultError> {
    match document.get(field).and_then(Value::as_array) {
        Some(items) if items.len() <= max => Ok(items.iter().collect()),
        Some(_) => Err(malformed(file, format!("lists more than {max} {field}"))),
        None => Err(malformed(file, format!("has no list `{field}`"))),
    }
}

fn blob_path(layout: &Path, digest: Digest) -> PathBuf {
    layout.join("blobs").join("sha256").join(digest.hex())
}

/// Returns the digest in a descriptor after comparing digest and size with the blob.
fn check_blob(layout: &Path, descriptor: &Value, file: &Path) -> Result<Digest, ResultError> {
    let written = descriptor.get("digest").and_then(Value::as_str).unwrap_or_default();
    let digest: Digest =
        written.parse().map_err(|_| malformed(file, "has a descriptor without sha256 digest"))?;
    let path = blob_path(layout, digest);
    let (actual, size) = hash_file(&path).map_err(|source| unreadable(&path, source))?;
    if actual == digest && descriptor.get("size").and_then(Value::as_u64) == Some(size) {
        Ok(digest)
    } else {
        Err(ResultError::Blob { path, digest: written.to_owned() })
    }
}

/// Returns digest and size of a file.
fn hash_file(path: &Path) -> std::io::Result<(Digest, u64)> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut size = 0_u64;
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok((Digest::from_raw(hasher.finalize().into()), size));
        }
        hasher.update(buffer.get(..count).unwrap_or_default());
        size += count as u64;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn descriptor(layout: &Path, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        std::fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
        std::fs::write(blob_path(layout, digest), bytes).unwrap();
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

        assert_eq!(image_digest(directory.path()).unwrap(), digest);
    }

    #[test]
    fn a_changed_or_missing_blob_is_detected() {
        let (directory, _) = layout();
        let layer = blob_path(directory.path(), Digest::of(b"layer"));

        std::fs::write(&layer, b"Layer").unwrap();
        assert_eq!(image_digest(directory.path()).unwrap_err().reason().as_str(), "ResultBlob");
        std::fs::remove_file(&layer).unwrap();
        assert_eq!(image_digest(directory.path()).unwrap_err().reason().as_str(), "ResultMissing");
    }

    #[test]
    fn two_images_in_one_layout_are_ambiguous() {
        let (directory, digest) = layout();
        let one = json!({"digest": digest.to_string(), "size": 1});
        let index = json!({"manifests": [one, one]}).to_string();
        std::fs::write(directory.path().join("index.json"), index).unwrap();

        assert_eq!(
            image_digest(directory.path()).unwrap_err().reason().as_str(),
            "ResultMalformed"
        );
    }
}
