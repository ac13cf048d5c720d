//! Errors between a repository and its files in memory, with the remedy for each.
//!
//! One variant per case that an operator can act on. Messages of servers and programs are shortened to one line.

use std::path::Path;

use super::ObjectFormat;
use super::url::UrlError;
use attest_common::basics::reason::Reason;

/// Error of reading a repository.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The address is invalid or not allowed.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// The revision is not a name that Git allows.
    #[error(
        "invalid revision {revision:?}: {problem}; use a branch, a tag, HEAD or a full commit id"
    )]
    RevisionMalformed {
        /// Revision as given.
        revision: String,
        /// Rule that it violates.
        problem: &'static str,
    },
    /// The repository has no such branch or tag.
    #[error("{url} has no branch or tag {revision:?}; push it or correct the revision")]
    ReferenceNotFound {
        /// Address of the repository.
        url: String,
        /// Revision as given.
        revision: String,
    },
    /// Several references have the name.
    #[error(
        "{url} has several references named {revision:?} ({candidates}); use the full name of one of them"
    )]
    ReferenceAmbiguous {
        /// Address of the repository.
        url: String,
        /// Revision as given.
        revision: String,
        /// Full names, comma separated.
        candidates: String,
    },
    /// The server does not send the commit.
    #[error(
        "{url} does not send commit {commit} ({detail}); name a branch or tag that contains it, or allow the \
            request on the server (uploadpack.allowReachableSHA1InWant)"
    )]
    CommitNotFound {
        /// Address of the repository.
        url: String,
        /// Full commit id.
        commit: String,
        /// Message of the server.
        detail: String,
    },
    /// The objects of the repository are named by another hash function than those of the commit.
    #[error(
        "the objects of {url} are named by {format}, the requested commit is not; name a branch or tag"
    )]
    ObjectFormat {
        /// Address of the repository.
        url: String,
        /// Object format of the server.
        format: ObjectFormat,
    },
    /// The object with this id is not a well-formed commit.
    #[error(
        "object {commit} is not a well-formed commit: {problem}; create the commit again with git"
    )]
    CommitStructure {
        /// Full object id.
        commit: String,
        /// Rule that it violates.
        problem: &'static str,
    },
    /// The server rejected the credentials, or requires credentials.
    #[error("{url} denied access ({detail}); set valid credentials with `attest gitops repo add`")]
    AuthenticationFailed {
        /// Address of the repository.
        url: String,
        /// Message of the server.
        detail: String,
    },
    /// An ssh address without key and host keys.
    #[error("no ssh key for {url}; run `attest gitops repo add {url} --ssh-key F --known-hosts F`")]
    SshKeyMissing {
        /// Address of the repository.
        url: String,
    },
    /// The host key of the ssh server is unknown or differs from the known one.
    #[error(
        "the host key of {host} is not among the known hosts of this repository ({detail}); if the key of the \
            server has changed, set the new one with `attest gitops repo add --known-hosts F` (`ssh-keyscan` \
            prints it; compare it with the key on the server)"
    )]
    HostKeyRefused {
        /// Host name.
        host: String,
        /// Message of ssh.
        detail: String,
    },
    /// The TLS certificate is not trusted.
    #[error(
        "the certificate of {host} is not trusted ({detail}); set its authority with `attest gitops repo add \
            --ca-file F`"
    )]
    CertificateRefused {
        /// Host name.
        host: String,
        /// Message of the TLS library.
        detail: String,
    },
    /// The host is at an address that the repository may not be read from.
    #[error(
        "{url} is not read ({detail}); a repository on the hub's machine needs `attest gitops repo add {url} \
            --allow-loopback`"
    )]
    AddressRefused {
        /// Address of the repository.
        url: String,
        /// The resolved address and the rule that it violates.
        detail: String,
    },
    /// The server redirects to another host.
    #[error(
        "{url} has moved to {location}, and redirects to other hosts are not followed; set repoURL to the new address"
    )]
    RedirectRefused {
        /// Address of the repository.
        url: String,
        /// New address.
        location: String,
    },
    /// There is no connection to the server.
    #[error("failed to connect to {url} ({detail}); check the address, the network and the server")]
    Unreachable {
        /// Address of the repository.
        url: String,
        /// Message of the system.
        detail: String,
    },
    /// The server has no such repository.
    #[error(
        "{url} does not exist on its server ({detail}); check the path and the access of the credentials"
    )]
    RepositoryNotFound {
        /// Address of the repository.
        url: String,
        /// Message of the server.
        detail: String,
    },
    /// The time limit was exceeded.
    #[error("{url} did not respond within {limit_seconds} s; check the server and the network")]
    TimedOut {
        /// Address of the repository.
        url: String,
        /// Time limit.
        limit_seconds: u64,
    },
    /// The caller interrupted the exchange.
    #[error("reading {url} was interrupted")]
    Interrupted {
        /// Address of the repository.
        url: String,
    },
    /// A limit of [`RepositoryLimits`](super::RepositoryLimits) was exceeded.
    #[error("{subject} exceeds the limit of {limit} {unit}; {remedy}")]
    LimitExceeded {
        /// Quantity that is too large.
        subject: String,
        /// Limit.
        limit: u64,
        /// Unit of the limit.
        unit: &'static str,
        /// Remedy.
        remedy: &'static str,
    },
    /// A path that must not be written to a file system, or not used as a directory.
    #[error("invalid path {path:?} in the repository: {problem}")]
    TreePath {
        /// Path.
        path: String,
        /// Rule that it violates, and the remedy.
        problem: String,
    },
    /// A pipe, socket or device.
    #[error("{path:?} in the work tree is a pipe, socket or device; remove it")]
    TreeSpecialFile {
        /// Path of the file.
        path: String,
    },
    /// A symbolic link where a file is read.
    #[error("{path:?} in the repository is a symbolic link; commit the file itself")]
    TreeSymlink {
        /// Path of the link.
        path: String,
    },
    /// A submodule where a file is read.
    #[error(
        "{path:?} in the repository is a submodule; commit its files or move it out of the source root"
    )]
    TreeSubmodule {
        /// Path of the submodule.
        path: String,
    },
    /// A Git LFS pointer where a file is read.
    #[error("{path:?} in the repository is a Git LFS pointer; commit the file itself")]
    TreeLfsPointer {
        /// Path of the pointer.
        path: String,
    },
    /// A requested directory does not exist.
    #[error("the commit has no directory {path:?}; correct the path")]
    PathMissing {
        /// Path of the directory.
        path: String,
    },
    /// A file with an unfinished merge.
    #[error("{path:?} has an unfinished merge in the Git index; finish it and `git add` the file")]
    IndexConflict {
        /// Path of the file.
        path: String,
    },
    /// A required program cannot be started.
    #[error("failed to run {program:?} for {url}; install {package}")]
    ProgramMissing {
        /// Address of the repository, or path of the clone.
        url: String,
        /// Name of the program.
        program: &'static str,
        /// Package that contains the program.
        package: &'static str,
        /// Error of the system.
        #[source]
        source: std::io::Error,
    },
    /// The local file system.
    #[error("failed to {action} {path:?}; check free space and permissions")]
    Files {
        /// Operation that failed.
        action: &'static str,
        /// File or directory.
        path: String,
        /// Error of the system.
        #[source]
        source: std::io::Error,
    },
    /// A directory outside a Git work tree.
    #[error(
        "{path:?} is not in a Git work tree; run the command in a clone of the repository, or run `git init`"
    )]
    NotAWorkTree {
        /// Path of the directory.
        path: String,
    },
    /// The git program failed.
    #[error("`git {command}` failed: {detail}")]
    GitProgram {
        /// Subcommand.
        command: &'static str,
        /// Diagnostics of the program.
        detail: String,
    },
    /// Any other failure of Git's protocol or objects.
    #[error("unexpected response of {url} ({detail}); check that the address is a Git repository")]
    Protocol {
        /// Address of the repository.
        url: String,
        /// Message of the library.
        detail: String,
    },
}

impl SourceError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Url(error) => error.reason(),
            Self::RevisionMalformed { .. } => Reason::RevisionMalformed,
            Self::ReferenceNotFound { .. } => Reason::ReferenceNotFound,
            Self::ReferenceAmbiguous { .. } => Reason::ReferenceAmbiguous,
            Self::CommitNotFound { .. } | Self::ObjectFormat { .. } => Reason::CommitNotFound,
            Self::CommitStructure { .. } => Reason::CommitStructure,
            Self::AuthenticationFailed { .. } => Reason::AuthenticationFailed,
            Self::SshKeyMissing { .. } => Reason::SshKeyMissing,
            Self::HostKeyRefused { .. } => Reason::HostKeyRefused,
            Self::CertificateRefused { .. } => Reason::CertificateRefused,
            Self::AddressRefused { .. } => Reason::RepositoryAddress,
            Self::RedirectRefused { .. } => Reason::RepositoryRedirected,
            Self::Unreachable { .. } => Reason::RepositoryUnreachable,
            Self::RepositoryNotFound { .. } => Reason::RepositoryNotFound,
            Self::TimedOut { .. } => Reason::SourceTimedOut,
            Self::Interrupted { .. } => Reason::Interrupted,
            Self::LimitExceeded { .. } => Reason::RepositoryLimit,
            Self::TreePath { .. } => Reason::TreePath,
            Self::TreeSpecialFile { .. } => Reason::TreeSpecialFile,
            Self::TreeSymlink { .. } => Reason::TreeSymlink,
            Self::TreeSubmodule { .. } => Reason::TreeSubmodule,
            Self::TreeLfsPointer { .. } => Reason::TreeLfsPointer,
            Self::PathMissing { .. } => Reason::PathMissing,
            Self::IndexConflict { .. } => Reason::IndexConflict,
            Self::ProgramMissing { .. } => Reason::ProgramMissing,
            Self::Files { .. } => Reason::SourceFiles,
            Self::NotAWorkTree { .. } => Reason::NotAWorkTree,
            Self::GitProgram { .. } => Reason::GitProgram,
            Self::Protocol { .. } => Reason::GitProtocol,
        }
    }
}

/// Error of starting git in the clone at `root`.
pub(crate) fn git_missing(root: &Path, source: std::io::Error) -> SourceError {
    let url = root.display().to_string();
    SourceError::ProgramMissing { url, program: "git", package: "git", source }
}

pub(crate) fn files_error(
    action: &'static str,
    path: &Path,
    source: std::io::Error,
) -> SourceError {
    SourceError::Files { action, path: path.display().to_string(), source }
}
