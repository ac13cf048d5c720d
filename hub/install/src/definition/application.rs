//! `AttestApplication`: its CustomResourceDefinition.
//!
//! The schema names, describes and bounds every field in every spelling that the hub reads; a test of the hub compares
//! it with the types. Contradictions within one resource are rules in CEL. The hub decides everything that depends on
//! more than the resource: clusters, keys, and features that are not available.

use serde_json::{Map, Value, json};

use super::{described, list, printer_column};

/// Maximum length of a message or another text of the status, in characters.
const MESSAGE_LENGTH_MAX: usize = 32_768;
/// Maximum number of destinations of one application.
const DESTINATIONS_MAX: usize = 10_000;
/// Maximum number of destinations in the status: the worst ones.
const STATUS_DESTINATIONS_MAX: usize = 50;
/// Maximum number of conditions in the status.
const CONDITIONS_MAX: usize = 16;
/// Maximum number of entries of `trustedKeys`.
const TRUSTED_KEYS_MAX: usize = 64;
/// Maximum number of entries of a short list.
const WORDS_MAX: usize = 16;
/// Maximum number of labels and of requirements on labels.
const LABELS_MAX: usize = 64;
/// Maximum number of stages.
const STAGES_MAX: usize = 31;
/// Maximum number of hooks, and of policies.
const HOOKS_MAX: usize = 64;

/// Returns the CustomResourceDefinition of `AttestApplication`.
pub fn application_definition() -> Value {
    let version = json!({
        "name": "v1", "served": true, "storage": true,
        "schema": {"openAPIV3Schema": schema()},
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            described(printer_column("Phase", ".status.phase"), "Phase of the worst destination."),
            described(condition_column("Ready"), "Every destination runs the signed commit and is healthy."),
            described(
                printer_column("Revision", ".status.shortRevision"),
                "Commit to which the target revision resolves."
            ),
            described(printer_column("Stage", ".status.stage"), "Stage of a progressive delivery."),
            described(condition_column("Verified"), "Every destination runs a release signed by CI."),
            described(printer_column("Clusters", ".status.clusters"), "Synced destinations and their total."),
            {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
            {
                "name": "Message", "type": "string", "priority": 1,
                "jsonPath": ".status.conditions[?(@.type==\"Ready\")].message",
                "description": "Reason that the application is not ready."
            }
        ]
    });
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {
            "name": "attestapplications.attest.continuu.ms",
            "labels": {"app.kubernetes.io/part-of": "attest"}
        },
        "spec": {
            "group": "attest.continuu.ms", "scope": "Namespaced",
            "names": {
                "plural": "attestapplications", "singular": "attestapplication",
                "kind": "AttestApplication", "listKind": "AttestApplicationList",
                "shortNames": ["attestapp", "aapp"], "categories": ["attest"]
            },
            "versions": [version]
        }
    })
}

fn condition_column(kind: &str) -> Value {
    printer_column(kind, &format!(".status.conditions[?(@.type==\"{kind}\")].status"))
}

fn schema() -> Value {
    let mut schema = object(
        "An application that ATTEST deploys from Git to one or more clusters. Each cluster verifies with its own trust \
         policy that CI signed what it runs.",
        &["spec"],
        [
            ("apiVersion", json!({"type": "string"})),
            ("kind", json!({"type": "string"})),
            ("metadata", json!({"type": "object"})),
            ("spec", spec()),
            ("status", status()),
        ],
    );
    rule(
        &mut schema,
        "self.metadata.name.size() <= 63 && !self.metadata.name.contains('.')",
        "the name of an application must be a DNS label of at most 63 characters",
    );
    schema
}

fn spec() -> Value {
    let mut spec = object(
        "The source of the application, its destinations, and what a release must prove.",
        &["source"],
        [
            ("source", source()),
            (
                "destination",
                described(
                    destination(),
                    "The only destination. Set either `destination` or `destinations`.",
                ),
            ),
            ("destinations", destinations()),
            ("verification", verification()),
            ("receiptVerification", receipt_verification()),
            ("syncPolicy", sync_policy()),
            ("progressiveDelivery", progressive_delivery()),
            (
                "strategy",
                json!({
                    "x-kubernetes-preserve-unknown-fields": true,
                    "description": "`RollingUpdate`, the default, by name or as `type`. Other strategies are not \
                                    available yet (`FeatureNotAvailable`)."
                }),
            ),
        ],
    );
    rule(
        &mut spec,
        "has(self.destination) != has(self.destinations)",
        "set either destination or destinations",
    );
    rule(
        &mut spec,
        "!(has(self.receiptVerification) && has(self.verification) && has(self.verification.receiptVerification))",
        "set receiptVerification once, in spec or in spec.verification",
    );
    spec
}

fn source() -> Value {
    let address = "Address of the Git repository: https, ssh, or file where the hub allows it.";
    let mut source = object(
        "The Git repository with the manifests and the signed receipts.",
        &["path"],
        [
            ("repoUrl", described(bounded(1, 2048), address)),
            ("repoURL", described(bounded(1, 2048), "Another spelling of `repoUrl`.")),
            (
                "targetRevision",
                described(
                    bounded(1, 255),
                    "A branch, a tag, a full commit id, or `HEAD`, which is the default.",
                ),
            ),
            (
                "path",
                described(
                    bounded(1, 1024),
                    "Directory of the manifests or of a kustomization, relative to the root of the repository.",
                ),
            ),
        ],
    );
    one_spelling(&mut source, "repoUrl", "repoURL", Presence::Required);
    source
}

fn destinations() -> Value {
    json!({
        "type": "array", "minItems": 1, "maxItems": DESTINATIONS_MAX, "items": destination(),
        "x-kubernetes-list-type": "atomic",
        "description": "The destinations, each a namespace of a cluster. A destination that is taken out waits as \
                        `RemovalUnconfirmed` until the annotation `attest.continuu.ms/confirm-removal` names it as \
                        CLUSTER/NAMESPACE."
    })
}

fn destination() -> Value {
    let mut destination = object(
        "A namespace of a cluster, or of every cluster with some labels.",
        &["namespace"],
        [
            (
                "cluster",
                described(
                    name(),
                    "Name of a registered cluster. Without it and without `clusterSelector`: the cluster that the hub \
                     runs on.",
                ),
            ),
            ("clusterSelector", cluster_selector()),
            (
                "namespace",
                described(
                    name(),
                    "Namespace of the application's objects. It is created when it is missing.",
                ),
            ),
            (
                "path",
                described(
                    bounded(1, 1024),
                    "Directory of this destination; by default the overlay of the cluster, else of its environment, \
                     below `spec.source.path`.",
                ),
            ),
            (
                "stage",
                described(
                    name(),
                    "Home stage; by default the one that a label, the name or the environment of the cluster gives.",
                ),
            ),
        ],
    );
    rule(
        &mut destination,
        "!(has(self.cluster) && has(self.clusterSelector))",
        "set either cluster or clusterSelector",
    );
    destination
}

fn cluster_selector() -> Value {
    let expression = object(
        "A requirement on a label.",
        &["key", "operator"],
        [
            ("key", described(bounded(1, 317), "Key of the label.")),
            ("operator", described(bounded(1, 32), "`In`, `NotIn`, `Exists` or `DoesNotExist`.")),
            (
                "values",
                described(list(&bounded(0, 63), LABELS_MAX), "Values, for `In` and `NotIn`."),
            ),
        ],
    );
    object(
        "Every registered cluster with these labels, also one that is registered or labelled later.",
        &[],
        [
            (
                "matchLabels",
                json!({
                    "type": "object", "maxProperties": LABELS_MAX,
                    "additionalProperties": {"type": "string", "maxLength": 63},
                    "description": "Labels and their values."
                }),
            ),
            (
                "matchExpressions",
                described(list(&expression, LABELS_MAX), "Requirements, all of which must hold."),
            ),
        ],
    )
}

fn progressive_delivery() -> Value {
    let criteria = "Not available yet: the resource is not accepted (`FeatureNotAvailable`).";
    let approval = object(
        "Approval by an operator.",
        &["required"],
        [("required", boolean("The stage waits for an approval."))],
    );
    let stage = object(
        "A stage.",
        &["name"],
        [
            ("name", described(name(), "Name of the stage.")),
            ("weight", int_or_string("Share of the stage's clusters, in percent.")),
            ("duration", int_or_string("Time for which the stage must be healthy, such as `10m`.")),
            (
                "clusters",
                described(list(&name(), DESTINATIONS_MAX), "Names of the clusters of the stage."),
            ),
            ("clusterSelector", cluster_selector()),
            (
                "maxConcurrency",
                int_or_string("Number or percentage of clusters that change concurrently."),
            ),
            ("maxFailures", int_or_string("Number or percentage of clusters that may fail.")),
            ("approval", approval),
            (
                "progressDeadline",
                int_or_string("Time after which a cluster without progress has failed."),
            ),
            (
                "unreachable",
                described(
                    bounded(1, 32),
                    "`Wait`, the default, for clusters that are not connected.",
                ),
            ),
            ("successCriteria", open(criteria)),
        ],
    );
    let stages = json!({
        "type": "array", "maxItems": STAGES_MAX, "items": stage,
        "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
        "description": "The stages, in their order."
    });
    object(
        "Stages through which a release passes.",
        &["enabled"],
        [("enabled", boolean("Releases pass through the stages.")), ("stages", stages)],
    )
}

fn int_or_string(description: &str) -> Value {
    json!({"x-kubernetes-int-or-string": true, "description": description})
}

/// A DNS label.
fn name() -> Value {
    json!({"type": "string", "minLength": 1, "maxLength": 63, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"})
}

fn verification() -> Value {
    let mut verification = object(
        "What a release must prove. The trust policy of each cluster may require more, never less.",
        &[],
        [
            ("enabled", boolean("`true`. Every release is verified; `false` is not accepted.")),
            (
                "trustedKeys",
                described(
                    set(&bounded(1, 128), TRUSTED_KEYS_MAX),
                    "Keys that may sign, by their name in `attest gitops key list` or by key id. Absent: every key \
                     that the cluster trusts.",
                ),
            ),
            (
                "policy",
                json!({
                    "type": "string", "maxLength": 32,
                    "description": "`Strict`, the default, or `Standard`."
                }),
            ),
            ("receiptVerification", receipt_verification()),
            ("policyValidation", policy_validation()),
            (
                "policy_validation",
                described(policy_validation(), "Another spelling of `policyValidation`."),
            ),
            ("customHooks", custom_hooks()),
            ("custom_hooks", described(custom_hooks(), "Another spelling of `customHooks`.")),
        ],
    );
    one_spelling(&mut verification, "policyValidation", "policy_validation", Presence::Optional);
    one_spelling(&mut verification, "customHooks", "custom_hooks", Presence::Optional);
    verification
}

fn receipt_verification() -> Value {
    let names = set(&bounded(1, 64), WORDS_MAX);
    let mut receipts = object(
        "The attestations that a release needs.",
        &[],
        [
            ("required", boolean("At least one attestation must be required.")),
            (
                "requiredAttestations",
                described(names.clone(), "Of `build`, `test` and `security-scan`."),
            ),
            (
                "required_attestations",
                described(names, "Another spelling of `requiredAttestations`."),
            ),
        ],
    );
    one_spelling(
        &mut receipts,
        "requiredAttestations",
        "required_attestations",
        Presence::Optional,
    );
    rule(
        &mut receipts,
        "!has(self.required) || self.required || \
         ((!has(self.requiredAttestations) || self.requiredAttestations.size() == 0) && \
         (!has(self.required_attestations) || self.required_attestations.size() == 0))",
        "required is false beside a list of required attestations; remove one of them",
    );
    receipts
}

fn policy_validation() -> Value {
    let policies = set(&bounded(1, 253), HOOKS_MAX);
    object(
        "Policies in Rego that a release must pass. Not available yet: the resource is not accepted \
         (`FeatureNotAvailable`).",
        &[],
        [
            ("policyBundle", described(bounded(1, 2048), "Address of the bundle.")),
            ("policy_bundle", described(bounded(1, 2048), "Another spelling of `policyBundle`.")),
            (
                "failOnViolation",
                boolean("A violation refuses the release; otherwise it is a warning."),
            ),
            ("fail_on_violation", boolean("Another spelling of `failOnViolation`.")),
            (
                "requiredPolicies",
                described(policies.clone(), "Names of policies that must be in the bundle."),
            ),
            ("required_policies", described(policies, "Another spelling of `requiredPolicies`.")),
        ],
    )
}

fn custom_hooks() -> Value {
    let hook = object(
        "A program that checks a release.",
        &["name", "image"],
        [
            ("name", described(bounded(1, 63), "Name of the hook.")),
            ("image", described(bounded(1, 1024), "Image of the program.")),
            ("command", described(list(&bounded(0, 4096), HOOKS_MAX), "Its command line.")),
        ],
    );
    json!({
        "type": "array", "maxItems": HOOKS_MAX, "items": hook,
        "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
        "description": "Programs that check a release. Not available yet: the resource is not accepted \
                        (`FeatureNotAvailable`)."
    })
}

fn sync_policy() -> Value {
    let mut automated = object(
        "New releases are deployed without `attest gitops app sync`. Absent beside other fields of `syncPolicy`: they \
         wait for it.",
        &[],
        [
            ("prune", boolean("Objects that a new release no longer contains are deleted.")),
            ("selfHeal", boolean("Changes that others make to live objects are reverted.")),
            ("selfheal", boolean("Another spelling of `selfHeal`.")),
        ],
    );
    one_spelling(&mut automated, "selfHeal", "selfheal", Presence::Optional);
    object(
        "How a release reaches its destinations. Absent: automatically, without pruning and without reverting.",
        &[],
        [
            ("automated", automated),
            (
                "syncOptions",
                described(
                    list(&bounded(1, 128), WORDS_MAX),
                    "`Adopt=true` takes over objects that exist, where the cluster's policy allows it; \
                     `CreateNamespace=true` is always in effect.",
                ),
            ),
        ],
    )
}

fn status() -> Value {
    let destination = object(
        "Status of one destination.",
        &["cluster", "namespace"],
        [
            ("cluster", described(bounded(0, 253), "Name of the cluster.")),
            ("namespace", described(bounded(0, 63), "Namespace in that cluster.")),
            ("phase", described(bounded(0, 64), "Phase of the destination.")),
            ("reason", described(bounded(0, 128), "Reason of the phase, as in docs/reasons.md.")),
            ("message", described(bounded(0, MESSAGE_LENGTH_MAX), "The reason in a sentence.")),
            ("health", described(bounded(0, 64), "Health of the worst object.")),
            ("revision", described(bounded(0, 64), "Commit that runs.")),
        ],
    );
    object(
        "What the hub reports. Written by the hub only.",
        &[],
        [
            (
                "observedGeneration",
                json!({"type": "integer", "format": "int64", "description": "Generation that this status describes."}),
            ),
            (
                "hub",
                described(
                    bounded(0, 128),
                    "Key id of the hub that manages the resource. Another hub leaves it alone.",
                ),
            ),
            ("phase", described(bounded(0, 64), "Phase of the worst destination.")),
            (
                "revision",
                described(bounded(0, 64), "Commit to which the target revision resolves."),
            ),
            ("shortRevision", described(bounded(0, 64), "Its first characters.")),
            ("stage", described(bounded(0, 63), "Stage of a progressive delivery.")),
            (
                "clusters",
                described(bounded(0, 32), "Synced destinations and their total, as in `2/3`."),
            ),
            ("conditions", conditions()),
            (
                "destinations",
                json!({
                    "type": "array", "maxItems": STATUS_DESTINATIONS_MAX, "items": destination,
                    "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["cluster", "namespace"],
                    "description": "The destinations, worst first."
                }),
            ),
            (
                "destinationsOmitted",
                json!({
                    "type": "integer", "format": "int64", "minimum": 0,
                    "description": "Number of destinations that are not listed; `attest gitops app get NAME --all` \
                                    shows them."
                }),
            ),
        ],
    )
}

fn conditions() -> Value {
    let condition = object(
        "A condition of the application.",
        &["type", "status", "reason", "message", "lastTransitionTime"],
        [
            ("type", described(bounded(1, 64), "Type of the condition.")),
            (
                "status",
                json!({"type": "string", "enum": ["True", "False", "Unknown"], "description": "Its status."}),
            ),
            ("reason", described(bounded(1, 128), "Its reason, as in docs/reasons.md.")),
            ("message", described(bounded(0, MESSAGE_LENGTH_MAX), "The reason in a sentence.")),
            (
                "lastTransitionTime",
                json!({"type": "string", "format": "date-time", "description": "Time of the last change of its status."}),
            ),
            (
                "observedGeneration",
                json!({"type": "integer", "format": "int64", "description": "Generation that it describes."}),
            ),
        ],
    );
    json!({
        "type": "array", "maxItems": CONDITIONS_MAX, "items": condition,
        "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
        "description": "`Accepted`: the hub uses this version of the resource. `Ready`: every destination runs the signed \
                        commit and is healthy; it summarises `Verified`, `Synced`, `Healthy` and `SourceRead`."
    })
}

/// Number of spellings of a field that must be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    Required,
    Optional,
}

/// Refuses two spellings of one field.
fn one_spelling(schema: &mut Value, name: &str, other: &str, presence: Presence) {
    match presence {
        Presence::Required => rule(
            schema,
            &format!("has(self.{name}) != has(self.{other})"),
            &format!("set {name} once; {other} is another spelling of it"),
        ),
        Presence::Optional => rule(
            schema,
            &format!("!(has(self.{name}) && has(self.{other}))"),
            &format!("{name} and {other} are the same field; set one"),
        ),
    }
}

/// Adds a rule in CEL.
fn rule(schema: &mut Value, rule: &str, message: &str) {
    let Value::Object(fields) = schema else { return };
    let rules = fields.entry("x-kubernetes-validations").or_insert_with(|| json!([]));
    if let Value::Array(rules) = rules {
        rules.push(json!({"rule": rule, "message": message}));
    }
}

fn object<const N: usize>(
    description: &str,
    required: &[&str],
    properties: [(&str, Value); N],
) -> Value {
    let properties: Map<String, Value> =
        properties.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect();
    let mut schema =
        json!({"type": "object", "description": description, "properties": properties});
    if !required.is_empty() {
        merge(&mut schema, json!({"required": required}));
    }
    schema
}

/// An object whose fields the hub decides about.
fn open(description: &str) -> Value {
    json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true, "description": description})
}

fn merge(schema: &mut Value, more: Value) {
    if let (Value::Object(fields), Value::Object(more)) = (schema, more) {
        fields.extend(more);
    }
}

fn bounded(length_min: usize, length_max: usize) -> Value {
    let mut schema = json!({"type": "string", "maxLength": length_max});
    if length_min > 0 {
        merge(&mut schema, json!({"minLength": length_min}));
    }
    schema
}

fn boolean(description: &str) -> Value {
    json!({"type": "boolean", "description": description})
}

fn set(items: &Value, items_max: usize) -> Value {
    let mut schema = list(items, items_max);
    merge(&mut schema, json!({"x-kubernetes-list-type": "set"}));
    schema
}
