//! The node's pods from the API server: a list, and the recorded events of a watch.

use super::*;

const LIST: &str = "/api/v1/pods";

fn events() -> Vec<Value> {
    let lines = recorded("apiserver/pod_watch.jsonl");
    lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Lists `list`, and watches from there on.
fn serve(double: &Double, list: Value) {
    let answer = move |seen: &vane_chassis::kubernetes::double::Seen| match seen
        .query
        .contains("watch=true")
    {
        true => Answer::Watch(Vec::new()),
        false => Answer::Json(200, list.clone()),
    };
    double.answer(&Method::GET, LIST, Answer::by(answer));
}

async fn world() -> World {
    World::with(|config| {
        config.pod_source = PodSource::ApiServer;
        config.node_name = Some("vane-node".to_owned());
    })
    .await
}

async fn watching(world: &World, times: usize) {
    let watches = |seen: &Vec<vane_chassis::kubernetes::double::Seen>| {
        seen.iter()
            .filter(|one| one.query.contains("watch=true"))
            .count()
            >= times
    };
    soon(world.double.until(watches)).await;
}

fn list_of(mut list: Value, uids: &[&str]) -> Value {
    let items = list["items"].as_array_mut().unwrap();
    items.retain(|pod| uids.iter().any(|uid| pod["metadata"]["uid"] == *uid));
    list["metadata"] = json!({"resourceVersion": "832"});
    list
}

#[tokio::test]
async fn only_the_pods_of_this_node_are_asked_for() {
    let world = world().await;
    serve(
        &world.double,
        list_of(body("kubelet/pods.json"), &[WEB.0, DB.0]),
    );
    watching(&world, 1).await;
    let web = world.known(WEB).await;
    assert!(values(&web).contains(&"container-name:app"));
    for call in world.double.seen() {
        assert!(
            call.query
                .contains("fieldSelector=spec.nodeName%3Dvane-node"),
            "{}",
            call.query
        );
    }
}

#[tokio::test]
async fn a_changed_label_and_a_deleted_pod_wake_who_follows_at_once() {
    let world = world().await;
    let list = list_of(body("kubelet/pods.json"), &[WEB.0]);
    serve(&world.double, list.clone());
    watching(&world, 1).await;
    world.known(WEB).await;
    let mut follow = world.follow(WEB);

    let mut pod = list["items"][0].clone();
    pod["metadata"]["resourceVersion"] = json!("900");
    pod["metadata"]["annotations"] = json!({"note": "no selector comes from this"});
    world
        .double
        .tell(json!({"type": "MODIFIED", "object": pod}));
    pod["metadata"]["labels"]["app"] = json!("other");
    world
        .double
        .tell(json!({"type": "MODIFIED", "object": pod}));
    soon(follow.changed()).await.unwrap();
    let web = world.attest(WEB).await.unwrap();
    assert!(values(&web).contains(&"pod-label:app:other"), "{web:?}");
    assert_eq!(
        *follow.borrow_and_update(),
        1,
        "one of the two changed what is said"
    );

    world.double.tell(json!({"type": "DELETED", "object": pod}));
    soon(follow.changed()).await.unwrap();
    let error = world.attest(WEB).await.unwrap_err();
    assert!(
        cause(&error).ends_with("is not among the pods of this node any more"),
        "{}",
        cause(&error)
    );
}

/// A pod that comes while a process of it already waits.
#[tokio::test]
async fn the_recorded_life_of_a_pod_is_followed() {
    let world = world().await;
    serve(&world.double, list_of(body("kubelet/pods.json"), &[]));
    watching(&world, 1).await;
    let events = events();
    let uid = events[0]["object"]["metadata"]["uid"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut ids = events.iter().filter_map(|event| {
        let status = &event["object"]["status"]["containerStatuses"][0];
        status["containerID"]
            .as_str()?
            .strip_prefix("containerd://")
            .map(str::to_owned)
    });
    let id = ids.next_back().unwrap();
    let at = (uid.as_str(), id.as_str());
    let mut follow = world.follow(at);
    let end = events.iter().position(|event| event["type"] == "DELETED");
    let (life, end) = events.split_at(end.unwrap());
    let (first, rest) = life.split_first().unwrap();
    let come = async { world.double.tell(first.clone()) };
    let (early, ()) = tokio::join!(world.known(at), come);
    assert!(values(&early).contains(&"pod-name:fleeting"), "{early:?}");
    assert_eq!(early.soon, Soon::Unknown);

    for event in rest {
        world.double.tell(event.clone());
    }
    let named = "container-name:fleeting";
    while !values(&world.attest(at).await.unwrap()).contains(&named) {
        soon(follow.changed()).await.unwrap();
    }
    for event in end {
        world.double.tell(event.clone());
    }
    while world.attest(at).await.is_ok() {
        soon(follow.changed()).await.unwrap();
    }
    assert_eq!(world.k8s.trouble(), None);
}

#[tokio::test]
async fn a_watch_goes_on_where_it_ended_and_lists_anew_when_that_is_gone() {
    let world = world().await;
    let list = list_of(body("kubelet/pods.json"), &[WEB.0]);
    serve(&world.double, list.clone());
    watching(&world, 1).await;
    world.known(WEB).await;
    let mut follow = world.follow(WEB);
    let mut pod = list["items"][0].clone();
    pod["metadata"]["resourceVersion"] = json!("840");
    pod["metadata"]["labels"]["app"] = json!("other");
    world
        .double
        .tell(json!({"type": "MODIFIED", "object": pod}));
    soon(follow.changed()).await.unwrap();
    world.double.hang_up();
    watching(&world, 2).await;
    let last = world.double.seen().pop().unwrap();
    assert!(last.query.contains("resourceVersion=840"), "{}", last.query);

    let mut follow = world.follow(DB);
    serve(
        &world.double,
        list_of(body("kubelet/pods.json"), &[WEB.0, DB.0]),
    );
    let gone: Value = serde_json::from_str(&recorded("apiserver/pod_watch_gone.json")).unwrap();
    world.double.tell(gone["lines"][0].clone());
    soon(follow.changed()).await.unwrap();
    world.attest(DB).await.unwrap();
    assert_eq!(world.k8s.trouble(), None);
}

#[tokio::test]
async fn while_the_api_server_is_away_the_known_keep_their_answer() {
    let world = world().await;
    let error = world.unknown(WEB).await;
    assert!(cause(&error).contains("404"), "{}", cause(&error));
    serve(&world.double, list_of(body("kubelet/pods.json"), &[WEB.0]));
    watching(&world, 1).await;
    world.known(WEB).await;

    world.double.answer(&Method::GET, LIST, Answer::Close);
    world.double.hang_up();
    soon(async {
        while world.k8s.trouble().is_none() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    world.attest(WEB).await.unwrap();
    world.unknown(DB).await;
    assert!(world.folder.path().exists());
}
