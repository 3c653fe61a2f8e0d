//! A discrete-event simulation of builders that many users share. docs/farm.md has its results and says what it assumes.
//!
//! A user asks for a runtime, waits for the image of its newest commit, works for a while, and asks again. The machine of
//! the user may have the image already. Otherwise it chooses a node with libmol's own code. There, as in BuildKit, the
//! first build of a commit runs, the same one from another machine waits for it, and later ones find its result. Then the
//! image is sent to the machine.
//!
//! A node divides its processors and its network equally among the builds that use them. All times are in seconds, all
//! sizes in MB.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};

use mol::testing::internals::order_of_nodes;

use super::random::Random;
use super::station::Station;

/// What is simulated.
#[derive(Clone, Debug)]
pub struct Farm {
    pub nodes: usize,
    pub cores: f64,
    /// What a node can send, in MB per second.
    pub node_network: f64,
    pub users: usize,
    /// More than one if the users are those of a server.
    pub users_per_machine: usize,
    /// What a machine can receive, in MB per second.
    pub machine_network: f64,
    /// The names, ordered by use: the nth is used 1/n as often as the first.
    pub runtimes: Vec<String>,
    /// How long a user works with an image before asking again, on average.
    pub pause: f64,
    /// The time between two commits of a runtime, on average.
    pub commit_interval: f64,
    /// The share of commits that change the dependencies, so that no result of the commit before can be used.
    pub new_dependencies: f64,
    pub template: Template,
    /// Waits in this period are not counted, because all caches are empty at first.
    pub warm_up: f64,
    pub duration: f64,
    pub seed: u64,
}

/// What a template costs.
#[derive(Clone, Debug)]
pub struct Template {
    /// A node without any result.
    pub cold: Work,
    /// A node that has the dependencies.
    pub changed: Work,
    /// A node that has all results: it only prepares the image.
    pub cached: Work,
    /// The size of the image as it is sent.
    pub image: f64,
    /// How long a machine takes to receive and load an image whose dependencies it already has.
    pub load_changed: f64,
    /// The same, without the dependencies.
    pub load_fresh: f64,
}

/// A part of a build.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Processor time. A build uses one core at a time.
    pub processor: f64,
    /// Time that does not depend on the load of the node.
    pub fixed: f64,
}

impl Work {
    /// How long it takes if there is no other work on the node.
    pub fn alone(self) -> f64 {
        self.processor + self.fixed
    }
}

/// What happened between the warm-up and the end.
#[derive(Debug, Default)]
pub struct Outcome {
    /// How long users waited for an image that their machine did not have.
    pub waits: Vec<f64>,
    /// How often the machine had the image.
    pub hits: usize,
    /// How busy each node was, from 0 to 1.
    pub processor: Vec<f64>,
    pub network: Vec<f64>,
    /// What each node has sent, in MB.
    pub sent: Vec<f64>,
    pub builds: usize,
    /// How often each request of a user was answered, also during the warm-up. At the end each is 1.
    pub answers: Vec<usize>,
    /// The time that all users together have waited, counted while they wait.
    pub waited: f64,
}

/// A commit of a runtime: its number, and one that grows with each change of the dependencies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Commit {
    number: u64,
    dependencies: u64,
}

/// The head of a runtime's branch. New commits are added when it is looked up.
struct Branch {
    head: Commit,
    next: f64,
    random: Random,
}

struct User {
    random: Random,
    /// What the user waits for: the number of the request, and since when.
    asked: Option<(usize, f64)>,
}

struct Machine {
    /// The newest image of each runtime.
    images: Vec<Option<Commit>>,
    calls: HashMap<(usize, Commit), usize>,
    /// The builds that it has on each node.
    builds: Vec<usize>,
}

/// The only call of a machine for a commit, for which all its users wait.
struct Call {
    machine: usize,
    runtime: usize,
    commit: Commit,
    node: usize,
    users: Vec<usize>,
    steps: VecDeque<Step>,
}

#[derive(Debug)]
enum Step {
    Processor(f64),
    Fixed(f64),
    /// The build is done, and its results are in the node's cache.
    Built,
    Network(f64),
}

#[derive(Default)]
struct Node {
    processor: Station,
    network: Station,
    /// The results that it has, by runtime.
    built: HashSet<(usize, Commit)>,
    dependencies: HashMap<usize, HashSet<u64>>,
    /// Running builds, with the calls that wait for the same.
    running: HashMap<(usize, Commit), Vec<usize>>,
}

/// An event and its time. Those at the same time happen in the order in which they were scheduled.
struct Due {
    at: f64,
    number: u64,
    event: Event,
}

#[derive(Clone, Copy)]
enum Event {
    UserAsks(usize),
    /// The next step of a call starts.
    CallContinues(usize),
    /// A station may have completed a piece of work, unless it has changed since.
    StationCompletes {
        node: usize,
        network: bool,
        version: u64,
    },
    WarmUpEnds,
    SimulationEnds,
}

/// Simulates a farm.
pub fn run(farm: &Farm) -> Outcome {
    let mut simulation = Simulation::new(farm);
    while let Some(Reverse(Due { at, event, .. })) = simulation.due.pop() {
        simulation.advance(at);
        match event {
            Event::UserAsks(user) => simulation.ask(user),
            Event::CallContinues(call) => simulation.go_on(call),
            Event::StationCompletes {
                node,
                network,
                version,
            } => simulation.complete(node, network, version),
            Event::WarmUpEnds => simulation.mark(1.0),
            Event::SimulationEnds => simulation.mark(-1.0),
        }
    }
    simulation.outcome
}

struct Simulation<'a> {
    farm: &'a Farm,
    now: f64,
    due: BinaryHeap<Reverse<Due>>,
    branches: Vec<Branch>,
    users: Vec<User>,
    machines: Vec<Machine>,
    nodes: Vec<Node>,
    hosts: Vec<String>,
    /// The choices so far, by runtime and the machine's builds on each node.
    chosen: HashMap<(usize, Vec<usize>), usize>,
    calls: Vec<Call>,
    /// How many users wait.
    waiting: usize,
    /// How many events there were.
    events: u64,
    outcome: Outcome,
}

impl<'a> Simulation<'a> {
    fn new(farm: &'a Farm) -> Self {
        let random = |kind: u64, number: usize| Random::new(farm.seed, kind, number as u64);
        let branch = |number| Branch {
            head: Commit::default(),
            next: 0.0,
            random: random(0, number),
        };
        let user = |number| User {
            random: random(1, number),
            asked: None,
        };
        let machine = |_| Machine {
            images: vec![None; farm.runtimes.len()],
            calls: HashMap::new(),
            builds: vec![0; farm.nodes],
        };
        let node = |_| Node {
            processor: Station::new(farm.cores, 1.0),
            network: Station::new(farm.node_network, farm.machine_network),
            ..Node::default()
        };
        // The names depend on the seed, and decide which runtimes share a node.
        let host = |number| format!("builder-{number}.{}.example", farm.seed);
        let mut simulation = Simulation {
            farm,
            now: 0.0,
            due: BinaryHeap::new(),
            branches: (0..farm.runtimes.len()).map(branch).collect(),
            users: (0..farm.users).map(user).collect(),
            machines: (0..farm.users.div_ceil(farm.users_per_machine))
                .map(machine)
                .collect(),
            nodes: (0..farm.nodes).map(node).collect(),
            hosts: (0..farm.nodes).map(host).collect(),
            chosen: HashMap::new(),
            calls: Vec::new(),
            waiting: 0,
            events: 0,
            outcome: Outcome {
                processor: vec![0.0; farm.nodes],
                network: vec![0.0; farm.nodes],
                sent: vec![0.0; farm.nodes],
                ..Outcome::default()
            },
        };
        simulation.schedule(farm.warm_up, Event::WarmUpEnds);
        simulation.schedule(farm.duration, Event::SimulationEnds);
        for user in 0..farm.users {
            simulation.pause(user);
        }
        simulation
    }

    fn schedule(&mut self, at: f64, event: Event) {
        self.events += 1;
        let number = self.events;
        self.due.push(Reverse(Due { at, number, event }));
    }

    fn is_measured(&self) -> bool {
        self.now >= self.farm.warm_up && self.now < self.farm.duration
    }

    fn advance(&mut self, to: f64) {
        let (start, end) = (self.now.max(self.farm.warm_up), to.min(self.farm.duration));
        self.outcome.waited += self.waiting as f64 * (end - start).max(0.0);
        self.now = to;
    }

    /// Subtracts the nodes' work before the measured period (`sign` 1) from that at its end (`sign` -1).
    fn mark(&mut self, sign: f64) {
        let time = self.farm.duration - self.farm.warm_up;
        for (number, node) in self.nodes.iter_mut().enumerate() {
            let sent = node.network.done(self.now);
            self.outcome.processor[number] -=
                sign * node.processor.done(self.now) / (self.farm.cores * time);
            self.outcome.network[number] -= sign * sent / (self.farm.node_network * time);
            self.outcome.sent[number] -= sign * sent;
        }
    }

    /// The user works, and then asks again, unless the time is over.
    fn pause(&mut self, user: usize) {
        let at = self.now + self.users[user].random.exponential(self.farm.pause);
        if at < self.farm.duration {
            self.schedule(at, Event::UserAsks(user));
        }
    }

    fn ask(&mut self, user: usize) {
        let runtime = self.users[user].random.rank(self.farm.runtimes.len());
        let commit = self.branches[runtime].head_at(self.now, self.farm);
        let request = self.outcome.answers.len();
        self.outcome.answers.push(0);
        let machine = user / self.farm.users_per_machine;
        if self.machines[machine].images[runtime] == Some(commit) {
            self.outcome.answers[request] += 1;
            self.outcome.hits += usize::from(self.is_measured());
            return self.pause(user);
        }
        self.users[user].asked = Some((request, self.now));
        self.waiting += 1;
        if let Some(call) = self.machines[machine].calls.get(&(runtime, commit)) {
            self.calls[*call].users.push(user);
            return;
        }
        let call = self.calls.len();
        let node = self.choose(machine, runtime);
        self.calls.push(Call {
            machine,
            runtime,
            commit,
            node,
            users: vec![user],
            steps: VecDeque::new(),
        });
        self.machines[machine].calls.insert((runtime, commit), call);
        self.machines[machine].builds[node] += 1;
        self.build(call);
    }

    /// Chooses a node with libmol's code. A machine knows only its own builds.
    fn choose(&mut self, machine: usize, runtime: usize) -> usize {
        let builds = &self.machines[machine].builds;
        if let Some(node) = self.chosen.get(&(runtime, builds.clone())) {
            return *node;
        }
        let nodes: Vec<_> = std::iter::zip(self.hosts.clone(), builds.iter().copied()).collect();
        let node = order_of_nodes(&nodes, &self.farm.runtimes[runtime])[0];
        self.chosen.insert((runtime, builds.clone()), node);
        node
    }

    fn build(&mut self, number: usize) {
        let call = &mut self.calls[number];
        let template = &self.farm.template;
        let node = &mut self.nodes[call.node];
        let key = (call.runtime, call.commit);
        let build = |work: Work| [Step::Processor(work.processor), Step::Fixed(work.fixed)];
        if let Some(others) = node.running.get_mut(&key) {
            call.steps.extend(build(template.cached));
            others.push(number);
            return;
        }
        if node.built.contains(&key) {
            call.steps.extend(build(template.cached));
        } else {
            let known = node.dependencies.entry(call.runtime).or_default();
            let work = match known.contains(&call.commit.dependencies) {
                true => template.changed,
                false => template.cold,
            };
            call.steps.extend(build(work));
            call.steps.push_back(Step::Built);
            node.running.insert(key, Vec::new());
            self.outcome.builds += usize::from(self.is_measured());
        }
        self.send(number);
        self.go_on(number);
    }

    /// Appends the steps that send the image to the machine.
    fn send(&mut self, number: usize) {
        let call = &mut self.calls[number];
        let template = &self.farm.template;
        let had = self.machines[call.machine].images[call.runtime];
        let load = match had.is_some_and(|had| had.dependencies == call.commit.dependencies) {
            true => template.load_changed,
            false => template.load_fresh,
        };
        // It loads while it receives.
        let receive = template.image / self.farm.machine_network;
        call.steps.extend([
            Step::Network(template.image),
            Step::Fixed((load - receive).max(0.0)),
        ]);
    }

    fn go_on(&mut self, number: usize) {
        let call = &mut self.calls[number];
        let (node, step) = (call.node, call.steps.pop_front());
        match step {
            Some(Step::Processor(work)) => {
                self.nodes[node].processor.start(self.now, work, number);
                self.wake(node, false);
            }
            Some(Step::Network(size)) => {
                self.nodes[node].network.start(self.now, size, number);
                self.wake(node, true);
            }
            Some(Step::Fixed(time)) => self.schedule(self.now + time, Event::CallContinues(number)),
            Some(Step::Built) => {
                let key = (call.runtime, call.commit);
                let node = &mut self.nodes[node];
                node.built.insert(key);
                let known = node.dependencies.entry(key.0).or_default();
                known.insert(key.1.dependencies);
                for other in node.running.remove(&key).unwrap_or_default() {
                    self.send(other);
                    self.go_on(other);
                }
                self.go_on(number);
            }
            None => self.answer(number),
        }
    }

    fn answer(&mut self, number: usize) {
        let call = &mut self.calls[number];
        let (runtime, commit, users) = (call.runtime, call.commit, std::mem::take(&mut call.users));
        let machine = &mut self.machines[call.machine];
        machine.builds[call.node] -= 1;
        machine.calls.remove(&(runtime, commit));
        // A call for an older commit may end later.
        let image = &mut machine.images[runtime];
        if image.is_none_or(|image| image.number < commit.number) {
            *image = Some(commit);
        }
        for user in users {
            let (request, since) = self.users[user].asked.take().expect("the user waits");
            self.outcome.answers[request] += 1;
            self.waiting -= 1;
            if since >= self.farm.warm_up {
                self.outcome.waits.push(self.now - since);
            }
            self.pause(user);
        }
    }

    fn complete(&mut self, node: usize, network: bool, version: u64) {
        let station = self.station(node, network);
        if station.version != version {
            return;
        }
        let now = self.now;
        let calls = self.station(node, network).completed(now);
        self.wake(node, network);
        for call in calls {
            self.go_on(call);
        }
    }

    fn station(&mut self, node: usize, network: bool) -> &mut Station {
        match network {
            true => &mut self.nodes[node].network,
            false => &mut self.nodes[node].processor,
        }
    }

    fn wake(&mut self, node: usize, network: bool) {
        let station = self.station(node, network);
        let version = station.version;
        if let Some(at) = station.next() {
            self.schedule(
                at.max(self.now),
                Event::StationCompletes {
                    node,
                    network,
                    version,
                },
            );
        }
    }
}

impl Branch {
    /// The newest commit.
    fn head_at(&mut self, now: f64, farm: &Farm) -> Commit {
        while self.next <= now {
            self.next += self.random.exponential(farm.commit_interval);
            self.head.number += 1;
            self.head.dependencies += u64::from(self.random.chance(farm.new_dependencies));
        }
        self.head
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_time = self.at.total_cmp(&other.at);
        by_time.then(self.number.cmp(&other.number))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Due {}
