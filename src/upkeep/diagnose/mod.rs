//! Everything that a build depends on, looked at once: what is well, what is not, and how to mend it.
//!
//! It works when everything is broken: the checks go on side by side, none needs another to succeed, and
//! each has its time limit. Nothing is changed anywhere, and no credential helper is started.

use std::borrow::Cow;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use crate::cache::Cache;
use crate::cache::disk;
use crate::cache::ownership;
use crate::engine::{Builder, Engine, Logins};
use crate::error::{Code, Error, Result};
use crate::event::{Event, Kind, Sink, human_bytes};
use crate::job::gitea;
use crate::job::shared::Shared;
use crate::names::runtimes::{Runtime, Runtimes};
use crate::process::executor::blocking;
use crate::redact::{Masker, Redact};

/// What one check may take. A person waits for it.
const LIMIT: Duration = Duration::from_secs(10);

/// What is left of the call's own time when the checks have to end, so that the report comes.
const MARGIN: Duration = Duration::from_millis(500);

/// When the checks have to end, with the time of the whole call in view.
#[derive(Clone, Copy)]
struct Deadline {
    at: Option<Instant>,
}

impl Deadline {
    fn of(timeout: Option<Duration>) -> Self {
        let usable = |timeout: Duration| timeout - MARGIN.min(timeout / 4);
        let at = timeout.and_then(|timeout| Instant::now().checked_add(usable(timeout)));
        Self { at }
    }

    /// Does a check, at most until then and for no longer than [`LIMIT`].
    async fn limited<T>(self, what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        let now = Instant::now();
        let left = self
            .at
            .map_or(LIMIT, |at| at.saturating_duration_since(now));
        let limit = LIMIT.min(left);
        // `10`, `2.5`
        let tenths = (limit.as_secs_f32() * 10.0).round() / 10.0;
        tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
            Err(Error::new(
                Code::Timeout,
                format!("{what} did not answer within {tenths} seconds"),
            )
            .hint("see whether it hangs"))
        })
    }
}

/// With less than this, the next build or the one after it will not fit: a base image and what a
/// template installs take gigabytes, a tree in the cache some megabytes.
const LITTLE_FOR_IMAGES: u64 = 5 << 30;
const LITTLE_FOR_TREES: u64 = 256 << 20;

/// Certificates and tokens are judged by the clock; their issuers allow for about so much.
const SKEW: Duration = Duration::from_secs(60);

/// How a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It is well.
    Ok,
    /// It works, or may, and is worth a look.
    Warning,
    /// Builds will fail.
    Problem,
}

/// One line of a diagnosis.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// How it is.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// How to mend it; empty if it is well.
    pub fix: Cow<'static, str>,
}

/// What was found, always in the same order. There is no secret in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnosis {
    /// The library's version.
    pub version: String,
    /// The worst of all.
    pub status: Status,
    /// Line by line.
    pub checks: Vec<Check>,
}

impl Redact for Diagnosis {
    fn masked(mut self, masker: &Masker) -> Self {
        for check in &mut self.checks {
            check.found = masker.shown(&check.found, MAX_TEXT);
            masker.in_place_unless_static(&mut check.fix);
        }
        self
    }
}

/// Nobody reads more than this of one line.
const MAX_TEXT: usize = 1000;

impl Check {
    fn ok(name: &str, found: impl Into<String>) -> Self {
        Self::new(name, Status::Ok, found, "")
    }

    fn warning(name: &str, found: impl Into<String>, fix: impl Into<Cow<'static, str>>) -> Self {
        Self::new(name, Status::Warning, found, fix)
    }

    fn problem(name: &str, found: impl Into<String>, fix: impl Into<Cow<'static, str>>) -> Self {
        Self::new(name, Status::Problem, found, fix)
    }

    fn failed(name: &str, error: Error) -> Self {
        Self::problem(name, error.message, error.hint)
    }

    fn new(
        name: &str,
        status: Status,
        found: impl Into<String>,
        fix: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            status,
            found: found.into(),
            fix: fix.into(),
        }
    }
}

/// Looks at everything.
pub(crate) async fn diagnose(shared: &Arc<Shared>, timeout: Option<Duration>) -> Result<Diagnosis> {
    let deadline = Deadline::of(timeout);
    let (engine, cache, logins, gitea) = tokio::join!(
        engine(shared, deadline),
        cache(shared, deadline),
        logins(shared, deadline),
        template_server(shared, deadline),
    );
    let mut checks = engine;
    checks.extend(cache);
    checks.push(logins);
    checks.push(proxy(shared));
    checks.extend(gitea);
    let worst = checks.iter().map(|check| check.status).max();
    Ok(Diagnosis {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        status: worst.unwrap_or(Status::Ok),
        checks,
    })
}

async fn engine(shared: &Shared, deadline: Deadline) -> Vec<Check> {
    // Not the client's own connection: that may be from a time when all was well.
    let engine = deadline
        .limited(
            "the engine",
            Engine::connect(&shared.settings.engine, &shared.tasks),
        )
        .await;
    let engine = match engine {
        Ok(engine) => engine,
        Err(error) => {
            let unknown = |name| Check::warning(name, "not known without an engine", "see engine");
            return vec![
                Check::failed("engine", error),
                unknown("version"),
                unknown("builder"),
                unknown("platform"),
                unknown("engine disk"),
            ];
        }
    };
    let (platform, disk) = tokio::join!(
        platform(shared, &engine, deadline),
        engine_disk(&engine, deadline)
    );
    vec![
        Check::ok(
            "engine",
            format!("{} ({})", engine.endpoint(), engine.named_by()),
        ),
        Check::ok("version", engine.description()),
        builder(shared, &engine),
        platform,
        disk,
    ]
}

fn builder(shared: &Shared, engine: &Engine) -> Check {
    let asked_for = shared.settings.engine.classic_builder;
    match engine.builder() {
        Builder::Classic if asked_for => Check::warning(
            "builder",
            "classic, because DOCKER_BUILDKIT is 0",
            "unset DOCKER_BUILDKIT: BuildKit is quicker and knows more of Dockerfiles",
        ),
        Builder::Classic => Check::warning(
            "builder",
            "classic: the engine is too old for BuildKit",
            "update the engine: templates may use what the classic builder does not know",
        ),
        builder => Check::ok("builder", builder.name()),
    }
}

/// Can the engine build for the platform, and does it have to emulate it?
async fn platform(shared: &Shared, engine: &Engine, deadline: Deadline) -> Check {
    const NAME: &str = "platform";
    let warnings = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&warnings);
    let emit: Sink = Arc::new(move |event: Event| {
        if event.kind == Kind::Warning {
            let mut warnings = told.lock().unwrap_or_else(PoisonError::into_inner);
            warnings.push((event.message, event.hint.unwrap_or_default()));
        }
    });
    let work = async {
        let platform = shared.platform_on(engine)?;
        engine.check_platform(&platform, &emit).await?;
        Ok(platform)
    };
    let platform = match deadline.limited("the engine", work).await {
        Ok(platform) => platform,
        Err(error) => return Check::failed(NAME, error),
    };
    let warning = warnings
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .pop();
    if let Some((message, hint)) = warning {
        return Check::warning(NAME, message, hint);
    }
    let native = engine.native_platform().ok();
    Check::ok(
        NAME,
        match native {
            Some(native) if native.os_arch() == platform.os_arch() => {
                format!("{platform}, without emulation")
            }
            _ => format!("{platform}; the engine does not say whether it emulates it"),
        },
    )
}

async fn engine_disk(engine: &Engine, deadline: Deadline) -> Check {
    const NAME: &str = "engine disk";
    let folder = match deadline.limited("the engine", engine.data_folder()).await {
        Ok(folder) => folder,
        Err(error) => return Check::failed(NAME, error),
    };
    let Some(folder) = folder else {
        return Check::ok(NAME, "the engine does not say where its data is");
    };
    let Some(free) = engine.free_at(&folder).await else {
        let found = format!("{}, which is not on this machine", folder.display());
        return Check::ok(NAME, found);
    };
    room(
        NAME,
        &folder,
        free,
        LITTLE_FOR_IMAGES,
        "docker system df shows what takes it; mol prune and docker builder prune give it back",
    )
}

fn room(name: &str, folder: &Path, free: disk::Free, little: u64, fix: &'static str) -> Check {
    let found = format!("{free} at {}", folder.display());
    if free.bytes < disk::LEAST || free.out_of_inodes {
        Check::problem(name, found, fix)
    } else if free.bytes < little {
        let found = format!(
            "{found}, which is little (less than {})",
            human_bytes(little)
        );
        Check::warning(name, found, fix)
    } else {
        Check::ok(name, found)
    }
}

async fn cache(shared: &Arc<Shared>, deadline: Deadline) -> Vec<Check> {
    let settings = &shared.settings;
    let (root, runtimes) = (settings.cache_dir.clone(), settings.runtimes.clone());
    let work = blocking(&shared.tasks, move || Ok(cache_at(&root, &runtimes)));
    let looked = deadline.limited("the disk of the cache", work).await;
    looked.unwrap_or_else(|error| vec![Check::failed("cache", error)])
}

fn cache_at(root: &Path, runtimes: &Runtimes) -> Vec<Check> {
    let free = disk::free(root);
    let disk = match free {
        Some(free) => room(
            "cache disk",
            root,
            free,
            LITTLE_FOR_TREES,
            "free some space there, or set MOLECULE_LOCAL_BUILD_CACHE to a folder on another disk",
        ),
        None => Check::ok("cache disk", "the disk does not say how much is free"),
    };
    vec![
        health(root, runtimes).unwrap_or_else(|error| Check::failed("cache", error)),
        disk,
    ]
}

fn health(root: &Path, runtimes: &Runtimes) -> Result<Check> {
    ownership::check(root)?;
    let path = root.display();
    if let Err(error) = ownership::may_write(root) {
        return Ok(Check::problem(
            "cache",
            format!("{path} cannot be written: {error}"),
            "check its permissions, or set MOLECULE_LOCAL_BUILD_CACHE to another folder",
        ));
    }
    if !root.exists() {
        return Ok(Check::ok(
            "cache",
            format!("{path}; the first build makes it"),
        ));
    }
    let (mut whole, mut half, mut bytes) = (0u64, 0u64, 0);
    for runtime in runtimes.iter() {
        let Some(cache) = Cache::existing(root, runtime)? else {
            continue;
        };
        for kept in cache.entries() {
            bytes += kept.bytes;
            match kept.commit {
                Some(_) => whole += 1,
                None if cache.is_locked(&kept.short) => {}
                None => half += 1,
            }
        }
    }
    let found = format!("{path}: {whole} whole, {}", human_bytes(bytes));
    Ok(match half {
        0 => Check::ok("cache", found),
        half => Check::warning(
            "cache",
            format!("{found}; {half} half-written, from processes that were stopped"),
            "mol prune removes them",
        ),
    })
}

async fn logins(shared: &Arc<Shared>, deadline: Deadline) -> Check {
    const NAME: &str = "logins";
    let settings = shared.settings.engine.clone();
    let work = blocking(&shared.tasks, move || Logins::of(&settings));
    let logins = match deadline.limited("docker's config.json", work).await {
        Ok(logins) => logins,
        Err(error) => return Check::failed(NAME, error),
    };
    let mut found = Vec::new();
    if logins.stored > 0 {
        found.push(format!("{} in config.json", logins.stored));
    }
    let (there, missing): (Vec<_>, Vec<_>) = logins.helpers.into_iter().partition(|(_, at)| *at);
    let names = |helpers: Vec<(String, bool)>| {
        let names: Vec<String> = helpers.into_iter().map(|(name, _)| name).collect();
        names.join(", ")
    };
    if !there.is_empty() {
        found.push(format!("helpers: {}", names(there)));
    }
    if !missing.is_empty() {
        let missing = names(missing);
        found.push(format!("not in PATH: {missing}"));
        found.extend(logins.complaints);
        return Check::warning(
            NAME,
            found.join("; "),
            format!(
                "install {missing}, or take it out of credsStore and credHelpers in docker's config.json"
            ),
        );
    }
    if !logins.complaints.is_empty() {
        found.extend(logins.complaints);
        return Check::warning(NAME, found.join("; "), "fix docker's config.json");
    }
    match found.is_empty() {
        true => Check::ok(NAME, "none; public base images need none"),
        false => Check::ok(NAME, found.join("; ")),
    }
}

fn proxy(shared: &Shared) -> Check {
    let network = &shared.settings.network;
    let set = [
        ("HTTPS_PROXY", &network.https_proxy),
        ("HTTP_PROXY", &network.http_proxy),
        ("NO_PROXY", &network.no_proxy),
    ];
    let set: Vec<String> = set
        .into_iter()
        .filter_map(|(name, value)| Some(format!("{name} {}", without_login(value.as_ref()?))))
        .collect();
    match set.is_empty() {
        true => Check::ok("proxy", "none"),
        false => Check::ok("proxy", set.join(", ")),
    }
}

/// An address of a proxy may have a password, and may have no scheme.
fn without_login(address: &str) -> String {
    match address.rsplit_once('@') {
        Some((login, host)) => match login.split_once("://") {
            Some((scheme, _)) => format!("{scheme}://***@{host}"),
            None => format!("***@{host}"),
        },
        None => address.to_owned(),
    }
}

/// Everything that the template server is asked for.
async fn template_server(shared: &Shared, deadline: Deadline) -> Vec<Check> {
    let runtimes = shared.settings.runtimes.iter();
    if shared.settings.offline {
        let found = "not asked: MOLECULE_LOCAL_OFFLINE is set";
        let mut checks: Vec<Check> = ["gitea", "token", "clock"]
            .into_iter()
            .map(|name| Check::ok(name, found))
            .collect();
        checks.extend(runtimes.map(|runtime| Check::ok(runtime.as_str(), found)));
        return checks;
    }
    let heads = runtimes.map(|runtime| async move {
        let repository = shared.settings.repo_prefix.repository(runtime);
        let branch = shared.settings.branch.as_deref();
        let head = gitea::head(&shared.http, runtime, &repository, branch);
        let head = deadline.limited(repository.url.as_str(), head).await;
        (runtime, head)
    });
    let (greeting, heads): (_, Vec<(&Runtime, Result<gitea::Head>)>) = tokio::join!(
        greet(shared, deadline),
        futures_util::future::join_all(heads)
    );
    let failed = |code: Code| {
        heads
            .iter()
            .filter(|(_, head)| head.as_ref().is_err_and(|error| error.code == code))
            .count()
    };
    let found = heads.iter().filter(|(_, head)| head.is_ok()).count();
    let any_answer = found + failed(Code::RepoNotFound) + failed(Code::Auth) > 0;

    let (gitea, clock) = match greeting {
        Err(error) if !any_answer => (
            Check::failed("gitea", error),
            Check::warning("clock", "not known without an answer", "see gitea"),
        ),
        Err(error) => (
            Check::warning("gitea", error.message, error.hint),
            Check::warning("clock", "not known without an answer", "see gitea"),
        ),
        Ok(_) if found + failed(Code::Auth) == 0 && failed(Code::RepoNotFound) > 0 => (
            Check::problem(
                "gitea",
                format!(
                    "no template repository is there: {}…",
                    shared.settings.repo_prefix.as_str()
                ),
                match shared.http.has_token() {
                    true => {
                        "check MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX, and whether the token in \
                         MOLECULE_GITEA_TOKEN may read the repositories"
                    }
                    false => {
                        "check MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX; for private repositories, set \
                         MOLECULE_GITEA_TOKEN"
                    }
                },
            ),
            Check::ok("clock", "not compared"),
        ),
        Ok(greeting) => (
            Check::ok("gitea", greeting.said()),
            clock(greeting.date, greeting.took),
        ),
    };
    let mut checks = vec![gitea, token(shared, found, failed(Code::Auth)), clock];
    checks.extend(
        heads
            .into_iter()
            .map(|(runtime, head)| mirror(runtime, head)),
    );
    checks
}

/// What a server says of itself.
struct Greeting {
    server: String,
    version: String,
    date: Option<SystemTime>,
    took: Duration,
}

impl Greeting {
    fn said(&self) -> String {
        let version = match self.version.as_str() {
            "" => String::new(),
            version => format!(", Gitea {version}"),
        };
        format!("{}{version}, {} ms", self.server, self.took.as_millis())
    }
}

/// Whatever it answers, it is there.
async fn greet(shared: &Shared, deadline: Deadline) -> Result<Greeting> {
    #[derive(serde::Deserialize)]
    struct Version {
        version: String,
    }
    let url = shared.settings.repo_prefix.api("version");
    let begun = Instant::now();
    let answer = deadline
        .limited(url.as_str(), shared.http.get_api(&url))
        .await?;
    let said: Option<Version> =
        serde_json::from_slice(answer.body.as_deref().unwrap_or_default()).ok();
    Ok(Greeting {
        server: url.origin().ascii_serialization(),
        version: said.map(|said| said.version).unwrap_or_default(),
        date: answer.date,
        took: begun.elapsed(),
    })
}

fn clock(server: Option<SystemTime>, took: Duration) -> Check {
    const NAME: &str = "clock";
    let Some(server) = server else {
        return Check::ok(
            NAME,
            "not compared: the server does not say what time it is",
        );
    };
    let now = SystemTime::now();
    let (skew, where_to) = match now.duration_since(server) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(behind) => (behind.duration(), "behind"),
    };
    // The server's is in whole seconds, and as old as the answer took.
    if skew <= Duration::from_secs(2) + took {
        return Check::ok(NAME, "as the server's");
    }
    let found = format!("{} s {where_to} the server's", skew.as_secs());
    match skew > SKEW {
        true => Check::warning(
            NAME,
            found,
            "set the machine's clock (timedatectl): certificates and tokens are judged by it",
        ),
        false => Check::ok(NAME, found),
    }
}

fn token(shared: &Shared, accepted: usize, refused: usize) -> Check {
    const NAME: &str = "token";
    let set = !shared.settings.token.is_empty();
    let plain = shared.settings.repo_prefix.as_str().starts_with("http://");
    match (set, accepted, refused) {
        (true, 0, 1..) => Check::problem(
            NAME,
            "set, and refused",
            "set MOLECULE_GITEA_TOKEN to one that may read the template repositories, or unset it \
             if they are public",
        ),
        (true, 0, 0) => Check::warning(NAME, "set; nobody has looked at it", "see gitea"),
        (true, _, _) if plain && !shared.settings.repo_prefix.is_on_this_machine() => {
            Check::warning(
                NAME,
                "set and accepted, and sent over plain http",
                "use an https:// address in MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX",
            )
        }
        (true, _, 0) => Check::ok(NAME, "set, and accepted"),
        (true, _, refused) => Check::warning(
            NAME,
            format!("set, and refused for {refused} of the repositories"),
            "give the token access to them as well",
        ),
        (false, 0, 1..) => Check::problem(
            NAME,
            "not set, and the server wants one",
            "set MOLECULE_GITEA_TOKEN to a token that may read the template repositories",
        ),
        (false, _, _) => Check::ok(NAME, "not set; public repositories need none"),
    }
}

fn mirror(runtime: &Runtime, head: Result<gitea::Head>) -> Check {
    let name = runtime.as_str();
    match head {
        Ok(head) => Check::ok(name, format!("{} at {}", head.branch, head.commit.short())),
        // A missing one is expected. That all are missing is said of the server.
        Err(error) if error.code == Code::RepoNotFound => {
            Check::ok(name, "no repository: cannot be built here")
        }
        Err(error) => Check::failed(name, error),
    }
}
