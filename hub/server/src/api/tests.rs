use axum::routing::MethodFilter;
use http::Method;
use serde_json::Value;

use super::{Effect, QueryUse, routes};

const DESCRIPTION: &str = include_str!("../../../../docs/openapi.yaml");
/// One route a line: method, path, and the least role that may use it.
const ROLES: &str = include_str!("roles.txt");
const DOCUMENTS: &str = include_str!("../../../documents/src/lib.rs");

fn description() -> Value {
    serde_saphyr::from_str(DESCRIPTION).unwrap()
}

#[test]
fn the_description_and_the_router_name_the_same_routes() {
    let description = description();
    let mut described = Vec::new();
    for (path, methods) in description["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let method = method.to_uppercase().parse::<Method>().unwrap();
            described.push((path.as_str(), MethodFilter::try_from(method).unwrap()));
        }
    }

    let routed = routes().map(|route| (route.path, route.method));

    let missing = |these: &[(&str, MethodFilter)], there: &[(&str, MethodFilter)]| {
        let missing = these.iter().filter(|route| !there.contains(route));
        missing.map(|route| format!("{route:?}")).collect::<Vec<_>>()
    };
    assert_eq!(missing(&described, &routed), [""; 0], "described, but not routed");
    assert_eq!(missing(&routed, &described), [""; 0], "routed, but not described");
}

#[test]
fn a_viewer_may_use_the_routes_of_the_table_and_no_other() {
    let mut listed = Vec::new();
    for line in ROLES.lines().filter(|line| !line.starts_with('#')) {
        let [method, path, role] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("not METHOD PATH ROLE: {line}");
        };
        let effect = match role {
            "viewer" => Effect::Read,
            "operator" => Effect::Change,
            other => panic!("{other} is not a role: {line}"),
        };
        assert_eq!(effect == Effect::Read, method == "GET", "{line}");
        let method = MethodFilter::try_from(method.parse::<Method>().unwrap()).unwrap();
        listed.push((path, format!("{method:?}"), effect));
    }
    let mut routed: Vec<_> = routes()
        .iter()
        .map(|route| (route.path, format!("{:?}", route.method), route.rules.effect))
        .collect();
    listed.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    routed.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));

    assert_eq!(listed, routed, "roles.txt and the router differ");
}

#[test]
fn a_query_is_read_by_the_routes_of_applications_and_the_list_of_clusters_only() {
    for route in routes() {
        let reads = route.rules.query == QueryUse::Read;
        let may_read = route.path.starts_with("/v1/applications") || route.path == "/v1/clusters";
        assert!(!reads || may_read, "{}", route.path);
    }
}

#[test]
fn every_field_of_every_document_is_described() {
    let description = description();
    let schemas = description["components"]["schemas"].as_object().unwrap();
    let mut current = String::new();
    let mut renamed = None;
    let mut seen = 0;
    for line in DOCUMENTS.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("pub struct ") {
            current = rest.split(['<', ' ']).next().unwrap().to_owned();
            assert!(schemas.contains_key(&current), "{current} is not described");
        } else if let Some(rest) = line.strip_prefix("#[serde(rename = \"") {
            renamed = rest.split('"').next().map(str::to_owned);
        } else if line.starts_with("pub ") && !line.starts_with("pub const ") && line.ends_with(',')
        {
            let field = line["pub ".len()..].split_once(": ").unwrap();
            let name = renamed.take().unwrap_or_else(|| camel_case(field.0));
            let properties = &schemas[&current]["properties"];
            assert!(properties.get(&name).is_some(), "{current}.{name} is not described");
            seen += 1;
        }
    }
    assert!(seen > 80, "the documents were not read: {seen} fields");
}

fn camel_case(name: &str) -> String {
    let mut parts = name.split('_');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |mut whole, part| {
        let (head, tail) = part.split_at(1);
        whole.push_str(&head.to_uppercase());
        whole.push_str(tail);
        whole
    })
}
