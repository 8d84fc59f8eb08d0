//! Our answers beside those of a real SPIRE server, which are on file.

use std::collections::BTreeSet;

use vane_tests::differential::answers::Answers;
use vane_tests::differential::run::Target;
use vane_tests::differential::table::Step;
use vane_tests::differential::{compare, method, table};
use vane_tests::remote::local;
use vane_tests::world::World;

const TABLE: &str = include_str!("../differential/requests.txt");
const ANSWERS: &str = include_str!("../differential/answers.txt");
const DIFFERENCES: &str = include_str!("../differential/differences.txt");

#[tokio::test]
async fn our_answers_are_spires_but_for_the_differences_that_are_listed() {
    let recorded = Answers::parse(ANSWERS);
    assert!(recorded.list.len() >= 300, "{}", recorded.list.len());
    let world = World::start().await;
    let mut target = Target::connect(&world.admin_socket(), local(world.port())).await;
    let ours = target.answer(&table::parse(TABLE), TABLE).await;
    let verdict = compare::compare(&recorded, &ours, &compare::allowed(DIFFERENCES));
    println!("{}: {verdict}", recorded.server);
    assert!(verdict.is_good());
}

/// Of services of which nothing is served, a few stand for all.
#[test]
fn every_call_of_spires_server_is_in_the_table() {
    let sections = table::parse(TABLE);
    let steps = sections.iter().flat_map(|section| &section.steps);
    let asked: BTreeSet<String> = steps
        .filter_map(|step| match step {
            Step::Request(request) => Some(method::Method::find(&request.method).path),
            Step::Caller { .. } => None,
        })
        .collect();
    let left_out = ["/vane.", "LocalAuthority/", "TrustDomain/"];
    for (path, _) in vane_server::caller::METHODS {
        let is_out = left_out.iter().any(|part| path.contains(part));
        assert!(is_out || asked.contains(*path), "{path}");
    }
}
