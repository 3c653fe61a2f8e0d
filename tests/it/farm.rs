//! The simulation behind docs/farm.md: every request is answered once, totals add up, and the results
//! agree with queueing theory.

#[path = "../../benches/farm/random.rs"]
mod random;
#[path = "../../benches/farm/simulation.rs"]
mod simulation;
#[path = "../../benches/farm/station.rs"]
mod station;

use random::Random;
use simulation::{Farm, Outcome, Template, Work, run};
use station::Station;

const HOUR: f64 = 3600.0;

/// A node and a user, without a warm-up. Alone, a build takes 60, 10 or 1 seconds, and loading an image 30 or 5.
fn farm() -> Farm {
    let work = |processor, fixed| Work { processor, fixed };
    Farm {
        nodes: 1,
        cores: 4.0,
        node_network: 400.0,
        users: 1,
        users_per_machine: 1,
        machine_network: 100.0,
        runtimes: vec!["hermes".to_owned()],
        pause: 0.5 * HOUR,
        commit_interval: 2.0 * HOUR,
        new_dependencies: 0.2,
        template: Template {
            cold: work(40.0, 20.0),
            changed: work(7.0, 3.0),
            cached: work(0.5, 0.5),
            image: 300.0,
            load_changed: 5.0,
            load_fresh: 30.0,
        },
        warm_up: 0.0,
        duration: 8.0 * HOUR,
        seed: 1,
    }
}

fn nine_runtimes() -> Vec<String> {
    (1..=9).map(|number| format!("runtime-{number}")).collect()
}

/// No build takes any time, and each request is for a new commit: only the network matters. One transfer can use the
/// whole network, and then takes a minute.
fn only_the_network() -> Farm {
    let mut farm = farm();
    let nothing = Work {
        processor: 0.0,
        fixed: 0.0,
    };
    farm.template.cold = nothing;
    farm.template.changed = nothing;
    farm.template.cached = nothing;
    farm.template.load_changed = 0.0;
    farm.template.load_fresh = 0.0;
    farm.machine_network = farm.node_network;
    farm.template.image = 60.0 * farm.node_network;
    farm.commit_interval = 30.0;
    farm
}

#[track_caller]
fn assert_near(actual: f64, expected: f64, share: f64) {
    assert!(
        (actual - expected).abs() <= expected.abs() * share,
        "{actual} instead of {expected}"
    );
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[test]
fn each_request_is_answered_once() {
    for users_per_machine in [1, 7] {
        let outcome = run(&Farm {
            nodes: 3,
            users: 300,
            users_per_machine,
            runtimes: nine_runtimes(),
            // More than the network can send, so users still wait at the end.
            node_network: 20.0,
            ..farm()
        });
        assert!(outcome.answers.iter().all(|answers| *answers == 1));
        assert_eq!(
            outcome.waits.len() + outcome.hits,
            outcome.answers.len(),
            "{outcome:?}"
        );
        assert!(outcome.hits > 0 && outcome.builds > 9, "{outcome:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_waits() {
    let farm = Farm {
        nodes: 2,
        users: 50,
        runtimes: nine_runtimes(),
        ..farm()
    };
    assert_eq!(run(&farm).waits, run(&farm).waits);
    let other = Farm {
        seed: 2,
        ..farm.clone()
    };
    assert_ne!(run(&farm).waits, run(&other).waits);
}

#[test]
fn one_user_waits_as_long_as_a_lone_build_takes() {
    let one = Farm {
        new_dependencies: 0.0,
        ..farm()
    };
    assert_near(one.template.cold.alone(), 60.0, 1e-9);
    let waits = run(&one).waits;
    assert!(waits.len() > 2, "{waits:?}");
    assert_near(waits[0], 60.0 + 30.0, 1e-9);
    for wait in &waits[1..] {
        assert_near(*wait, 10.0 + 5.0, 1e-9);
    }
    let outcome = run(&Farm {
        new_dependencies: 1.0,
        ..farm()
    });
    assert_eq!(outcome.builds, outcome.waits.len());
    for wait in outcome.waits {
        assert_near(wait, 60.0 + 30.0, 1e-9);
    }
}

#[test]
fn a_later_machine_gets_the_result_without_a_build() {
    let outcome = run(&Farm {
        users: 2,
        commit_interval: 1e9,
        ..farm()
    });
    assert_eq!(outcome.builds, 1);
    assert_eq!(outcome.waits.len(), 2, "{outcome:?}");
    assert_near(outcome.waits[0], 60.0 + 30.0, 1e-9);
    assert_near(outcome.waits[1], 1.0 + 30.0, 1e-9);
}

#[test]
fn concurrent_machines_share_one_build_and_the_network() {
    let mut farm = Farm {
        users: 40,
        commit_interval: 1e9,
        // All ask while the first build runs.
        pause: 1.0,
        ..farm()
    };
    farm.template.cold.fixed = 600.0;
    let outcome = run(&farm);
    assert_eq!(outcome.builds, 1);
    assert_eq!(outcome.waits.len(), 40);
    // The first sends its image while the others prepare theirs: 20 core-seconds on 4 cores, and half a second. 40 images
    // of 300 MB take 30 seconds; loading one takes 27 more, because it takes 30 and begins with the 3 of its transfer.
    let longest = outcome.waits.iter().copied().fold(0.0, f64::max);
    let expected = 640.0 + 5.0 + 0.5 + 30.0 + 27.0;
    assert!(
        longest <= expected && longest > expected - 10.0,
        "{longest} instead of {expected}"
    );
}

#[test]
fn users_of_one_machine_wait_for_the_same_image() {
    let outcome = run(&Farm {
        users: 40,
        users_per_machine: 40,
        commit_interval: 1e9,
        pause: 1.0,
        ..farm()
    });
    assert_eq!(outcome.builds, 1);
    assert_eq!(outcome.waits.len(), 40, "{outcome:?}");
    assert!(outcome.hits > 0);
    assert_near(outcome.sent[0], 300.0, 1e-9);
}

#[test]
fn a_runtime_uses_a_second_node_only_if_the_machine_builds_on_the_first() {
    let used = |outcome: &Outcome| outcome.sent.iter().filter(|sent| **sent > 0.0).count();
    let laptops = Farm {
        nodes: 4,
        users: 200,
        ..farm()
    };
    assert_eq!(used(&run(&laptops)), 1);
    // One server asks for new commits faster than they are built, and knows about its own builds.
    let server = Farm {
        users_per_machine: 200,
        commit_interval: 20.0,
        ..laptops
    };
    assert!(used(&run(&server)) > 1);
}

#[test]
fn jobs_slow_each_other_down_only_when_a_station_is_full() {
    for (jobs, end) in [(1, 10.0), (4, 10.0), (8, 20.0)] {
        let mut station = Station::new(4.0, 1.0);
        for call in 0..jobs {
            station.start(0.0, 10.0, call);
        }
        let at = station.next().unwrap();
        assert_near(at, end, 1e-9);
        assert_eq!(station.completed(at).len(), jobs);
        assert_near(station.done(at), 10.0 * jobs as f64, 1e-9);
        assert_eq!(station.next(), None);
    }
}

/// The mean time in a queue with random arrivals and equal jobs that share one server is that of a job alone, divided by
/// the share of the time in which the server is idle (Kleinrock 1967).
#[test]
fn a_station_agrees_with_the_theory_of_processor_sharing() {
    const JOBS: usize = 100_000;
    for load in [0.3, 0.5, 0.7] {
        let mut random = Random::new(1, 0, 0);
        let mut station = Station::new(1.0, 1.0);
        let (mut arrivals, mut times) = (Vec::new(), Vec::new());
        let mut arrival = 0.0;
        while times.len() < JOBS {
            match station.next().filter(|end| *end <= arrival) {
                Some(end) => {
                    let ended = station.completed(end);
                    times.extend(ended.iter().map(|job| end - arrivals[*job]));
                }
                None => {
                    station.start(arrival, 1.0, arrivals.len());
                    arrivals.push(arrival);
                    arrival += random.exponential(1.0 / load);
                }
            }
        }
        assert_near(mean(&times), 1.0 / (1.0 - load), 0.03);
    }
}

/// The wait for a shared network, if a fixed number of users ask again after a random pause (mean value analysis, Reiser
/// and Lavenberg 1980).
#[test]
fn users_who_share_a_network_wait_as_long_as_the_theory_says() {
    // Together they ask for half, for all, and for twice what the network can do.
    for users in [15, 30, 60] {
        let farm = Farm {
            users,
            warm_up: 10.0 * HOUR,
            duration: 500.0 * HOUR,
            ..only_the_network()
        };
        let outcome = run(&farm);
        let alone = farm.template.image / farm.node_network;
        let (mut wait, mut waiting) = (0.0, 0.0);
        for users in 1..=users {
            wait = alone * (1.0 + waiting);
            waiting = users as f64 * wait / (farm.pause + wait);
        }
        assert_near(mean(&outcome.waits), wait, 0.03);
        let rate = users as f64 / (farm.pause + wait);
        assert_near(outcome.network[0], rate * alone, 0.02);
    }
}

#[test]
fn totals_match_the_sum_over_requests() {
    let farm = Farm {
        users: 500,
        node_network: 100.0,
        warm_up: 2.0 * HOUR,
        duration: 20.0 * HOUR,
        runtimes: nine_runtimes(),
        nodes: 2,
        ..farm()
    };
    let outcome = run(&farm);
    // Little's law; a few requests are counted on one side only, at the start and at the end.
    let waited: f64 = outcome.waits.iter().sum();
    assert_near(outcome.waited, waited, 0.01);
    let sent: f64 = outcome.sent.iter().sum();
    let images = farm.template.image * outcome.waits.len() as f64;
    assert_near(sent, images, 0.01);
    for (busy, sent) in outcome.network.iter().zip(&outcome.sent) {
        let most = farm.node_network * (farm.duration - farm.warm_up);
        assert_near(*busy, sent / most, 1e-9);
    }
}

#[test]
fn more_nodes_do_not_increase_the_mean_wait() {
    let mut before = f64::INFINITY;
    for nodes in [1, 2, 4, 8] {
        // Which runtimes share a node is chance, so the mean is over six sets of node names.
        let waits = (0..6).flat_map(|seed| {
            let farm = Farm {
                nodes,
                users: 400,
                node_network: 100.0,
                runtimes: nine_runtimes(),
                seed,
                ..farm()
            };
            run(&farm).waits
        });
        let wait = mean(&waits.collect::<Vec<_>>());
        assert!(
            wait <= before * 1.01,
            "{nodes} nodes: {wait} after {before}"
        );
        before = wait;
    }
}
