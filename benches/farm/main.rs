//! Prints the simulated tables of docs/farm.md.

mod random;
#[allow(dead_code, reason = "the tests look at more")]
mod simulation;
mod station;

use mol::names::runtimes::Runtimes;

use simulation::{Farm, Outcome, Template, Work, run};

const HOUR: f64 = 3600.0;

/// A farm can serve a number of users if the 95th percentile of their waits is at most this many times the wait of a
/// single user on an empty node.
const BOUND: f64 = 1.5;

/// How many farms are simulated for a figure, at least. The names of the nodes differ between them, and decide
/// which runtimes share a node.
const FARMS: u64 = 4;

fn main() {
    println!("| users | nodes | median wait | 95 % wait at most | processors | network |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for users in [10, 100, 1000, 10_000] {
        for nodes in [1, 2, 4, 8] {
            let figures = figures(&farm(users, nodes));
            println!(
                "| {users} | {nodes} | {} | {} | {:.0} % | {:.0} % |",
                duration(figures.median),
                duration(figures.percentile_95),
                figures.processor * 100.0,
                figures.network * 100.0
            );
        }
    }
    println!();
    println!("| nodes | users, at 1 Gbit/s for each node | at 10 Gbit/s |");
    println!("| --- | --- | --- |");
    for nodes in [1, 2, 4, 8] {
        println!(
            "| {nodes} | {} | {} |",
            carried(nodes, 1),
            carried(nodes, 10)
        );
    }
}

/// The measured times of docs/farm.md, and what it assumes.
fn farm(users: usize, nodes: usize) -> Farm {
    let work = |seconds, processor| Work {
        processor,
        fixed: seconds - processor,
    };
    Farm {
        nodes,
        cores: 8.0,
        node_network: gigabits(10.0),
        users,
        users_per_machine: 1,
        machine_network: gigabits(1.0),
        runtimes: Runtimes::default()
            .iter()
            .map(|runtime| runtime.as_str().to_owned())
            .collect(),
        pause: HOUR / 2.0,
        commit_interval: 2.0 * HOUR,
        new_dependencies: 0.2,
        template: Template {
            cold: work(48.2, 46.4),
            changed: work(3.7, 2.0),
            cached: work(2.4, 2.4),
            image: 209.0,
            load_changed: 0.7,
            load_fresh: 11.8,
        },
        warm_up: 2.0 * HOUR,
        duration: 8.0 * HOUR,
        seed: 0,
    }
}

/// `count` gigabits per second, in MB per second.
fn gigabits(count: f64) -> f64 {
    count * 125.0
}

struct Figures {
    median: f64,
    percentile_95: f64,
    /// Of the busiest node, from 0 to 1.
    processor: f64,
    network: f64,
}

fn figures(farm: &Farm) -> Figures {
    let (mut waits, mut processor, mut network) = (Vec::new(), 0.0, 0.0);
    // A small farm has few waits.
    let farms = FARMS.max(1000 / farm.users as u64);
    let busiest = |nodes: &[f64]| nodes.iter().copied().fold(0.0, f64::max) / farms as f64;
    for outcome in outcomes(farm, farms) {
        waits.extend(outcome.waits);
        processor += busiest(&outcome.processor);
        network += busiest(&outcome.network);
    }
    waits.sort_unstable_by(f64::total_cmp);
    Figures {
        median: waits[waits.len() / 2],
        percentile_95: waits[waits.len() * 95 / 100],
        processor,
        network,
    }
}

/// Simulates `farms` farms that differ only in the seed, on two threads.
fn outcomes(farm: &Farm, farms: u64) -> Vec<Outcome> {
    let run = |seed| {
        run(&Farm {
            seed,
            ..farm.clone()
        })
    };
    let every_other = |first: u64| (first..farms).step_by(2).map(run).collect::<Vec<_>>();
    std::thread::scope(|scope| {
        let other = scope.spawn(|| every_other(1));
        let mut outcomes = every_other(0);
        outcomes.extend(other.join().expect("a simulation panicked"));
        outcomes
    })
}

/// The largest number of users that `nodes` nodes with `network` Gbit/s each can serve.
fn carried(nodes: usize, network: usize) -> usize {
    let choices =
        [1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50].map(|step| step * 100 * network);
    let carries = |users: &usize| {
        let mut farm = farm(*users, nodes);
        farm.node_network = gigabits(network as f64);
        let alone = farm.template.cold.alone() + farm.template.load_fresh;
        figures(&farm).percentile_95 <= BOUND * alone
    };
    let above = choices.partition_point(carries);
    assert!(
        above > 0 && above < choices.len(),
        "the limit is outside the choices"
    );
    choices[above - 1]
}

fn duration(seconds: f64) -> String {
    match seconds {
        ..10.0 => format!("{seconds:.1} s"),
        ..120.0 => format!("{seconds:.0} s"),
        ..7200.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.0} h", seconds / 3600.0),
    }
}
