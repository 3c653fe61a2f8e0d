//! The order in which nodes are tried.
//!
//! Nodes that run the platform natively come first. Among these, a runtime always prefers the same node, because its
//! cache has the runtime's layers: the node with the highest hash of node and runtime ("rendezvous hashing", Thaler and
//! Ravishankar 1998). If a node is added or removed, only the runtimes of that node move. A few runtimes cause most
//! builds, so a node that has 25 % more builds than the mean comes last ("consistent hashing with bounded loads",
//! Mirrokni et al. 2018).

use std::cmp::Reverse;

use sha2::{Digest, Sha256};

use crate::engine::builders::Worker;
use crate::names::platform::Platform;

/// Orders the nodes for a runtime. `builds` is how many builds a node has.
pub(super) fn order(
    workers: Vec<Worker>,
    runtime: &str,
    platform: &Platform,
    builds: impl Fn(&Worker) -> usize,
) -> Vec<Worker> {
    let mut ranked: Vec<_> = workers
        .into_iter()
        .map(|worker| (worker.is_native(platform), builds(&worker), worker))
        .collect();
    let any_native = ranked.iter().any(|(native, ..)| *native);
    let group = ranked.iter().filter(|(native, ..)| *native == any_native);
    let (count, total) = group.fold((0, 0), |(count, total), (_, builds, _)| {
        (count + 1, total + builds)
    });
    // ceil(1.25 * (total + 1) / count): the mean with this build included, plus 25 %.
    let bound = ((total + 1) * 5).div_ceil(4 * count.max(1));
    ranked.sort_by_cached_key(|(native, builds, worker)| {
        (
            !native,
            *builds >= bound,
            Reverse(weight(&worker.node.to_string(), runtime)),
        )
    });
    ranked.into_iter().map(|(.., worker)| worker).collect()
}

/// [`order`] for nodes of one platform, each given by its host name and the number of builds it has. The result has
/// their positions.
#[cfg(feature = "internals")]
pub(crate) fn order_by_address(nodes: &[(String, usize)], runtime: &str) -> Vec<usize> {
    use crate::engine::builders::Node;
    use crate::engine::connect::address::Address;

    let platform = Platform::default();
    let worker = |(host, _): &(String, usize)| Worker {
        node: Node::At(Address::Tcp {
            host: host.clone(),
            port: 1234,
            path: String::new(),
            tls: None,
        }),
        version: String::new(),
        cache_limit: None,
        platforms: vec![platform.clone()],
    };
    let position = |worker: &Worker| match &worker.node {
        Node::At(Address::Tcp { host, .. }) => nodes.iter().position(|(known, _)| known == host),
        _ => None,
    };
    let builds = |worker: &Worker| position(worker).map_or(0, |position| nodes[position].1);
    let workers = nodes.iter().map(worker).collect();
    let ordered = order(workers, runtime, &platform, builds);
    ordered.iter().filter_map(position).collect()
}

/// How much a runtime prefers a node.
fn weight(node: &str, runtime: &str) -> [u8; 32] {
    Sha256::digest(format!("{node}\n{runtime}")).into()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::engine::builders::Node;
    use crate::engine::connect::address::Address;

    fn worker(number: usize, platforms: &[&str]) -> Worker {
        Worker {
            node: Node::At(Address::Unix(format!("/{number}").into())),
            version: String::new(),
            platforms: platforms
                .iter()
                .map(|p| Platform::parse(p).unwrap())
                .collect(),
            cache_limit: None,
        }
    }

    fn amd64() -> Platform {
        Platform::parse("linux/amd64").unwrap()
    }

    fn first(workers: &[Worker], runtime: &str, builds: &HashMap<String, usize>) -> String {
        let builds = |worker: &Worker| builds.get(&worker.node.to_string()).copied().unwrap_or(0);
        order(workers.to_vec(), runtime, &amd64(), builds)[0]
            .node
            .to_string()
    }

    #[test]
    fn a_node_that_runs_the_platform_itself_comes_first() {
        let workers = [
            worker(0, &["linux/arm64", "linux/amd64"]),
            worker(1, &["linux/amd64", "linux/arm64"]),
        ];
        for runtime in 0..20 {
            assert_eq!(
                first(&workers, &runtime.to_string(), &HashMap::new()),
                "unix:///1"
            );
        }
    }

    #[test]
    fn a_runtime_keeps_its_node_and_only_those_of_a_lost_node_move() {
        let nodes: Vec<Worker> = (0..4)
            .map(|number| worker(number, &["linux/amd64"]))
            .collect();
        let idle = HashMap::new();
        let mut per_node = HashMap::<String, usize>::new();
        for runtime in 0..400 {
            let runtime = format!("runtime-{runtime}");
            let node = first(&nodes, &runtime, &idle);
            assert_eq!(first(&nodes, &runtime, &idle), node);
            if node != "unix:///3" {
                assert_eq!(first(&nodes[..3], &runtime, &idle), node);
            }
            *per_node.entry(node).or_default() += 1;
        }
        assert!(
            per_node.len() == 4 && per_node.values().all(|count| (60..140).contains(count)),
            "{per_node:?}"
        );
    }

    #[test]
    fn a_busy_node_comes_last() {
        let nodes: Vec<Worker> = (0..2)
            .map(|number| worker(number, &["linux/amd64"]))
            .collect();
        let mut builds = HashMap::new();
        let preferred = first(&nodes, "hermes", &builds);
        // All builds are of one runtime.
        for _ in 0..10 {
            let node = first(&nodes, "hermes", &builds);
            *builds.entry(node).or_default() += 1;
        }
        assert!(
            builds[&preferred] >= 5 && builds[&preferred] <= 7,
            "{builds:?}"
        );
    }
}
