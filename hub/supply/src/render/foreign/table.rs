//! The annotations and labels by which authors instruct other tools, as rows.

/// One row: the name, the value that it is about (empty for all), and the effect elsewhere and here.
pub(super) type Row = (&'static str, &'static str, &'static str);

/// The first row that fits decides. A name that ends in `*` is a prefix. A value is compared with each item of a
/// list that is separated by commas, without regard to case.
pub(super) const ROWS: &[Row] = &[
    // Argo CD.
    (
        "argocd.argoproj.io/sync-wave",
        "",
        "Argo CD would apply the object in this wave; use `attest.continuu.ms/wave`",
    ),
    ("argocd.argoproj.io/hook", "Skip", "Argo CD would not apply the object; here it is applied"),
    (
        "argocd.argoproj.io/hook",
        "",
        "Argo CD would run the object as a hook; here it is applied with the others and kept: order it by \
         `attest.continuu.ms/wave`",
    ),
    (
        "argocd.argoproj.io/hook-delete-policy",
        "",
        "Argo CD would delete the hook by this policy; here the object is kept while it is in Git, and a finished Job \
         whose template changes is made again",
    ),
    (
        "argocd.argoproj.io/sync-options",
        "Prune=false",
        "Argo CD would not delete the object when it leaves Git; use `attest.continuu.ms/orphan: \"true\"`",
    ),
    (
        "argocd.argoproj.io/sync-options",
        "Prune=confirm",
        "Argo CD would ask before deleting the object; to keep it, use `attest.continuu.ms/orphan: \"true\"`",
    ),
    (
        "argocd.argoproj.io/sync-options",
        "Delete=false",
        "Argo CD would keep the object when the application is deleted; use `attest.continuu.ms/orphan: \"true\"`",
    ),
    (
        "argocd.argoproj.io/sync-options",
        "Delete=confirm",
        "Argo CD would ask before deleting the object; to keep it, use `attest.continuu.ms/orphan: \"true\"`",
    ),
    (
        "argocd.argoproj.io/sync-options",
        "Replace=true",
        "Argo CD would replace the object instead of applying it; use `attest.continuu.ms/replace: \"true\"`",
    ),
    (
        "argocd.argoproj.io/sync-options",
        "Force=true",
        "Argo CD would delete the object and make it again; use `attest.continuu.ms/replace: \"true\"`",
    ),
    (
        "argocd.argoproj.io/sync-options",
        "ServerSideApply=true",
        "every object is applied server-side here; remove it",
    ),
    (
        "argocd.argoproj.io/sync-options",
        "Validate=false",
        "Argo CD would not validate the object; here the API server always does",
    ),
    (
        "argocd.argoproj.io/sync-options",
        "SkipDryRunOnMissingResource=true",
        "Argo CD would skip the dry run while the kind is missing; here objects wait for a definition of the same \
         rendering",
    ),
    (
        "argocd.argoproj.io/sync-options",
        "PruneLast=true",
        "objects that leave Git are always deleted last here; remove it",
    ),
    ("argocd.argoproj.io/sync-options", "", "only Argo CD has this option"),
    (
        "argocd.argoproj.io/compare-options",
        "",
        "Argo CD would compare the object differently; here the fields that are in Git are compared",
    ),
    (
        "argocd.argoproj.io/ignore-healthcheck",
        "",
        "Argo CD would not count the health of the object; here it counts",
    ),
    ("argocd.argoproj.io/*", "", "only Argo CD reads it"),
    // Flux.
    (
        "kustomize.toolkit.fluxcd.io/prune",
        "disabled",
        "Flux would not delete the object when it leaves Git; use `attest.continuu.ms/orphan: \"true\"`",
    ),
    (
        "kustomize.toolkit.fluxcd.io/force",
        "enabled",
        "Flux would delete the object and make it again where it cannot be changed; use \
         `attest.continuu.ms/replace: \"true\"`",
    ),
    (
        "kustomize.toolkit.fluxcd.io/reconcile",
        "disabled",
        "Flux would neither apply nor delete the object; here it is applied",
    ),
    (
        "kustomize.toolkit.fluxcd.io/ssa",
        "Ignore",
        "Flux would not apply the object; here it is applied",
    ),
    (
        "kustomize.toolkit.fluxcd.io/ssa",
        "IfNotPresent",
        "Flux would apply the object only while it does not exist; here it is kept as it is in Git",
    ),
    (
        "kustomize.toolkit.fluxcd.io/ssa",
        "Merge",
        "Flux would keep fields that others added; this is what happens here to fields that are not in Git",
    ),
    (
        "kustomize.toolkit.fluxcd.io/substitute",
        "disabled",
        "variables are not substituted here; remove it",
    ),
    ("kustomize.toolkit.fluxcd.io/*", "", "only Flux reads it"),
    (
        "helm.toolkit.fluxcd.io/driftDetection",
        "disabled",
        "Flux would not correct drift of the object; here drift is corrected when `selfHeal` is on",
    ),
    ("helm.toolkit.fluxcd.io/*", "", "only Flux reads it"),
    // Helm.
    (
        "helm.sh/hook",
        "test",
        "Helm would run the object by `helm test` only; here it is applied with the others and kept",
    ),
    (
        "helm.sh/hook",
        "crd-install",
        "Helm would apply the object before the others; here definitions always are",
    ),
    (
        "helm.sh/hook",
        "",
        "Helm would run the object as a hook; here it is applied with the others and kept: order it by \
         `attest.continuu.ms/wave`",
    ),
    ("helm.sh/hook-weight", "", "Helm would order hooks by it; use `attest.continuu.ms/wave`"),
    (
        "helm.sh/hook-delete-policy",
        "",
        "Helm would delete the hook by this policy; here the object is kept while it is in Git, and a finished Job \
         whose template changes is made again",
    ),
    ("helm.sh/hook*", "", "only Helm reads it"),
    (
        "helm.sh/resource-policy",
        "keep",
        "Helm would not delete the object; use `attest.continuu.ms/orphan: \"true\"`",
    ),
    // Kustomize, kpt and cli-utils.
    (
        "config.kubernetes.io/depends-on",
        "",
        "kpt would apply the object after those that it names; use `attest.continuu.ms/wave`",
    ),
    (
        "config.kubernetes.io/local-config",
        "true",
        "kustomize and kpt would not apply the object; here it is applied",
    ),
    (
        "client.lifecycle.config.k8s.io/deletion",
        "detach",
        "kpt would not delete the object when it leaves Git; use `attest.continuu.ms/orphan: \"true\"`",
    ),
    (
        "cli-utils.sigs.k8s.io/on-remove",
        "keep",
        "kpt would not delete the object when it leaves Git; use `attest.continuu.ms/orphan: \"true\"`",
    ),
    // Rancher Fleet.
    ("fleet.cattle.io/*", "", "only Rancher Fleet reads it"),
    // kapp.
    (
        "kapp.k14s.io/change-group*",
        "",
        "kapp would order objects by groups; use `attest.continuu.ms/wave`",
    ),
    (
        "kapp.k14s.io/change-rule*",
        "",
        "kapp would order objects by rules; use `attest.continuu.ms/wave`",
    ),
    (
        "kapp.k14s.io/delete-strategy",
        "orphan",
        "kapp would not delete the object; use `attest.continuu.ms/orphan: \"true\"`",
    ),
    (
        "kapp.k14s.io/update-strategy",
        "fallback-on-replace",
        "kapp would replace the object where it cannot be changed; use `attest.continuu.ms/replace: \"true\"`",
    ),
    (
        "kapp.k14s.io/update-strategy",
        "always-replace",
        "kapp would replace the object at each change; use `attest.continuu.ms/replace: \"true\"`",
    ),
    (
        "kapp.k14s.io/update-strategy",
        "skip",
        "kapp would leave the existing object as it is; here it is kept as it is in Git",
    ),
    ("kapp.k14s.io/*", "", "only kapp reads it"),
];
