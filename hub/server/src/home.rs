//! The hub's home directory: certificate authority, keys, settings and database. Created atomically.
//!
//! Its files are readable by the owner only. `attest hub init` creates the home, `attest-hub` opens it. The database is
//! described in `store`; repositories are cached in `git/`.

mod operators;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use attest_certs::authority::{HUB_LIFETIME, Host, OPERATOR_LIFETIME};
use attest_certs::bundle::write_private;
use attest_certs::{Authority, AuthorityError, Bundle, BundleError, OperatorRole};
use attest_common::basics::ids::Timestamp;
use attest_common::basics::keys::{KeyError, PrivateKey};
use attest_common::basics::reason::Reason;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

pub use operators::{Operator, Operators, UNKNOWN_NAME};

use crate::core::store::{self, StoreError};

/// Environment variable of the home directory, for the hub and for `attest hub`.
pub const HOME_VARIABLE: &str = "ATTEST_HUB_HOME";
/// Largest settings or key file in bytes.
pub(crate) const FILE_BYTES_MAX: u64 = 64 * 1024;
/// Remaining lifetime below which the hub's certificate is renewed.
pub(crate) const TLS_RENEW_LEFT: Duration = Duration::from_secs(10 * 24 * 60 * 60);

const SETTINGS_FILE: &str = "hub.json";
const SIGNING_KEY_FILE: &str = "signing.key";
const DATABASE_FILE: &str = "hub.redb";
const ADDRESSES_FILE: &str = "addresses.json";
const GIT_DIRECTORY: &str = "git";
const OPERATORS_DIRECTORY: &str = "operators";
const TEMPORARY_DIRECTORY: &str = "temporary";
const AUTHORITY_CERTIFICATE_FILE: &str = "ca.crt";
const AUTHORITY_KEY_FILE: &str = "ca.key";
const TLS_STEM: &str = "hub";
const HUB_NAME: &str = "main";
const OPERATOR_NAME: &str = "admin";
const DIRECTORY_MODE: u32 = 0o700;

/// Advertised addresses of the hub.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Advertise {
    /// `HOST:PORT` that spokes dial (UDP).
    pub spoke_address: String,
    /// `https://HOST:PORT` of the API.
    pub api_url: String,
}

/// Data of a hub for the context of an operator.
#[derive(Clone, Debug)]
pub struct Created {
    pub api_url: String,
    pub spoke_address: String,
    /// The authority's certificate.
    pub ca_pem: String,
    /// `sha256:<hex>` of the authority's public key.
    pub ca_pin: String,
    /// The public half of the key that signs plans, PEM.
    pub hub_key_pem: String,
    pub hub_key_id: String,
    /// The operator's certificate chain, PEM.
    pub operator_chain_pem: String,
    /// The operator's private key, PEM.
    pub operator_key_pem: Zeroizing<String>,
    pub operator_expires_at: Timestamp,
}

/// An opened home.
#[derive(Debug)]
pub struct Home {
    directory: PathBuf,
    pub advertise: Advertise,
    pub authority: Authority,
    /// Certificate and key that the hub presents to spokes and operators.
    pub tls: Bundle,
    /// The key that signs plans, directives and syncs.
    pub signing: PrivateKey,
}

/// Creates the home `directory` with a new authority, keys and an empty database.
///
/// # Errors
/// [`HomeError::Exists`] when `directory` exists and is not an empty directory. A failure leaves nothing behind.
pub fn create(directory: &Path, advertise: &Advertise) -> Result<Created, HomeError> {
    let subject = OperatorSubject { role: OperatorRole::Operator, name: OPERATOR_NAME };
    place(directory, |unfinished| {
        let (authority, signing) = fill(unfinished, advertise)?;
        let operators = Operators::at(unfinished.join(OPERATORS_DIRECTORY));
        created(&operators, subject, advertise, &authority, &signing)
    })
}

/// Creates the home `directory` as [`create`] does, without an operator: those of a hub in a cluster log in through its
/// API server.
///
/// # Errors
/// As [`create`].
pub fn create_without_operator(directory: &Path, advertise: &Advertise) -> Result<(), HomeError> {
    place(directory, |unfinished| fill(unfinished, advertise).map(drop))
}

/// Returns whether `directory` contains a home.
pub fn exists(directory: &Path) -> bool {
    directory.join(SETTINGS_FILE).exists()
}

/// Creates `directory` with the content that `fill` writes, in one step.
fn place<T>(
    directory: &Path,
    fill: impl FnOnce(&Path) -> Result<T, HomeError>,
) -> Result<T, HomeError> {
    if !is_free(directory)? {
        return Err(HomeError::Exists(directory.to_path_buf()));
    }
    let parent = directory.parent().filter(|path| !path.as_os_str().is_empty());
    let parent = parent.map_or_else(|| PathBuf::from("."), Path::to_path_buf);
    fs::create_dir_all(&parent).map_err(|source| file_error(&parent, source))?;
    let unfinished = tempfile::Builder::new()
        .prefix(".attest-hub-")
        .tempdir_in(&parent)
        .map_err(|source| file_error(&parent, source))?;
    let created = fill(unfinished.path())?;
    fs::rename(unfinished.path(), directory).map_err(|source| file_error(directory, source))?;
    // The directory was moved: the guard must not remove its old path.
    let _moved = unfinished.keep();
    sync_directory(&parent)?;
    Ok(created)
}

fn fill(directory: &Path, advertise: &Advertise) -> Result<(Authority, PrivateKey), HomeError> {
    use std::os::unix::fs::PermissionsExt as _;

    let hosts = hosts_of(advertise)?;
    let private = fs::Permissions::from_mode(DIRECTORY_MODE);
    fs::set_permissions(directory, private).map_err(|source| file_error(directory, source))?;
    let authority = Authority::create(&trust_domain()?).map_err(HomeError::Authority)?;
    // Keeps `git add .` from adding the keys of a home in a working tree.
    write_file(directory, ".gitignore", b"*\n")?;
    write_file(directory, AUTHORITY_CERTIFICATE_FILE, authority.certificate_pem().as_bytes())?;
    write_file(directory, AUTHORITY_KEY_FILE, authority.key_pem().as_bytes())?;
    issue_tls(&authority, &hosts)?.save(directory, TLS_STEM).map_err(HomeError::Bundle)?;
    let seed = random()?;
    let signing = PrivateKey::from_seed(&seed).map_err(HomeError::SigningKey)?;
    write_file(
        directory,
        SIGNING_KEY_FILE,
        signing.to_pem().map_err(HomeError::SigningKey)?.as_bytes(),
    )?;
    let settings = serde_json::to_vec_pretty(advertise)
        .map_err(|source| HomeError::Settings { path: directory.join(SETTINGS_FILE), source })?;
    write_file(directory, SETTINGS_FILE, &settings)?;
    let git = directory.join(GIT_DIRECTORY);
    fs::create_dir(&git).map_err(|source| file_error(&git, source))?;
    store::create(&directory.join(DATABASE_FILE)).map_err(HomeError::Store)?;
    sync_directory(directory)?;
    Ok((authority, signing))
}

/// Name and role of an operator's certificate.
#[derive(Clone, Copy)]
struct OperatorSubject<'a> {
    role: OperatorRole,
    name: &'a str,
}

fn write_file(directory: &Path, name: &str, bytes: &[u8]) -> Result<(), HomeError> {
    write_private(&directory.join(name), bytes).map_err(HomeError::Bundle)
}

/// Issues a certificate to an operator, records it, and returns the data of its context.
fn created(
    operators: &Operators,
    subject: OperatorSubject<'_>,
    advertise: &Advertise,
    authority: &Authority,
    signing: &PrivateKey,
) -> Result<Created, HomeError> {
    let OperatorSubject { role, name } = subject;
    let issued =
        authority.issue_operator(role, name, OPERATOR_LIFETIME).map_err(HomeError::Authority)?;
    let operator = operators.note(role, name, &issued)?;
    Ok(Created {
        api_url: advertise.api_url.clone(),
        spoke_address: advertise.spoke_address.clone(),
        ca_pem: authority.certificate_pem(),
        ca_pin: authority.pin().to_string(),
        hub_key_pem: signing.public().to_pem(),
        hub_key_id: signing.public().id().to_string(),
        operator_chain_pem: issued.chain_pem(),
        operator_key_pem: issued.key_pem.unwrap_or_default(),
        operator_expires_at: operator.expires_at,
    })
}

/// Issues a certificate to another operator with the authority of the home `directory`. The hub may be running.
///
/// # Errors
/// When the home is unusable, or the name is not allowed in a certificate.
pub fn issue_operator(
    directory: &Path,
    role: OperatorRole,
    name: &str,
) -> Result<Created, HomeError> {
    let home = load(directory)?;
    let subject = OperatorSubject { role, name };
    created(&home.operators(), subject, &home.advertise, &home.authority, &home.signing)
}

/// Returns the pin of the authority of the home `directory`.
///
/// # Errors
/// When the home is unusable.
pub fn authority_pin(directory: &Path) -> Result<String, HomeError> {
    Ok(load(directory)?.authority.pin().to_string())
}

/// Returns the operators of the home `directory`.
///
/// # Errors
/// When the home does not exist.
pub fn operators(directory: &Path) -> Result<Operators, HomeError> {
    if !directory.join(SETTINGS_FILE).exists() {
        return Err(HomeError::Missing(directory.to_path_buf()));
    }
    Ok(Operators::at(directory.join(OPERATORS_DIRECTORY)))
}

/// Opens a home created by [`create`]. Renews the hub's certificate when it expires soon.
///
/// # Errors
/// When a file is missing or malformed; the error names the file.
pub fn open(directory: &Path) -> Result<Home, HomeError> {
    let mut home = load(directory)?;
    home.renew_tls()?;
    Ok(home)
}

fn load(directory: &Path) -> Result<Home, HomeError> {
    let settings_path = directory.join(SETTINGS_FILE);
    if !settings_path.exists() {
        return Err(HomeError::Missing(directory.to_path_buf()));
    }
    let settings = read(&settings_path)?;
    let advertise: Advertise = serde_json::from_str(&settings)
        .map_err(|source| HomeError::Settings { path: settings_path, source })?;
    let authority = Authority::from_pem(
        &read(&directory.join(AUTHORITY_CERTIFICATE_FILE))?,
        &read(&directory.join(AUTHORITY_KEY_FILE))?,
    )
    .map_err(HomeError::Authority)?;
    let signing = PrivateKey::from_pem(&read(&directory.join(SIGNING_KEY_FILE))?)
        .map_err(HomeError::SigningKey)?;
    let tls = Bundle::load(directory, TLS_STEM).map_err(HomeError::Bundle)?;
    Ok(Home { directory: directory.to_path_buf(), advertise, authority, tls, signing })
}

/// Returns the directory for temporary files of the hub: copies to render, keys for ssh.
pub fn temporary(directory: &Path) -> PathBuf {
    directory.join(TEMPORARY_DIRECTORY)
}

impl Home {
    /// Empties [`temporary`], which may contain files of a killed hub. The caller must hold the database.
    ///
    /// # Errors
    /// When the directory cannot be removed or created.
    pub(crate) fn empty_temporary(&self) -> Result<(), HomeError> {
        use std::os::unix::fs::DirBuilderExt as _;

        let directory = temporary(&self.directory);
        match fs::remove_dir_all(&directory) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(file_error(&directory, source));
            }
            _ => {}
        }
        let created = fs::DirBuilder::new().mode(DIRECTORY_MODE).create(&directory);
        created.map_err(|source| file_error(&directory, source))
    }

    /// Returns the path of the database.
    pub fn database(&self) -> PathBuf {
        self.directory.join(DATABASE_FILE)
    }

    /// Returns the path of the cache of Git repositories, which may be emptied while the hub is stopped.
    pub fn git(&self) -> PathBuf {
        self.directory.join(GIT_DIRECTORY)
    }

    /// Returns the operators of this hub.
    pub fn operators(&self) -> Operators {
        Operators::at(self.directory.join(OPERATORS_DIRECTORY))
    }

    /// Returns the path of the file to which the running hub writes its listen addresses.
    pub fn addresses(&self) -> PathBuf {
        self.directory.join(ADDRESSES_FILE)
    }

    /// Renews the hub's certificate when it expires within [`TLS_RENEW_LEFT`]. Returns whether it did.
    ///
    /// # Errors
    /// When the certificate cannot be issued or stored.
    pub(crate) fn renew_tls(&mut self) -> Result<bool, HomeError> {
        let left = attest_certs::peer_identity(self.tls.chain())
            .ok()
            .and_then(|identity| identity.not_after.duration_since(SystemTime::now()).ok());
        if left.is_some_and(|left| left > TLS_RENEW_LEFT) {
            return Ok(false);
        }
        self.tls = issue_tls(&self.authority, &hosts_of(&self.advertise)?)?;
        self.tls.save(&self.directory, TLS_STEM).map_err(HomeError::Bundle)?;
        Ok(true)
    }
}

fn issue_tls(authority: &Authority, hosts: &[Host]) -> Result<Bundle, HomeError> {
    let issued =
        authority.issue_hub(HUB_NAME, hosts, HUB_LIFETIME).map_err(HomeError::Authority)?;
    issued.bundle().map_err(HomeError::Authority)
}

/// Returns a random trust domain, so that certificates of other fleets are never accepted.
fn trust_domain() -> Result<String, HomeError> {
    let bytes = random()?;
    let hex = data_encoding::HEXLOWER.encode(bytes.get(..8).unwrap_or_default());
    Ok(format!("fleet-{hex}.attest"))
}

fn random() -> Result<Zeroizing<[u8; 32]>, HomeError> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(bytes.as_mut_slice()).map_err(HomeError::Randomness)?;
    Ok(bytes)
}

fn hosts_of(advertise: &Advertise) -> Result<Vec<Host>, HomeError> {
    let spokes = host_of(&advertise.spoke_address)
        .ok_or_else(|| invalid_address("--advertise", &advertise.spoke_address))?;
    let api = advertise.api_url.strip_prefix("https://").and_then(host_of);
    let api = api.ok_or_else(|| invalid_address("--api-advertise", &advertise.api_url))?;
    let mut names = vec![spokes, api, "localhost".to_owned(), "127.0.0.1".to_owned()];
    names.sort();
    names.dedup();
    Ok(names.iter().map(|name| Host::parse(name)).collect())
}

fn invalid_address(field: &'static str, value: &str) -> HomeError {
    HomeError::Advertise { field, value: value.chars().take(200).collect() }
}

/// Returns the host of `HOST:PORT`; an IPv6 address is in brackets.
fn host_of(text: &str) -> Option<String> {
    let (host, port) = text.rsplit_once(':')?;
    port.parse::<u16>().ok().filter(|port| *port > 0)?;
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    let is_bracketed = bare.len() != host.len();
    let fits = !bare.is_empty()
        && bare.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:".contains(&byte))
        && (is_bracketed || !bare.contains(':'));
    fits.then(|| bare.to_owned())
}

fn is_free(directory: &Path) -> Result<bool, HomeError> {
    match fs::read_dir(directory) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(false),
        Err(source) => Err(file_error(directory, source)),
    }
}

fn read(path: &Path) -> Result<Zeroizing<String>, HomeError> {
    use std::io::Read as _;

    let file = fs::File::open(path).map_err(|source| file_error(path, source))?;
    let mut text = Zeroizing::new(String::new());
    file.take(FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|source| file_error(path, source))?;
    Ok(text)
}

fn sync_directory(path: &Path) -> Result<(), HomeError> {
    fs::File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| file_error(path, source))
}

fn file_error(path: &Path, source: io::Error) -> HomeError {
    HomeError::File { path: path.to_path_buf(), source }
}

/// Reason that a home cannot be created or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HomeError {
    #[error("{} already exists and is not empty; choose another --home, or remove it if no hub uses it", .0.display())]
    Exists(PathBuf),
    #[error("{} is not the home of a hub; create one with `attest hub init --home {} --advertise HOST:PORT`", .0.display(), .0.display())]
    Missing(PathBuf),
    #[error("`{0}` is not a serial number; list certificates with `attest hub operator list`")]
    OperatorUnknown(String),
    #[error(
        "failed to change the owner of {} to user {user}, who owns the hub's home; run the command as that user", path.display()
    )]
    Owner {
        path: PathBuf,
        user: u32,
        #[source]
        source: io::Error,
    },
    #[error("failed to access {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{field} is `{value}`; must be HOST:PORT at which the hub can be reached")]
    Advertise { field: &'static str, value: String },
    #[error("failed to parse {}", path.display())]
    Settings {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("the hub's certificate authority is unusable")]
    Authority(#[source] AuthorityError),
    #[error("the hub's certificate is unusable")]
    Bundle(#[source] BundleError),
    #[error("the hub's signing key is unusable")]
    SigningKey(#[source] KeyError),
    #[error("the operating system provides no random bytes")]
    Randomness(#[source] getrandom::Error),
    #[error("failed to create the hub's database")]
    Store(#[source] StoreError),
}

impl HomeError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Exists(_) => Reason::HomeExists,
            Self::Missing(_) => Reason::HomeMissing,
            Self::OperatorUnknown(_) => Reason::OperatorUnknown,
            Self::Owner { .. } => Reason::HomeOwner,
            Self::File { .. } => Reason::HomeFile,
            Self::Advertise { .. } => Reason::AdvertiseInvalid,
            Self::Settings { .. } => Reason::HomeSettings,
            Self::Authority(error) => error.reason(),
            Self::Bundle(error) => error.reason(),
            Self::SigningKey(error) => error.reason(),
            Self::Randomness(_) => Reason::Randomness,
            Self::Store(error) => error.reason(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn advertise() -> Advertise {
        Advertise {
            spoke_address: "hub.example:4433".into(),
            api_url: "https://127.0.0.1:8443".into(),
        }
    }

    #[test]
    fn a_new_home_opens_and_a_second_is_not_made_over_it() {
        use std::os::unix::fs::PermissionsExt as _;

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("home");

        let created = create(&path, &advertise()).unwrap();
        let home = open(&path).unwrap();

        assert_eq!(home.signing.public().id().to_string(), created.hub_key_id);
        assert_eq!(home.authority.pin().to_string(), created.ca_pin);
        for entry in fs::read_dir(&path).unwrap() {
            let entry = entry.unwrap();
            let mode = entry.metadata().unwrap().permissions().mode();
            if entry.metadata().unwrap().is_file() {
                assert_eq!(mode & 0o077, 0, "{}", entry.path().display());
            }
        }
        assert_eq!(create(&path, &advertise()).unwrap_err().reason().as_str(), "HomeExists");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "leftovers");
    }

    #[test]
    fn a_home_in_a_working_tree_is_never_committed() {
        let directory = tempfile::tempdir().unwrap();
        let git = |arguments: &[&str]| {
            let mut git = std::process::Command::new("git");
            let output = git.args(arguments).current_dir(directory.path()).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        git(&["init", "-q"]);

        create(&directory.path().join(".attest-hub"), &advertise()).unwrap();
        git(&["add", "."]);

        assert_eq!(git(&["status", "--porcelain"]), "");
    }

    #[test]
    fn addresses_that_nobody_can_reach_are_refused_by_flag() {
        let directory = tempfile::tempdir().unwrap();
        for bad in ["", "hub", "hub:", "hub:0", "hub:99999", "a b:1", "::1:4433"] {
            let advertise = Advertise { spoke_address: bad.into(), ..advertise() };
            let error = create(&directory.path().join("home"), &advertise).unwrap_err();
            assert_eq!(error.reason().as_str(), "AdvertiseInvalid", "{bad}");
        }
        assert_eq!(host_of("[::1]:4433").as_deref(), Some("::1"));
    }

    #[test]
    fn a_home_that_is_not_there_says_how_to_make_one() {
        let directory = tempfile::tempdir().unwrap();

        let error = open(&directory.path().join("nothing")).unwrap_err();

        let line = format!(
            "`attest hub init --home {} --advertise HOST:PORT`",
            directory.path().join("nothing").display()
        );
        assert!(error.to_string().contains(&line), "{error}");
    }
}
