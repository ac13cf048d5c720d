//! Tables of every case of the decision about a registration.

use serde_json::json;

use super::*;
use crate::cluster::SpokeIdentity;

const HERE: &str = "c-00000000000000aa";
const UID: &str = "uid-of-this-cluster";
const PIN: &str = "sha256:00";

/// An entry of the hub, written as name, last digits of the id, state and cluster. `+` marks a connected cluster,
/// `!` an expired certificate; the cluster `here` is the one with [`UID`].
struct Entry {
    name: String,
    id: ClusterId,
    state: String,
    uid: String,
}

impl Entry {
    fn parse(text: &str) -> Self {
        let words: Vec<&str> = text.split(' ').collect();
        let [name, id, state, uid] = words[..] else { panic!("{text}") };
        Self {
            name: name.to_owned(),
            id: format!("c-00000000000000{id}").parse().unwrap(),
            state: state.to_owned(),
            uid: if uid == "here" { UID } else { uid }.to_owned(),
        }
    }

    fn view(&self) -> HubEntry<'_> {
        HubEntry {
            name: &self.name,
            id: &self.id,
            state: self.state.trim_end_matches(['+', '!']),
            connected: self.state.contains('+'),
            certificate_expired: self.state.contains('!'),
            fingerprint: "SHA256:f",
            kube_system_uid: &self.uid,
        }
    }
}

/// A cluster without a spoke, with one that has an identity, or with one that a hub has admitted.
#[derive(Clone, Copy, Debug)]
enum Spoke {
    Absent,
    NotJoined,
    Joined,
}

fn facts(spoke: Spoke, pin: &str) -> ClusterFacts {
    ClusterFacts {
        version: Info::default(),
        kube_system_uid: UID.to_owned(),
        spoke: match spoke {
            Spoke::Absent => None,
            Spoke::NotJoined | Spoke::Joined => Some(SpokeIdentity {
                cluster_id: HERE.to_owned(),
                joined: matches!(spoke, Spoke::Joined),
            }),
        },
        policy: Some(json!({"hub": {"caPins": [pin]}})),
        has_earlier_spoke: false,
    }
}

/// The decision in one line: the action, and the other entry if one remains; or what is refused.
fn decide(name: &str, replace: bool, entries: &[&str], facts: &ClusterFacts) -> String {
    let name = name.parse().unwrap();
    let request = RegistrationRequest { name: &name, replace, ca_pin: PIN };
    let entries: Vec<Entry> = entries.iter().copied().map(Entry::parse).collect();
    let views: Vec<HubEntry<'_>> = entries.iter().map(Entry::view).collect();
    match plan_registration(&request, &views, facts) {
        Ok(RegistrationPlan { action, other_entry }) => {
            let action = match action {
                RegistrationAction::Install => "install",
                RegistrationAction::Update(id) => {
                    assert_eq!(id.as_str(), HERE);
                    "update"
                }
                RegistrationAction::Rejoin => "rejoin",
            };
            match other_entry {
                Some(other) => format!("{action}, beside {}", other.name),
                None => action.to_owned(),
            }
        }
        Err(refusal) => variant(&refusal),
    }
}

fn variant(refusal: &RegistrationRefusal) -> String {
    let text = format!("{refusal:?}");
    text.split([' ', '(']).next().unwrap_or_default().to_owned()
}

#[test]
fn a_registration_is_decided_by_the_name_the_identity_and_the_cluster() {
    use Spoke::{Absent, Joined, NotJoined};

    // In all of these the name is `qa`; the answers are without and with --replace.
    for (entries, spoke, plain, replacing) in [
        // Nothing is registered.
        (&[] as &[&str], Absent, "install", "install"),
        (&[], NotJoined, "install", "install"),
        (&[], Joined, "rejoin", "rejoin"),
        // This name, this identity.
        (&["qa aa Accepted+ here"], Joined, "update", "update"),
        (&["qa aa Accepted here"], Joined, "update", "update"),
        (&["qa aa Accepted+! here"], Joined, "update", "update"),
        (&["qa aa Accepted! here"], Joined, "CertificateExpired", "CertificateExpired"),
        (&["qa aa Evicted here"], Joined, "Evicted", "rejoin"),
        (&["qa aa IdentityCopied here"], Joined, "IdentityCopied", "rejoin"),
        (&["qa aa Pending here"], Joined, "AwaitingAcceptance", "rejoin"),
        (&["qa aa Revoked here"], Joined, "rejoin", "rejoin"),
        // This name, and the identity is lost or not certified yet.
        (&["qa aa Accepted here"], Absent, "NameTaken", "install"),
        (&["qa aa Accepted here"], NotJoined, "NameTaken", "install"),
        (&["qa aa Evicted here"], Absent, "Evicted", "install"),
        // This name, another identity.
        (&["qa bb Accepted elsewhere"], Joined, "NameTaken", "rejoin"),
        (&["qa bb Accepted elsewhere"], Absent, "NameTaken", "install"),
        (&["qa bb Pending elsewhere"], Joined, "NameTaken", "rejoin"),
        (&["qa bb Evicted elsewhere"], Joined, "Evicted", "rejoin"),
        (&["qa bb Revoked elsewhere"], Absent, "install", "install"),
        // Another name for this cluster, known by its identity or by its UID.
        (&["staging aa Accepted elsewhere"], Joined, "RegisteredAs", "rejoin, beside staging"),
        (&["staging bb Accepted here"], Joined, "RegisteredAs", "rejoin, beside staging"),
        (&["staging bb Accepted here"], Absent, "RegisteredAs", "install, beside staging"),
        (&["staging aa Revoked here"], Joined, "rejoin", "rejoin"),
        (&["staging aa Revoked here"], Absent, "install", "install"),
        // Another cluster.
        (&["production bb Accepted elsewhere"], Joined, "rejoin", "rejoin"),
        (&["production bb Accepted elsewhere"], Absent, "install", "install"),
        // This registration continues although an older entry names the same cluster.
        (&["staging bb Accepted here", "qa aa Accepted here"], Joined, "update", "update"),
    ] {
        let facts = facts(spoke, PIN);
        let case = format!("{entries:?} {spoke:?}");
        assert_eq!(decide("qa", false, entries, &facts), plain, "{case}");
        assert_eq!(decide("qa", true, entries, &facts), replacing, "{case} --replace");
    }
}

#[test]
fn an_identity_of_another_hub_is_replaced_on_request_only() {
    let joined = facts(Spoke::Joined, "sha256:ff");
    let absent = facts(Spoke::Absent, "sha256:ff");

    assert_eq!(decide("qa", false, &[], &joined), "OtherHub");
    assert_eq!(decide("qa", true, &[], &joined), "rejoin");
    assert_eq!(decide("qa", false, &[], &absent), "install");
}

#[test]
fn an_installation_in_the_namespace_of_the_hub_is_removed_first() {
    let earlier = ClusterFacts { has_earlier_spoke: true, ..facts(Spoke::Absent, PIN) };

    for replace in [false, true] {
        assert_eq!(decide("qa", replace, &[], &earlier), "EarlierInstallation");
    }
    let remedy = RegistrationRefusal::EarlierInstallation { name: "qa".to_owned() };
    let remedy = remedy.remedy("--kubeconfig F");
    assert!(remedy.contains("`kubectl --kubeconfig F -n attest-system delete "), "{remedy}");
    assert!(!remedy.contains("namespace/") && !remedy.contains("delete namespace"), "{remedy}");
    assert!(remedy.contains("`attest gitops cluster rm qa`"), "{remedy}");
}

#[test]
fn a_malformed_identity_is_refused() {
    let mut facts = facts(Spoke::Joined, PIN);
    facts.spoke.as_mut().unwrap().cluster_id = "c-1".to_owned();

    assert_eq!(decide("qa", true, &[], &facts), "MalformedIdentity");
}

#[test]
fn a_rejoin_is_decided_by_the_state_of_the_entry() {
    for (state, expected) in [
        ("Accepted+", Ok(RejoinPlan::Connected)),
        ("Accepted", Ok(RejoinPlan::IssueToken)),
        ("Accepted!", Ok(RejoinPlan::IssueToken)),
        ("Evicted", Ok(RejoinPlan::IssueToken)),
        ("IdentityCopied", Ok(RejoinPlan::IssueToken)),
        ("Pending", Err("AwaitingAcceptance")),
        ("Revoked", Err("IdentityRejected")),
        ("OfANewerHub", Err("IdentityRejected")),
    ] {
        let entry = Entry::parse(&format!("staging aa {state} here"));

        let decided = plan_rejoin(&entry.view());

        assert_eq!(
            decided.map_err(|refusal| variant(&refusal)),
            expected.map_err(str::to_owned),
            "{state}"
        );
    }
}

#[test]
fn a_kubeconfig_of_another_cluster_is_not_offered_the_name() {
    let staging = Entry::parse("staging aa Accepted here");
    let production = Entry::parse("production bb Accepted elsewhere");
    let entries = [staging.view(), production.view()];
    let check = |facts: &ClusterFacts| check_rejoin(&entries[0], &entries, facts);

    let elsewhere =
        ClusterFacts { kube_system_uid: "elsewhere".to_owned(), ..facts(Spoke::Joined, PIN) };
    let another = check(&elsewhere).unwrap_err();
    assert!(another.to_string().contains("another cluster, production"), "{another}");
    assert!(!another.remedy("").contains("--replace"), "{another:?}");
    let unknown =
        ClusterFacts { kube_system_uid: "nowhere".to_owned(), ..facts(Spoke::Joined, PIN) };
    assert_eq!(
        check(&unknown).map_err(|refusal| variant(&refusal)),
        Err("OtherCluster".to_owned())
    );
    let lost = check(&facts(Spoke::Absent, PIN)).unwrap_err();
    assert!(
        lost.remedy("--kubeconfig prod")
            .contains("cluster add staging --replace --kubeconfig prod`"),
        "{lost:?}"
    );
    assert_eq!(check(&facts(Spoke::Joined, PIN)), Ok(()));
}

#[test]
fn a_version_without_admission_policies_is_too_old() {
    for (major, minor, is_supported) in [
        ("1", "29", false),
        ("1", "29+", false),
        ("1", "30", true),
        ("1", "30+", true),
        ("1", "137", true),
        ("1", "", true),
        ("2", "0", true),
    ] {
        let version = Info { major: major.to_owned(), minor: minor.to_owned(), ..Info::default() };
        assert_eq!(check_version(&version).is_ok(), is_supported, "{major}.{minor}");
    }
}
