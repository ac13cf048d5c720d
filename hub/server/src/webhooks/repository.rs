//! The repositories that a webhook names, compared by host and path whatever the scheme. Pure.

use serde_json::Value;

/// Objects of a payload that describe the repository of a push: GitHub, Gitea and Forgejo; GitLab.
const OBJECTS: [&str; 2] = ["repository", "project"];
/// Fields with its addresses.
const FIELDS: [&str; 9] = [
    "clone_url",
    "ssh_url",
    "html_url",
    "git_url",
    "git_http_url",
    "git_ssh_url",
    "http_url",
    "homepage",
    "web_url",
];
/// Longest address in bytes.
const ADDRESS_BYTES_MAX: usize = 2048;

/// Host and path of a repository. Two addresses of one repository differ in scheme, user, port and `.git`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Location {
    host: String,
    path: String,
}

impl Location {
    /// Parses `scheme://[user@]host[:port]/path` or `user@host:path`.
    pub(super) fn parse(address: &str) -> Option<Self> {
        if address.len() > ADDRESS_BYTES_MAX {
            return None;
        }
        let (authority, path) = match address.split_once("://") {
            Some((_, rest)) => rest.split_once('/')?,
            None => address.split_once(':')?,
        };
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let host = match host.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
            Some(_) | None => host,
        };
        let path = path.trim_matches('/');
        let path = path.strip_suffix(".git").unwrap_or(path);
        let is_file = host.is_empty() && address.starts_with("file://");
        ((!host.is_empty() || is_file) && !path.is_empty())
            .then(|| Self { host: host.to_ascii_lowercase(), path: path.to_owned() })
    }
}

/// Returns the locations that the payload of a webhook names.
pub(super) fn pushed_repositories(body: &[u8]) -> Vec<Location> {
    let Ok(payload) = serde_json::from_slice::<Value>(body) else { return Vec::new() };
    let objects = OBJECTS.iter().filter_map(|name| payload.get(name));
    let addresses = objects.flat_map(|object| FIELDS.iter().filter_map(|field| object.get(field)));
    let mut found: Vec<Location> = Vec::new();
    for location in addresses.filter_map(Value::as_str).filter_map(Location::parse) {
        if !found.contains(&location) {
            found.push(location);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn addresses_of_one_repository_are_equal() {
        let same = [
            "https://git.example/company/web-app",
            "https://git.example/company/web-app.git",
            "https://Git.Example:8443/company/web-app/",
            "ssh://git@git.example:2222/company/web-app.git",
            "git@git.example:company/web-app.git",
            "http://user:token@git.example/company/web-app",
        ];
        let expected = Location::parse(same[0]).unwrap();
        for address in same {
            assert_eq!(Location::parse(address).as_ref(), Some(&expected), "{address}");
        }
        for other in [
            "https://git.example/company/web-app2",
            "https://git.example/Company/web-app",
            "https://other.example/company/web-app",
        ] {
            assert_ne!(Location::parse(other).as_ref(), Some(&expected), "{other}");
        }
        for none in ["", "https://git.example", "https://git.example/", "web-app", "file://"] {
            assert_eq!(Location::parse(none), None, "{none}");
        }
        assert_eq!(Location::parse("file:///srv/a"), Location::parse("file:///srv/a.git"));
    }

    #[test]
    fn a_push_of_each_git_server_names_its_repository() {
        let github = json!({"ref": "refs/heads/main", "repository": {
            "clone_url": "https://git.example/a/b.git", "ssh_url": "git@git.example:a/b.git",
            "html_url": "https://git.example/a/b",
        }});
        let gitlab = json!({"object_kind": "push", "project": {
            "git_http_url": "https://git.example/a/b.git", "git_ssh_url": "git@git.example:a/b.git",
        }});
        for payload in [github, gitlab] {
            let found = pushed_repositories(payload.to_string().as_bytes());
            assert_eq!(found, [Location::parse("https://git.example/a/b").unwrap()], "{payload}");
        }
        for none in
            ["", "[]", "{}", r#"{"repository": "a"}"#, r#"{"repository": {"clone_url": 1}}"#]
        {
            assert_eq!(pushed_repositories(none.as_bytes()), [], "{none}");
        }
    }
}
