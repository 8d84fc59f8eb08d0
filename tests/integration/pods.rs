//! An agent on a Kubernetes node, and a process that is in no pod. What is in one needs real
//! cgroups: `vane-faults pods` and tests/kubernetes.

use tonic::Code;
use vane_chassis::kubernetes::double::Double;
use vane_tests::admin::entry;
use vane_tests::world::{Options, World, own_selector, spiffe_id};

#[tokio::test]
async fn a_process_in_no_pod_keeps_its_other_selectors_and_the_kubelet_is_not_asked() {
    let double = Double::start().await;
    // Wherever this runs, it is not below that.
    let tables = format!(
        "[[workload_attestor]]\ntype = \"unix\"\n[[workload_attestor]]\ntype = \"k8s\"\nkubelet_secure_port = {}\nkubelet_cgroup_root = \"/nowhere\"\n",
        double.address().port(),
    );
    let options = Options {
        agent_tables: tables,
        ..Options::default()
    };
    let world = World::with(options).await;
    let agent = world.agent("agent").await;
    let (admin, workload) = (world.admin().await, agent.workload().await);
    let in_pod = entry(&spiffe_id("/pod"), &agent.id, &["k8s:ns:shop"]);
    admin.create(in_pod).await;
    let denied = workload.watch().await.unwrap().next().await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied, "absent, not unknown");

    let own = entry(&spiffe_id("/own"), &agent.id, &[&own_selector()]);
    admin.create(own).await;
    let mut stream = workload.served().await;
    let own = [spiffe_id("/own")];
    stream.until(|ids| ids == own).await.unwrap();
    assert!(double.seen().is_empty());
}
