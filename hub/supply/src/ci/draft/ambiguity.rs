//! Checks that every cluster has at most one render, with the rule of the receiving end.

use std::collections::BTreeSet;

use attest_common::basics::ids::{Name, Timestamp};
use attest_common::documents::release::{Release, ReleaseSource, Render, Renderer, Target};
use attest_common::verify::{VerifyError, fitting_render};

use super::{namespace_rule, parse_name};
use crate::ci::CiError;
use crate::recipe::{Recipe, RecipeRender};

/// Stands for the clusters that the recipe does not name.
const OTHER_CLUSTER: &str = "any-other-cluster";

/// Rejects a recipe with several renders for one cluster, unless they are fixed to different namespaces.
///
/// # Errors
/// [`CiError::Ambiguous`] names the renders.
pub fn refuse_ambiguity(recipe: &Recipe) -> Result<(), CiError> {
    let release = release_with_targets(recipe)?;
    let environments: BTreeSet<&String> =
        recipe.renders.iter().flat_map(|render| &render.environments).collect();
    let clusters = cluster_names(recipe)?;
    for environment in environments {
        let environment = parse_name("environments", environment)?;
        for cluster in &clusters {
            let found = fitting_render(&release, &environment, cluster, &environment);
            if let Err(error @ VerifyError::RenderAmbiguous { .. }) = found {
                return Err(CiError::Ambiguous(error));
            }
        }
    }
    Ok(())
}

fn cluster_names(recipe: &Recipe) -> Result<Vec<Name>, CiError> {
    let mut clusters: BTreeSet<&str> = BTreeSet::from([OTHER_CLUSTER]);
    for render in &recipe.renders {
        clusters.extend(render.clusters.iter().flatten().map(String::as_str));
    }
    clusters.into_iter().map(|cluster| parse_name("clusters", cluster)).collect()
}

/// Returns a release that has only the parts which the rule reads.
fn release_with_targets(recipe: &Recipe) -> Result<Release, CiError> {
    let renders: Result<Vec<Render>, CiError> =
        recipe.renders.iter().map(render_with_target).collect();
    Ok(Release {
        application: parse_name("application", &recipe.application)?,
        version: String::new(),
        counter: 0,
        not_after: Timestamp::UNIX_EPOCH,
        source: ReleaseSource {
            repo: String::new(),
            git_commit: String::new(),
            source_root: String::new(),
            git_tree: String::new(),
        },
        renderer: Renderer { name: String::new(), version: String::new() },
        evidence: Vec::new(),
        renders: renders?,
    })
}

fn render_with_target(render: &RecipeRender) -> Result<Render, CiError> {
    Ok(Render {
        name: render.name.clone(),
        subject: String::new(),
        media_type: String::new(),
        size: 0,
        objects: 0,
        target: Target {
            environments: render.environments.clone(),
            clusters: render.clusters.clone(),
        },
        namespace: namespace_rule(render)?,
        images: Vec::new(),
        mutations: Vec::new(),
    })
}
