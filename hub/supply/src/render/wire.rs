//! The request to a worker and its response: a length of four bytes, JSON of that length, and bytes that follow.

use std::io::{Error, ErrorKind, Read, Write};
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::RenderError;
use super::isolation::FileIsolation;
use super::kustomize::Program;
use super::{Product, RendererVersion};
use crate::ImageChange;
use crate::source::Tree;
use crate::yaml::Warning;

/// Largest JSON part of a request or response, in bytes.
pub(super) const HEADER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Largest JSON part of a response that the caller reads, in bytes.
pub(super) const RESPONSE_HEADER_BYTES_MAX: usize = 1024 * 1024;

/// The task of a worker.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// Answer that the restrictions are in force.
    Probe,
    Render(RenderRequest),
}

/// One rendering. The bytes of the files follow, in the order of `files`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RenderRequest {
    pub(super) path: String,
    pub(super) images: Vec<ImageChange>,
    pub(super) program: Option<Program>,
    pub(super) directory: Option<PathBuf>,
    pub(super) time_ms: u64,
    pub(super) output_bytes_max: usize,
    pub(super) memory_bytes_max: u64,
    /// Path and length of each file.
    pub(super) files: Vec<(String, u64)>,
}

impl RenderRequest {
    /// A request without files, for a rendering of `path`.
    pub(super) fn new(path: &str, images: &[ImageChange]) -> Self {
        Self {
            path: path.to_owned(),
            images: images.to_vec(),
            program: None,
            directory: None,
            time_ms: 0,
            output_bytes_max: 0,
            memory_bytes_max: 0,
            files: Vec::new(),
        }
    }

    /// Reads the files that follow.
    pub(super) fn read_files(&mut self, input: &mut impl Read) -> std::io::Result<Tree> {
        let mut files = Vec::with_capacity(self.files.len());
        for (path, length) in std::mem::take(&mut self.files) {
            let mut bytes = Vec::new();
            input.by_ref().take(length).read_to_end(&mut bytes)?;
            if bytes.len() as u64 != length {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            files.push((path, bytes));
        }
        Ok(Tree::from_files(files))
    }
}

/// The outcome of a request. The bytes of the rendering follow a [`Response::Rendered`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Response {
    Isolated(FileIsolation),
    Rendered { renderer: RendererVersion, warnings: Vec<Warning>, images_matched: Vec<bool> },
    Failed(RenderError),
}

/// Writes a request with the files of `tree`.
pub(super) fn write_request(
    output: &mut impl Write,
    mut request: RenderRequest,
    tree: &Tree,
) -> std::io::Result<()> {
    request.files =
        tree.iter().map(|(path, bytes)| (path.to_owned(), bytes.len() as u64)).collect();
    write_header(output, &Request::Render(request))?;
    tree.iter().try_for_each(|(_, bytes)| output.write_all(bytes))
}

/// Writes a JSON part with its length.
pub(super) fn write_header(
    output: &mut impl Write,
    header: &impl Serialize,
) -> std::io::Result<()> {
    let bytes = serde_json::to_vec(header)?;
    let length = u32::try_from(bytes.len()).map_err(|_| Error::from(ErrorKind::FileTooLarge))?;
    output.write_all(&length.to_le_bytes())?;
    output.write_all(&bytes)
}

/// Reads a JSON part of at most `bytes_max`.
pub(super) fn read_header<T: DeserializeOwned>(
    input: &mut impl Read,
    bytes_max: usize,
) -> std::io::Result<T> {
    let mut length = [0_u8; 4];
    input.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length as usize > bytes_max {
        return Err(ErrorKind::FileTooLarge.into());
    }
    let mut bytes = Vec::new();
    input.by_ref().take(length.into()).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// Writes the outcome of a rendering.
pub(super) fn write_outcome(
    output: &mut impl Write,
    outcome: Result<Product, RenderError>,
) -> std::io::Result<()> {
    match outcome {
        Ok(Product { rendering, renderer, warnings, images_matched }) => {
            write_header(output, &Response::Rendered { renderer, warnings, images_matched })?;
            output.write_all(&rendering)
        }
        Err(error) => write_header(output, &Response::Failed(error)),
    }
}

/// Reads the outcome of a rendering.
pub(super) fn read_outcome(output: &[u8]) -> std::io::Result<Result<Product, RenderError>> {
    let mut rest = output;
    match read_header(&mut rest, RESPONSE_HEADER_BYTES_MAX)? {
        Response::Rendered { renderer, warnings, images_matched } => {
            Ok(Ok(Product { rendering: rest.to_vec(), renderer, warnings, images_matched }))
        }
        Response::Failed(error) => Ok(Err(error)),
        Response::Isolated(_) => Err(ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::{YamlError, YamlErrorKind};

    #[test]
    fn a_request_arrives_with_its_files() {
        let tree = Tree::from_files([("k8s/a.yaml", "a: 1\n"), ("k8s/b.yaml", "")]);
        let mut bytes = Vec::new();

        write_request(&mut bytes, RenderRequest::new("k8s", &[]), &tree).unwrap();

        let mut input = bytes.as_slice();
        let Request::Render(mut request) = read_header(&mut input, 1000).unwrap() else { panic!() };
        assert_eq!(request.path, "k8s");
        assert_eq!(request.read_files(&mut input).unwrap(), tree);
        let short = &bytes[..bytes.len() - 1];
        let mut input = short;
        let Request::Render(mut request) = read_header(&mut input, 1000).unwrap() else { panic!() };
        assert!(request.read_files(&mut input).is_err());
        assert!(read_header::<Request>(&mut bytes.as_slice(), 10).is_err());
    }

    #[test]
    fn an_error_keeps_its_reason_its_text_and_whether_it_may_pass() {
        let yaml =
            |kind| RenderError::from(YamlError { file: "a".into(), problem: "b".into(), kind });
        let object = attest_common::documents::manifest::read(b"{}\n").unwrap_err();
        for error in [
            yaml(YamlErrorKind::Refused),
            yaml(YamlErrorKind::Limit),
            RenderError::manifest("k8s", &object),
            RenderError::files("read", "/x", Error::from_raw_os_error(28)),
            RenderError::files("read", "/x", Error::other("odd")),
            RenderError::TimedOut { path: "k8s".into(), limit_seconds: 30 },
            RenderError::ProgramEnded { path: "k8s".into(), program: "kustomize".into() },
        ] {
            let seen = |error: &RenderError| {
                let text = attest_common::basics::text::error_chain(error);
                (error.reason(), text, error.may_pass())
            };
            let expected = seen(&error);
            let mut bytes = Vec::new();

            write_outcome(&mut bytes, Err(error)).unwrap();

            let received = read_outcome(&bytes).unwrap().unwrap_err();
            assert_eq!(seen(&received), expected);
        }
    }
}
