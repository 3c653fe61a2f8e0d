//! Many callers in many processes (promise P3): one fetch and one build, also if the process that is
//! at it is killed or stopped.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::child::{Link, command, program, program_with_points};
use crate::support::engine::BUSYBOX;
use crate::support::proxy::End;
use crate::support::server::dockerfile;
use crate::support::{AT_ONCE, Bed, Proxy, Treat, soak, unique, until};

const RUNTIMES: [&str; 3] = ["autogen", "claude-code", "hermes"];
const PROCESSES: usize = 8;
const CALLERS: usize = 50;

/// The surroundings of all processes, with an engine whose requests are counted.
struct Town {
    bed: Bed,
    engine: Proxy,
    /// For each runtime, the reference that everybody must get.
    references: Vec<String>,
    /// For each runtime, what is in the cache once it is fetched.
    fetched: Vec<PathBuf>,
}

/// A process with many callers, and what it says.
struct Crowd {
    process: Child,
    said: PathBuf,
    since: Instant,
}

impl Town {
    fn new() -> Self {
        let bed = Bed::new();
        let text = |word| format!("FROM {BUSYBOX}\nRUN echo {word}; sleep 1\n");
        let commits = RUNTIMES.map(|runtime| bed.template(runtime, dockerfile(&text(unique()))));
        let of_each = || RUNTIMES.iter().zip(&commits);
        let references = of_each().map(|(runtime, sha)| bed.reference(runtime, sha));
        let voucher = |(runtime, sha): (&&str, &String)| format!("{runtime}/.{}.json", &sha[..12]);
        let fetched = of_each().map(|of| bed.cache().join(voucher(of)));
        let (references, fetched) = (references.collect(), fetched.collect());
        let engine = Proxy::start(&bed.engine, bed.scratch(), |_| Treat::Pass);
        program("crowd", Link::Static); // compiled before all start together
        Self {
            bed,
            engine,
            references,
            fetched,
        }
    }

    fn crowd(&self, deadline: Option<Duration>) -> Crowd {
        self.start(&program("crowd", Link::Static), &self.engine, deadline, "")
    }

    /// A crowd that has fetched the templates and holds their locks.
    fn holder(&self, engine: &Proxy, points: &str) -> Crowd {
        let holder = self.start(
            &program_with_points("crowd", Link::Static),
            engine,
            None,
            points,
        );
        until("all fetches", || {
            self.fetched.iter().all(|path| path.exists()).then_some(())
        });
        holder
    }

    /// The same engine, but that it is never asked to build.
    fn idle_engine(&self) -> Proxy {
        let folder = self.bed.scratch().join(unique());
        std::fs::create_dir(&folder).unwrap();
        Proxy::start(&self.bed.engine, &folder, |request| {
            match request.contains("/build?") {
                true => Treat::CutRequest(0, End::Hang),
                false => Treat::Pass,
            }
        })
    }

    fn start(
        &self,
        program: &Path,
        engine: &Proxy,
        deadline: Option<Duration>,
        points: &str,
    ) -> Crowd {
        let said = self.bed.scratch().join(unique());
        let deadline = deadline.map_or(0, |deadline| deadline.as_millis());
        let process = command(&self.bed, program)
            .env("DOCKER_HOST", &engine.url)
            .env("FAILPOINTS", points)
            .args([&CALLERS.to_string(), &deadline.to_string(), "1"])
            .args(RUNTIMES)
            .stdout(File::create(&said).unwrap())
            .spawn()
            .unwrap();
        Crowd {
            process,
            said,
            since: Instant::now(),
        }
    }

    /// How many fetches and builds there were, by those who did them.
    fn work(&self) -> (usize, usize) {
        let requests = self.bed.server.requests();
        let fetches = requests.iter().filter(|r| r.path.ends_with("/info/refs"));
        (
            fetches.count(),
            self.engine.sent().matches("/build?").count(),
        )
    }

    fn assert_all_got_it(&self, crowd: Crowd) {
        let (said, _) = crowd.ends();
        for (index, (runtime, reference)) in RUNTIMES.iter().zip(&self.references).enumerate() {
            let callers = (CALLERS - index).div_ceil(RUNTIMES.len());
            let ends = said
                .matches(&format!("end 1 {runtime} ok {reference}\n"))
                .count();
            assert_eq!(ends, callers, "{runtime}: {said}");
        }
    }
}

impl Crowd {
    fn said(&self) -> String {
        std::fs::read_to_string(&self.said).unwrap()
    }

    /// Waits until it has told, for every runtime, that it waits for this process.
    fn wait_until_it_waits_for(&self, process: u32) {
        let holder = format!("\"holder\":\"process {process}\"");
        until("a crowd that waits", || {
            (self.said().matches(&holder).count() == RUNTIMES.len()).then_some(())
        });
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    fn wait(&mut self) -> ExitStatus {
        self.process.wait().unwrap()
    }

    /// What it has said when all its calls have ended, and how long that took.
    fn ends(mut self) -> (String, Duration) {
        let status = self.wait();
        let (took, said) = (self.since.elapsed(), self.said());
        assert!(status.success(), "{status}: {said}");
        (said, took)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // Only where a test has failed; it may be a stopped one.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn eight_processes_with_fifty_callers_each_share_one_fetch_and_one_build_a_runtime() {
    soak(|| {
        let town = Town::new();
        let crowds: Vec<Crowd> = (0..PROCESSES).map(|_| town.crowd(None)).collect();
        for crowd in crowds {
            town.assert_all_got_it(crowd);
        }
        assert_eq!(town.work(), (RUNTIMES.len(), RUNTIMES.len()));
    });
}

#[test]
fn when_the_process_that_holds_the_locks_is_killed_one_of_the_others_goes_on() {
    soak(|| {
        let town = Town::new();
        let idle = town.idle_engine();
        let mut holder = town.holder(&idle, "");
        let crowds: Vec<Crowd> = (1..PROCESSES).map(|_| town.crowd(None)).collect();
        for crowd in &crowds {
            crowd.wait_until_it_waits_for(holder.process.id());
        }
        holder.signal(Signal::KILL);
        holder.wait();
        for crowd in crowds {
            town.assert_all_got_it(crowd);
        }
        // What the holder had fetched is used.
        assert_eq!(town.work(), (RUNTIMES.len(), RUNTIMES.len()));
    });
}

#[test]
fn when_the_process_that_holds_the_locks_is_stopped_the_others_keep_to_their_deadlines() {
    soak(|| {
        let town = Town::new();
        let pause = format!("cache-synced=sleep({})", AT_ONCE.as_millis());
        let holder = town.holder(&town.engine, &pause);
        holder.signal(Signal::STOP);
        let deadline = Duration::from_secs(4);
        let crowds: Vec<Crowd> = (1..PROCESSES).map(|_| town.crowd(Some(deadline))).collect();
        for crowd in crowds {
            let id = crowd.process.id();
            let (said, took) = crowd.ends();
            assert!(took < deadline + 2 * AT_ONCE, "{id}: {took:?}");
            let ends = said.lines().filter(|line| line.starts_with("end 1 "));
            let (late, other): (Vec<&str>, Vec<&str>) =
                ends.partition(|end| end.contains(" deadline_exceeded "));
            assert_eq!((late.len(), other.len()), (CALLERS, 0), "{other:#?}");
            // The first caller of a runtime waits for the process, the others wait for the first.
            let told = |whom: &str| late.iter().filter(|end| end.contains(whom)).count();
            let holder = format!("waiting for process {}", holder.process.id());
            assert_eq!(told(&holder), RUNTIMES.len(), "{late:#?}");
            let first = "waiting for another call in this process";
            assert_eq!(told(first), CALLERS - RUNTIMES.len(), "{late:#?}");
        }
        holder.signal(Signal::CONT);
        town.assert_all_got_it(holder);
        town.assert_all_got_it(town.crowd(None));
        assert_eq!(town.work(), (RUNTIMES.len(), RUNTIMES.len()));
    });
}
