//! What can go wrong between a repository and its files in memory, and what to do about each.
//!
//! One variant per thing that an operator can act on. Text of servers and programs is shown cut and on one line.

use super::url::UrlError;
use attest_common::basics::reason::Reason;

/// Why a repository gave no tree.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The address itself.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// The revision is not a name that Git knows.
    #[error("revision {revision:?} is not a branch, tag, full commit id or HEAD: {problem}")]
    RevisionMalformed {
        /// As given.
        revision: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// No such branch, tag or commit.
    #[error("{url} has no branch or tag {revision:?}: push it, or correct the revision")]
    ReferenceNotFound {
        /// The repository.
        url: String,
        /// As given.
        revision: String,
    },
    /// Several references answer to the name.
    #[error(
        "{url} has several references named {revision:?} ({candidates}): write the full name of one of them"
    )]
    ReferenceAmbiguous {
        /// The repository.
        url: String,
        /// As given.
        revision: String,
        /// The full names.
        candidates: String,
    },
    /// The commit cannot be had.
    #[error(
        "{url} does not give out commit {commit} ({detail}): name a branch or tag that contains it, or \
            allow it at the server (uploadpack.allowReachableSHA1InWant)"
    )]
    CommitNotFound {
        /// The repository.
        url: String,
        /// Full id.
        commit: String,
        /// The server's words.
        detail: String,
    },
    /// The object under the id is no well-formed commit.
    #[error(
        "object {commit} is not one well-formed commit ({problem}): make the commit again with git"
    )]
    CommitStructure {
        /// Full id.
        commit: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// The server refused the credentials, or wants some.
    #[error(
        "{url} refused access ({detail}): give valid credentials with `attest gitops repo add`"
    )]
    AuthenticationFailed {
        /// The repository.
        url: String,
        /// The server's words.
        detail: String,
    },
    /// An ssh address without key or host keys.
    #[error(
        "{url} is reached by ssh and has no key: give `attest gitops repo add {url} --ssh-key F --known-hosts F`"
    )]
    SshKeyMissing {
        /// The repository.
        url: String,
    },
    /// The ssh server showed another host key than the known one, or an unknown one.
    #[error(
        "the host key of {host} is not among the known hosts of this repository ({detail}): if the \
            server's key really changed, give the new one with `attest gitops repo add --known-hosts F` \
            (`ssh-keyscan` prints it; compare it with the server's own)"
    )]
    HostKeyRefused {
        /// The host.
        host: String,
        /// ssh's words.
        detail: String,
    },
    /// The TLS certificate is not trusted.
    #[error(
        "the certificate of {host} is not trusted ({detail}): give its authority with `attest gitops \
            repo add --ca-file F`"
    )]
    CertificateRefused {
        /// The host.
        host: String,
        /// The TLS library's words.
        detail: String,
    },
    /// Nobody answers.
    #[error("{url} cannot be reached ({detail}): check the address, the network and the server")]
    Unreachable {
        /// The repository.
        url: String,
        /// The system's words.
        detail: String,
    },
    /// The server knows no such repository.
    #[error(
        "{url} is not found at its server ({detail}): check the path, and that the credentials may read it"
    )]
    RepositoryNotFound {
        /// The repository.
        url: String,
        /// The server's words.
        detail: String,
    },
    /// The time limit.
    #[error(
        "{url} gave no answer within {limit_seconds} s and was given up: check the server and the network"
    )]
    TimedOut {
        /// The repository.
        url: String,
        /// The limit.
        limit_seconds: u64,
    },
    /// The caller ended it.
    #[error("reading {url} was interrupted")]
    Interrupted {
        /// The repository.
        url: String,
    },
    /// A limit on what is read.
    #[error("{what} is over the limit of {limit} {unit}: {remedy}")]
    LimitExceeded {
        /// What is too large.
        what: String,
        /// The limit.
        limit: u64,
        /// Unit of the limit.
        unit: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// A name that must not be written anywhere.
    #[error("path {path:?} in the repository is refused ({problem}): rename it")]
    TreePath {
        /// The path.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// A symbolic link.
    #[error("{path:?} in the repository is a symbolic link: commit the file itself")]
    TreeSymlink {
        /// The path.
        path: String,
    },
    /// A submodule.
    #[error(
        "{path:?} in the repository is a submodule: commit its files, or move it out of the source root"
    )]
    TreeSubmodule {
        /// The path.
        path: String,
    },
    /// A Git LFS pointer.
    #[error("{path:?} in the repository is a Git LFS pointer: commit the file itself")]
    TreeLfsPointer {
        /// The path.
        path: String,
    },
    /// A directory that was asked for.
    #[error("directory {path:?} is not in the repository at this commit: correct the path")]
    PathMissing {
        /// The path.
        path: String,
    },
    /// A file with an unfinished merge.
    #[error("{path:?} has an unfinished merge in the Git index: finish it and `git add` the file")]
    IndexConflict {
        /// The path.
        path: String,
    },
    /// A program that is needed.
    #[error("program {program:?} is needed for {url} and cannot be run: install {package}")]
    ProgramMissing {
        /// The repository.
        url: String,
        /// The program.
        program: &'static str,
        /// The package that has it.
        package: &'static str,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The local file system.
    #[error("cannot {action} {path:?}: check free space and permissions")]
    Files {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: String,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A directory without a repository.
    #[error(
        "{path:?} is not inside a Git work tree: run this in a clone of the repository, or `git init` it"
    )]
    NotAWorkTree {
        /// The directory.
        path: String,
    },
    /// The git program failed.
    #[error("`git {command}` failed: {detail}")]
    GitProgram {
        /// Its sub-command.
        command: &'static str,
        /// Its words.
        detail: String,
    },
    /// Whatever else Git's protocol or objects can be.
    #[error(
        "{url} does not speak Git as expected ({detail}): check that the address is a Git repository"
    )]
    Protocol {
        /// The repository.
        url: String,
        /// The library's words.
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
            Self::CommitNotFound { .. } => Reason::CommitNotFound,
            Self::CommitStructure { .. } => Reason::CommitStructure,
            Self::AuthenticationFailed { .. } => Reason::AuthenticationFailed,
            Self::SshKeyMissing { .. } => Reason::SshKeyMissing,
            Self::HostKeyRefused { .. } => Reason::HostKeyRefused,
            Self::CertificateRefused { .. } => Reason::CertificateRefused,
            Self::Unreachable { .. } => Reason::RepositoryUnreachable,
            Self::RepositoryNotFound { .. } => Reason::RepositoryNotFound,
            Self::TimedOut { .. } => Reason::SourceTimedOut,
            Self::Interrupted { .. } => Reason::Interrupted,
            Self::LimitExceeded { .. } => Reason::RepositoryLimit,
            Self::TreePath { .. } => Reason::TreePath,
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
