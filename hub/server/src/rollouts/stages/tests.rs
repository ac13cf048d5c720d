use attest_common::basics::labels::{Selector, parse_pair};

use super::*;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn place(cluster: &str, labels: &str) -> StagedPlace {
    let pairs = labels.split(',').filter(|pair| !pair.is_empty());
    StagedPlace {
        cluster: name(cluster),
        namespace: name("app"),
        stage: None,
        labels: pairs.map(|pair| parse_pair(pair).unwrap()).collect(),
        environment: None,
    }
}

fn stage(written: &str) -> Stage {
    let mut parts = written.split(' ');
    let name = parts.next().unwrap().to_owned();
    let weight = parts.next().unwrap().parse().unwrap();
    Stage {
        name,
        weight,
        soak_ms: 0,
        clusters: BTreeSet::new(),
        selector: parts.next().map(|selector| Selector::parse(selector).unwrap()),
        concurrency: Share::Percent(25),
        failures: Share::Count(0),
        approval: false,
        progress_deadline_ms: None,
    }
}

/// Writes the result as `name@weight:members`, or the reason and the message.
fn resolved(stages: &[&str], places: &[StagedPlace]) -> String {
    let stages: Vec<Stage> = stages.iter().map(|written| stage(written)).collect();
    match resolve(&stages, places) {
        Err(error) => format!("{}: {error}", error.reason()),
        Ok(resolved) => {
            let shown = resolved.iter().map(|stage| {
                let members: Vec<&str> =
                    stage.members.iter().map(|member| places[*member].cluster.as_str()).collect();
                let inherited = if stage.inherited { " inherited" } else { "" };
                format!("{}@{}:{}{inherited}", stage.name, stage.weight, members.join(","))
            });
            shown.collect::<Vec<_>>().join(" ")
        }
    }
}

/// Clusters prod-01 to prod-06; prod-02 and prod-04 belong to stage canary, the rest to production.
fn rings(env: &str) -> Vec<StagedPlace> {
    let ring = |number: u8| {
        let stage = if [2, 4].contains(&number) { "canary" } else { "production" };
        place(&format!("prod-{number:02}"), &format!("{STAGE_LABEL}={stage}{env}"))
    };
    (1..=6).map(ring).collect()
}

fn both() -> Vec<StagedPlace> {
    vec![place("production", ""), place("staging", "")]
}

#[test]
fn the_worked_examples() {
    let stages = ["staging 100", "canary 10", "production 100"];
    // E1: the printed example.
    assert_eq!(
        resolved(&stages, &both()),
        "staging@100:staging canary@10:production inherited production@100:production"
    );
    // E2: a ring of clusters by label.
    let mut places = rings("");
    places.push(StagedPlace { stage: Some("staging".into()), ..place("stg-1", "") });
    assert_eq!(
        resolved(&["staging 100", "canary 100", "production 100"], &places),
        "staging@100:stg-1 canary@100:prod-02,prod-04 production@100:prod-01,prod-03,prod-05,prod-06"
    );
    // E2b: with a weight, the ring never becomes complete.
    let never_full = resolved(&stages, &places);
    assert!(
        never_full.starts_with("DestinationNeverFull: no stage brings prod-02/app, prod-04/app to"),
        "{never_full}"
    );
    // E3: a ring, then a canary on the rest.
    let places = rings(",env=prod");
    let stages =
        ["ring1 100 attest.continuu.ms/stage=canary", "canary 10 env=prod", "rest 100 env=prod"];
    assert_eq!(
        resolved(&stages, &places),
        "ring1@100:prod-02,prod-04 canary@10:prod-01,prod-03,prod-05,prod-06 \
         rest@100:prod-01,prod-03,prod-05,prod-06"
    );
    // E4: a mistyped name.
    let typo = resolved(&["stagging 100", "production 100"], &both());
    assert!(typo.starts_with("StageEmpty: stage `stagging` has no members"), "{typo}");
    assert!(typo.ends_with("destinations belong to: production, staging"), "{typo}");
    // E5: the canary comes after the stage whose members it would inherit.
    let late = resolved(&["staging 100", "production 100", "canary 10"], &both());
    assert!(late.starts_with("StageEmpty: stage `canary`"), "{late}");
    // E6: nothing later to inherit.
    let last = resolved(&["staging 100", "canary 10"], &both());
    assert!(last.starts_with("StageEmpty: stage `canary`"), "{last}");
    // E7: a ladder.
    assert_eq!(
        resolved(&["staging 100", "c10 10", "c25 25", "c50 50", "production 100"], &both()),
        "staging@100:staging c10@10:production inherited c25@25:production inherited \
         c50@50:production inherited production@100:production"
    );
    // E8: a weight that falls.
    let falling = resolved(&["canary 10", "canary2 5", "production 100"], &both()[..1]);
    assert!(falling.starts_with("StageWeightOrder: stage `canary2` has weight 5"), "{falling}");
}

#[test]
fn a_destination_belongs_to_its_own_stage_then_the_label_the_name_and_the_environment() {
    let written = |environment: &str| StagedPlace {
        environment: Some(environment.to_owned()),
        ..place("prod-eu", "")
    };
    assert_eq!(resolved(&["production 100"], &[written("production")]), "production@100:prod-eu");
    let stages = ["prod-eu 100", "production 100"];
    let places =
        [written("production"), StagedPlace { cluster: name("prod-us"), ..written("production") }];
    assert_eq!(resolved(&stages, &places), "prod-eu@100:prod-eu production@100:prod-us");
    let labelled = StagedPlace {
        labels: [(STAGE_LABEL.to_owned(), "first".to_owned())].into(),
        ..written("production")
    };
    assert_eq!(resolved(&["first 100"], std::slice::from_ref(&labelled)), "first@100:prod-eu");
    let own = StagedPlace { stage: Some("own".to_owned()), ..labelled };
    assert_eq!(resolved(&["own 100"], &[own]), "own@100:prod-eu");
}

#[test]
fn stages_that_contradict_themselves_are_refused_by_name() {
    for (stages, reason, field) in [
        (vec!["staging 100", "staging 100"], "StageDuplicate", "stages[1].name"),
        (vec!["staging 0", "production 100"], "StageWeightRange", "stages[0].weight"),
        (vec!["staging 100", "production 50"], "DestinationNeverFull", "stages"),
        (vec!["staging 100"; STAGES_MAX + 1], "StageCount", "stages"),
    ] {
        let stages: Vec<Stage> = stages.iter().map(|written| stage(written)).collect();
        let error = resolve(&stages, &both()).unwrap_err();
        assert_eq!((error.reason().as_str(), error.field().as_str()), (reason, field));
    }
    let unknown = Stage { clusters: [name("moon")].into(), ..stage("staging 100") };
    let error = resolve(&[unknown], &both()).unwrap_err();
    assert_eq!(
        (error.reason().as_str(), error.field().as_str()),
        ("StageClusterUnknown", "stages[0].clusters")
    );
}

#[test]
fn shares_round_down_and_one_member_is_always_in_progress() {
    let stages = [Stage { failures: Share::Percent(10), ..stage("production 100") }];
    let of = |count: u8| {
        let places: Vec<StagedPlace> = (0..count)
            .map(|number| StagedPlace {
                environment: Some("production".into()),
                ..place(&format!("c-{number}"), "")
            })
            .collect();
        let resolved = resolve(&stages, &places).unwrap();
        (resolved[0].concurrent_max, resolved[0].failures_max)
    };
    assert_eq!([of(1), of(3), of(9), of(40)], [(1, 0), (1, 0), (2, 0), (10, 4)]);
}

#[test]
fn members_are_granted_in_the_order_of_their_label_then_by_name() {
    let home = |cluster: &str, order: &str| StagedPlace {
        stage: Some("all".into()),
        ..place(cluster, &format!("{ORDER_LABEL}={order}"))
    };
    let places = [home("b", "1"), home("c", "0"), home("a", "1"), home("d", "not-a-number")];
    assert_eq!(resolved(&["all 100"], &places), "all@100:c,d,a,b");
}

#[test]
fn the_order_of_destinations_does_not_matter() {
    let stages = ["canary 100", "half 50 env=prod", "production 100"];
    let expected = resolved(&stages, &rings(",env=prod"));
    for turn in 0..6 {
        for swap in 1..6 {
            let mut places = rings(",env=prod");
            places.rotate_left(turn);
            places.swap(0, swap);
            assert_eq!(resolved(&stages, &places), expected);
        }
    }
}
