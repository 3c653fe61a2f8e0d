//! Many callers in many processes (promise P3): one fetch and one build, also if the process that does
//! the work is killed or stopped.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::child::{Link, command, program, program_with_points};
use crate::support::engine::BUSYBOX;
use crate::support::proxy::End;
use crate::support::server::{dockerfile, fetches};
use crate::support::{Handling, Proxy, TestEnv, soak, unique, wait_until};

const RUNTIMES: [&str; 3] = ["autogen", "claude-code", "hermes"];
const PROCESSES: usize = 8;
const CALLERS: usize = 50;

/// What all processes share, and an engine whose requests are counted.
struct Shared {
    env: TestEnv,
    engine: Proxy,
    /// For each runtime, the reference that every caller must get.
    references: Vec<String>,
    /// For each runtime, the completion marker of its fetch.
    fetched: Vec<PathBuf>,
}

/// A process with many callers, and the file with its output.
struct Crowd {
    process: Child,
    output: PathBuf,
    since: Instant,
}

impl Shared {
    fn new() -> Self {
        let env = TestEnv::new();
        let text = |word| format!("FROM {BUSYBOX}\nRUN echo {word}; sleep 1\n");
        let commits = RUNTIMES.map(|runtime| env.template(runtime, dockerfile(&text(unique()))));
        let each = || RUNTIMES.iter().zip(&commits);
        let references = each().map(|(runtime, sha)| env.reference(runtime, sha));
        let marker = |(runtime, sha): (&&str, &String)| format!("{runtime}/.{}.json", &sha[..12]);
        let fetched = each().map(|of| env.cache().join(marker(of)));
        let (references, fetched) = (references.collect(), fetched.collect());
        let engine = Proxy::start(&env.engine, env.scratch(), |_| Handling::Pass);
        program("crowd", Link::Static); // compiled before all start together
        Self {
            env,
            engine,
            references,
            fetched,
        }
    }

    fn crowd(&self, deadline: Option<Duration>) -> Crowd {
        self.start(&program("crowd", Link::Static), &self.engine, deadline, "")
    }

    /// Starts a crowd and waits until it has fetched the templates and holds their locks.
    fn holder(&self, engine: &Proxy) -> Crowd {
        let holder = self.start(&program("crowd", Link::Static), engine, None, "");
        wait_until("all fetches", || {
            self.fetched.iter().all(|path| path.exists()).then_some(())
        });
        holder
    }

    /// The same engine behind a proxy on which build requests hang.
    fn hanging_engine(&self) -> Proxy {
        let folder = self.env.scratch().join(unique());
        std::fs::create_dir(&folder).unwrap();
        Proxy::start(&self.env.engine, &folder, |request| {
            match request.contains("/build?") {
                true => Handling::CutRequest(0, End::Hang),
                false => Handling::Pass,
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
        let output = self.env.scratch().join(unique());
        let deadline = deadline.map_or(0, |deadline| deadline.as_millis());
        let process = command(&self.env, program)
            .env("DOCKER_HOST", &engine.url)
            .env("FAILPOINTS", points)
            .args([&CALLERS.to_string(), &deadline.to_string(), "1"])
            .args(RUNTIMES)
            .stdout(File::create(&output).unwrap())
            .spawn()
            .unwrap();
        Crowd {
            process,
            output,
            since: Instant::now(),
        }
    }

    /// The number of fetches and builds, as the servers saw them.
    fn work(&self) -> (usize, usize) {
        (
            fetches(&self.env.server.requests()),
            self.engine.sent().matches("/build?").count(),
        )
    }

    fn assert_all_succeed(&self, crowd: Crowd) {
        let (output, _) = crowd.ends();
        for (index, (runtime, reference)) in RUNTIMES.iter().zip(&self.references).enumerate() {
            let callers = (CALLERS - index).div_ceil(RUNTIMES.len());
            let ends = output
                .matches(&format!("end 1 {runtime} ok {reference}\n"))
                .count();
            assert_eq!(ends, callers, "{runtime}: {output}");
        }
    }
}

impl Crowd {
    fn output(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap()
    }

    /// Waits until it reports, for every runtime, that it waits for this process.
    fn wait_until_it_waits_for(&self, process: u32) {
        let holder = format!("\"holder\":\"process {process}\"");
        wait_until("the crowd to wait", || {
            (self.output().matches(&holder).count() == RUNTIMES.len()).then_some(())
        });
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    fn wait(&mut self) -> ExitStatus {
        self.process.wait().unwrap()
    }

    /// Its output after all calls have ended, and how long they took.
    fn ends(mut self) -> (String, Duration) {
        let status = self.wait();
        let (took, output) = (self.since.elapsed(), self.output());
        assert!(status.success(), "{status}: {output}");
        (output, took)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // Needed only after a failed test; the process may be stopped.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn processes_share_one_fetch_and_one_build_for_each_runtime() {
    soak(|| {
        let shared = Shared::new();
        let crowds: Vec<Crowd> = (0..PROCESSES).map(|_| shared.crowd(None)).collect();
        for crowd in crowds {
            shared.assert_all_succeed(crowd);
        }
        assert_eq!(shared.work(), (RUNTIMES.len(), RUNTIMES.len()));
    });
}

#[test]
fn when_the_lock_holder_is_killed_another_process_takes_over() {
    soak(|| {
        let shared = Shared::new();
        let engine = shared.hanging_engine();
        let mut holder = shared.holder(&engine);
        let crowds: Vec<Crowd> = (1..PROCESSES).map(|_| shared.crowd(None)).collect();
        for crowd in &crowds {
            crowd.wait_until_it_waits_for(holder.process.id());
        }
        holder.signal(Signal::KILL);
        holder.wait();
        for crowd in crowds {
            shared.assert_all_succeed(crowd);
        }
        // The fetched trees of the killed process are reused.
        assert_eq!(shared.work(), (RUNTIMES.len(), RUNTIMES.len()));
    });
}

#[test]
fn when_the_lock_holder_is_stopped_waiters_meet_their_deadlines() {
    soak(|| {
        let shared = Shared::new();
        let go = shared.env.scratch().join("go");
        // During the fetch: the engine would go on with a build, and the waiters would find its image.
        let pause = format!("pack-written=return(until {})", go.display());
        let crowd = program_with_points("crowd", Link::Static);
        let holder = shared.start(&crowd, &shared.engine, None, &pause);
        wait_until("a fetch of each runtime", || {
            let begun = shared.env.fetched();
            let has_begun = |runtime: &&str| {
                let folder = format!("{runtime}/.work-");
                begun.iter().any(|path| path.starts_with(&folder))
            };
            RUNTIMES.iter().all(has_begun).then_some(())
        });
        holder.signal(Signal::STOP);
        // Long enough for the lookups of all callers on a busy machine.
        let deadline = Duration::from_secs(8);
        let crowds: Vec<Crowd> = (1..PROCESSES)
            .map(|_| shared.crowd(Some(deadline)))
            .collect();
        for crowd in crowds {
            let id = crowd.process.id();
            let (output, took) = crowd.ends();
            // Includes the start and the end of the process.
            assert!(took < deadline + Duration::from_secs(10), "{id}: {took:?}");
            let ends = output.lines().filter(|line| line.starts_with("end 1 "));
            let (late, other): (Vec<&str>, Vec<&str>) =
                ends.partition(|end| end.contains(" deadline_exceeded "));
            assert_eq!((late.len(), other.len()), (CALLERS, 0), "{other:#?}");
            // The first caller of each runtime waits for the other process, the rest wait for the first caller.
            let count = |text: &str| late.iter().filter(|end| end.contains(text)).count();
            let holder = format!("waiting for process {}", holder.process.id());
            assert_eq!(count(&holder), RUNTIMES.len(), "{late:#?}");
            let first = "waiting for another call in this process";
            assert_eq!(count(first), CALLERS - RUNTIMES.len(), "{late:#?}");
        }
        holder.signal(Signal::CONT);
        File::create(go).unwrap();
        shared.assert_all_succeed(holder);
        shared.assert_all_succeed(shared.crowd(None));
        assert_eq!(shared.work(), (RUNTIMES.len(), RUNTIMES.len()));
    });
}
