//! Test environments. Each test has its own template server, its own cache folder and its own isolation
//! suffix in the tags, so that tests run in parallel on one engine.

pub mod builder;
pub mod child;
pub mod daemon;
pub mod docker_context;
pub mod emulation;
pub mod engine;
pub mod git;
pub mod go_oracle;
pub mod header;
pub mod points;
pub mod proxy;
pub mod registry;
pub mod server;
pub mod sshd;
pub mod tls;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use mol::event::Kind;
use mol::{Client, Code, Error, Event, Image, OptionName, Options};
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, TestCaseError, TestCaseResult, TestRng, TestRunner};
use serde_json::json;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

pub use builder::Builder;
pub use engine::Engine;
pub use proxy::{End, Handling, Proxy};
pub use server::{Files, Server, file, script};

/// The limit for waiting: longer than anything in the tests takes, on a slow machine too. A test that waits
/// longer fails.
pub const WAIT_LIMIT: Duration = Duration::from_secs(90);

/// The limit for a cancelled call to end, in the process and in the engine (promise P4).
pub const CANCEL_LIMIT: Duration = Duration::from_secs(1);

/// An environment variable that tests/run sets for every test.
pub fn required_var(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: these tests need a private engine and more; run `make test`")
    })
}

/// Runs a future on a runtime that all tests share.
pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    static RUNTIME: std::sync::LazyLock<tokio::runtime::Runtime> =
        std::sync::LazyLock::new(|| tokio::runtime::Runtime::new().unwrap());
    RUNTIME.block_on(work)
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Polls until `ready` returns a value, and returns that.
pub fn wait_until<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = ready() {
            return found;
        }
        assert!(begun.elapsed() < WAIT_LIMIT, "timed out waiting for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs `body` once; with `make soak` repeatedly, until the given time is over.
pub fn soak(body: impl Fn()) {
    let seconds = std::env::var("MOL_TEST_SOAK_SECONDS").ok();
    let given = seconds.map(|seconds| Duration::from_secs(seconds.parse().unwrap()));
    let (begun, mut times) = (Instant::now(), 0);
    loop {
        body();
        times += 1;
        if given.is_none_or(|given| begun.elapsed() >= given) {
            break;
        }
    }
    println!("{times} times in {:?}", begun.elapsed());
}

/// Does the work for all items, four in parallel: most of the time is spent waiting for the engine.
pub fn in_parallel<T: Send>(items: impl Iterator<Item = T> + Send, work: impl Fn(T) + Sync) {
    let items = Mutex::new(items);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(item) = { lock(&items).next() } {
                    work(item);
                }
            });
        }
    });
}

/// A random number below `limit`.
pub fn random_below(limit: u64) -> u64 {
    std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), ()) % limit
}

/// A word that is unique among all tests and runs.
pub fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let since = std::time::UNIX_EPOCH.elapsed().unwrap();
    format!(
        "t{:x}-{:x}-{}",
        since.as_millis(),
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// A text that hardly compresses. The same in every run.
pub fn noise(length: usize) -> String {
    let mut state: u64 = 1;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        // Knuth's linear congruential generator for MMIX. Its upper half is the better one.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&state.to_be_bytes()[..4]);
    }
    let mut text = BASE64_STANDARD.encode(bytes);
    text.truncate(length);
    text
}

/// The name of a docker context's folders: the hexadecimal SHA-256 of the context's name.
pub fn docker_context_id(name: &str) -> String {
    git::hex(&Sha256::digest(name))
}

/// Writes a docker context into a docker configuration folder, as `docker context create` does.
pub fn write_docker_context(config: &Path, name: &str, host: &str) {
    let folder = config.join("contexts/meta").join(docker_context_id(name));
    std::fs::create_dir_all(&folder).unwrap();
    let endpoint = json!({"Host": host, "SkipTLSVerify": false});
    let meta = json!({"Name": name, "Metadata": {}, "Endpoints": {"docker": endpoint}});
    std::fs::write(folder.join("meta.json"), meta.to_string()).unwrap();
}

/// The environment of one test. Its images are removed from the engine when it is dropped.
pub struct TestEnv {
    pub server: Server,
    pub engine: Engine,
    pub isolation: String,
    folder: TempDir,
}

impl TestEnv {
    /// An environment with an empty template server.
    pub fn new() -> Self {
        Self::with(&[])
    }

    /// An environment with the sample templates of examples/templates.
    pub fn with_samples() -> Self {
        Self::with(&["--templates", &required_var("MOL_TEST_TEMPLATES")])
    }

    /// An environment whose template server is started with these flags.
    pub fn with(flags: &[&str]) -> Self {
        Self {
            server: Server::start(flags),
            engine: Engine::of_the_tests(),
            isolation: unique(),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// The path of the cache folder. The library creates the folder during the first build.
    pub fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    /// A folder for other files of the test.
    pub fn scratch(&self) -> &Path {
        self.folder.path()
    }

    /// The options for this environment.
    pub fn options(&self) -> Options {
        let mut options = Options::default();
        for (name, value) in self.values() {
            options.set(name, &value);
        }
        options
    }

    /// The options for this environment, as a list.
    pub fn values(&self) -> Vec<(OptionName, String)> {
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        vec![
            (OptionName::RepoPrefix, self.server.repo_prefix.clone()),
            (OptionName::CacheDir, path(&self.cache())),
            (OptionName::Isolation, self.isolation.clone()),
            (OptionName::DockerHost, self.engine.url.clone()),
            (OptionName::Home, path(self.folder.path())),
        ]
    }

    /// A client for this environment.
    pub fn client(&self) -> TestClient {
        TestClient::new(&self.options())
    }

    /// A client for this environment, with some options changed.
    pub fn client_with(&self, more: &[(OptionName, &str)]) -> TestClient {
        let mut options = self.options();
        for (name, value) in more {
            options.set(*name, value);
        }
        TestClient::new(&options)
    }

    /// Commits exactly these files as the head of a runtime's template. Returns the commit id.
    pub fn template(&self, runtime: &str, files: Files) -> String {
        self.server
            .commit(&self.server.template(runtime), "main", files)
    }

    /// The reference of a commit's image, as the contract defines it.
    pub fn reference(&self, runtime: &str, sha: &str) -> String {
        self.tagged(runtime, &sha[..12])
    }

    /// The `latest` reference, as the contract defines it.
    pub fn latest(&self, runtime: &str) -> String {
        self.tagged(runtime, "latest")
    }

    fn tagged(&self, runtime: &str, tag: &str) -> String {
        let isolation = &self.isolation;
        format!("molecule-local/workspace-template-{runtime}:{tag}--{isolation}")
    }

    /// The cache entries of fetches: `.work-` folders of unfinished ones, trees and markers of finished ones.
    pub fn fetched(&self) -> Vec<String> {
        let mut paths = self.cached_paths();
        paths.retain(|path| {
            let name = path.split('/').nth(1).unwrap_or_default();
            name.starts_with(".work-") || name.len() == 12 || name.ends_with(".json")
        });
        paths
    }

    /// Waits until the cache has no entries of fetches, and returns false if it still has some after 20 seconds. A
    /// cancelled or failed call cleans up in the background; the tests in `cancel` check how fast.
    pub fn is_clean(&self) -> bool {
        let begun = Instant::now();
        while !self.fetched().is_empty() {
            if begun.elapsed() > Duration::from_secs(20) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }

    /// Every path below the cache folder, relative to it.
    pub fn cached_paths(&self) -> Vec<String> {
        let (mut paths, mut folders) = (Vec::new(), vec![self.cache()]);
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if entry.file_type().unwrap().is_dir() {
                    folders.push(path.clone());
                }
                let path = path.strip_prefix(self.cache()).unwrap();
                paths.push(path.to_str().unwrap().to_owned());
            }
        }
        paths.sort();
        paths
    }
}

impl Drop for TestEnv {
    fn drop(&mut self) {
        self.engine.remove_all_of(&self.isolation);
    }
}

/// A client that records its events.
pub struct TestClient {
    client: Client,
    events: Arc<(Mutex<Vec<Event>>, Condvar)>,
}

/// A running call.
pub struct Call {
    pub id: u64,
    end: mpsc::Receiver<mol::Result<Image>>,
}

impl Call {
    /// Waits for the result.
    pub fn end(self) -> mol::Result<Image> {
        self.end
            .recv_timeout(WAIT_LIMIT)
            .expect("every call must end")
    }
}

impl TestClient {
    pub fn new(options: &Options) -> Self {
        let events = Arc::<(Mutex<Vec<Event>>, Condvar)>::default();
        let recorded = Arc::clone(&events);
        let observer = Box::new(move |event| {
            lock(&recorded.0).push(event);
            recorded.1.notify_all();
        });
        let client = Client::new(options, Some(observer)).unwrap();
        Self { client, events }
    }

    pub fn begin(&self, runtime: &str) -> Call {
        self.begin_within(runtime, None)
    }

    pub fn begin_within(&self, runtime: &str, timeout: Option<Duration>) -> Call {
        let (sender, end) = mpsc::channel();
        let id = self
            .client
            .ensure_local_image(runtime)
            .start(timeout, move |_, result| sender.send(result).unwrap_or(()))
            .unwrap();
        Call { id, end }
    }

    /// Makes a call and waits for its result.
    pub fn ensure(&self, runtime: &str) -> mol::Result<Image> {
        self.begin(runtime).end()
    }

    /// Makes a call that must fail. No error may refer to a registry (promise P1).
    pub fn ensure_err(&self, runtime: &str) -> Error {
        let error = self.ensure(runtime).expect_err("the call must fail");
        let said = format!("{error:?}").to_lowercase();
        let mut words = said.split(|letter: char| !letter.is_alphanumeric());
        assert!(!words.any(|word| word == "ghcr" || word == "ecr"), "{said}");
        error
    }

    /// Cancels a call, and checks that it ends for that reason.
    pub fn cancel(&self, call: Call) {
        self.client.cancel(call.id);
        assert_eq!(call.end().unwrap_err().code, Code::Canceled);
    }

    /// The same, and checks that it ends in time.
    pub fn cancel_in_time(&self, call: Call) {
        let since = Instant::now();
        self.cancel(call);
        let took = since.elapsed();
        assert!(took < CANCEL_LIMIT, "it took {took:?}");
    }

    pub fn inner(&self) -> &Client {
        &self.client
    }

    /// All events so far.
    pub fn events(&self) -> Vec<Event> {
        lock(&self.events.0).clone()
    }

    /// Clears the recorded events.
    pub fn clear_events(&self) {
        lock(&self.events.0).clear();
    }

    pub fn of_kind(&self, kind: Kind) -> Vec<Event> {
        let mut events = self.events();
        events.retain(|event| event.kind == kind);
        events
    }

    pub fn count(&self, kind: Kind) -> usize {
        self.of_kind(kind).len()
    }

    /// Waits for an event.
    pub fn wait_for(&self, kind: Kind, matches: impl Fn(&Event) -> bool) -> Event {
        let begun = Instant::now();
        let mut events = lock(&self.events.0);
        loop {
            if let Some(event) = events.iter().find(|e| e.kind == kind && matches(e)) {
                return event.clone();
            }
            let left = WAIT_LIMIT.saturating_sub(begun.elapsed());
            assert!(!left.is_zero(), "no {kind:?} event in {events:#?}");
            events = self.events.1.wait_timeout(events, left).unwrap().0;
        }
    }

    /// Waits for a line of the build's output.
    pub fn wait_for_line(&self, text: &str) -> Event {
        self.wait_for(Kind::Log, |event| {
            event
                .line
                .as_deref()
                .is_some_and(|line| line.contains(text))
        })
    }
}

impl Drop for TestClient {
    fn drop(&mut self) {
        block_on(self.client.close());
    }
}

/// Checks a property with random values: `holds` returns an error or panics where it does not hold. The values
/// are the same in every run, so that a failure can be reproduced; a failing value is minimized and shown.
/// `make fuzz` tries more values.
pub fn for_all<S: Strategy>(cases: u32, values: &S, holds: impl Fn(S::Value) -> TestCaseResult) {
    let config = Config {
        cases,
        ..Config::default()
    };
    let holds = |value| {
        catch_unwind(AssertUnwindSafe(|| holds(value)))
            .unwrap_or_else(|_| Err(TestCaseError::fail("it panicked, see above")))
    };
    let random = TestRng::deterministic_rng(config.rng_algorithm);
    if let Err(error) = TestRunner::new_with_rng(config, random).run(values, holds) {
        panic!("{error}");
    }
}
