//! The template server: its repositories, the token, and the clock.

use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use crate::error::{Code, Result};
use crate::job::shared::Shared;
use crate::names::runtimes::Runtime;
use crate::net::gitea;
use crate::net::http::HINT_PLAIN_TEXT;
use crate::options::Settings;
use crate::printable::quoted;
use crate::upkeep::diagnose::{Check, Deadline, Status};

/// The tolerated clock difference. Certificates and tokens depend on the clock; their issuers allow for about this much.
const SKEW: Duration = Duration::from_secs(60);

/// The checks that need the template server.
pub(super) async fn server(shared: &Shared, deadline: Deadline) -> Vec<Check> {
    let runtimes = shared.settings.runtimes.iter();
    if shared.settings.offline {
        let found = "not checked: MOLECULE_LOCAL_OFFLINE is set";
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
    let none_exists = greeting.is_ok() && failed(Code::RepoNotFound) == heads.len();

    let no_clock =
        || Check::warning("clock", "unknown without an answer", "see gitea").because_of("gitea");
    // If the server never answers, the lookups fail with the same code: their checks name `gitea` as the cause.
    let unreachable = match &greeting {
        Err(error) if !any_answer => Some(error.code),
        _ => None,
    };
    let (gitea, clock) = match greeting {
        Err(error) if !any_answer => (Check::failed("gitea", error), no_clock()),
        Err(error) => (
            Check::warning("gitea", error.message(), error.hint),
            no_clock(),
        ),
        Ok(greeting) => (
            match none_exists {
                true => no_template(&shared.settings),
                false => Check::ok("gitea", greeting.to_string()),
            },
            clock(greeting.date, greeting.took),
        ),
    };
    let settings = &shared.settings;
    let refused = failed(Code::Auth);
    let mut token = token(
        !settings.token.is_empty(),
        settings.repo_prefix.is_plain_text(),
        found,
        refused,
    );
    if found + refused == 0 && token.status != Status::Ok && gitea.status != Status::Ok {
        token = token.because_of("gitea");
    }
    let no_access = token.status != Status::Ok;
    let mut checks = vec![gitea, token, clock];
    checks.extend(heads.into_iter().map(|(runtime, head)| {
        let cause = match head.as_ref().err().map(|error| error.code) {
            Some(Code::Auth) if no_access => "token",
            Some(Code::RepoNotFound) if none_exists && settings.branch.is_some() => "gitea",
            Some(code) if Some(code) == unreachable => "gitea",
            _ => "",
        };
        repository(settings, runtime, head).because_of(cause)
    }));
    checks
}

/// What a server reports about itself.
struct Greeting {
    server: String,
    version: String,
    date: Option<SystemTime>,
    took: Duration,
}

impl fmt::Display for Greeting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.server)?;
        if !self.version.is_empty() {
            write!(f, ", Gitea {}", self.version)?;
        }
        write!(f, ", {} ms", self.took.as_millis())
    }
}

/// Asks for the server's version. Any answer proves that the server can be reached.
async fn greet(shared: &Shared, deadline: Deadline) -> Result<Greeting> {
    #[derive(serde::Deserialize)]
    struct Version {
        version: String,
    }
    let url = shared.settings.repo_prefix.api("version");
    let started = Instant::now();
    let answer = deadline
        .limited(url.as_str(), shared.http.get_api(&url))
        .await?;
    let version: Option<Version> =
        serde_json::from_slice(answer.body.as_deref().unwrap_or_default()).ok();
    Ok(Greeting {
        server: url.origin().ascii_serialization(),
        version: version.map(|answer| answer.version).unwrap_or_default(),
        date: answer.date,
        took: started.elapsed(),
    })
}

fn clock(server: Option<SystemTime>, took: Duration) -> Check {
    const NAME: &str = "clock";
    let Some(server) = server else {
        return Check::ok(NAME, "not compared: the server does not report its time");
    };
    let now = SystemTime::now();
    let (skew, direction) = match now.duration_since(server) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(behind) => (behind.duration(), "behind"),
    };
    // The server's time is in whole seconds, and as old as the answer.
    if skew <= Duration::from_secs(2) + took {
        return Check::ok(NAME, "same as the server's");
    }
    let found = format!("{} s {direction} the server's", skew.as_secs());
    match skew > SKEW {
        true => Check::warning(
            NAME,
            found,
            "set the machine's clock (timedatectl): certificates and tokens depend on it",
        ),
        false => Check::ok(NAME, found),
    }
}

/// Whether the token works. `accepted` and `refused` are numbers of repositories, `plain` means http.
fn token(set: bool, plain: bool, accepted: usize, refused: usize) -> Check {
    const NAME: &str = "token";
    match (set, accepted, refused) {
        (true, 0, 1..) => Check::problem(
            NAME,
            "set, but refused",
            "set MOLECULE_GITEA_TOKEN to one that may read the template repositories, or unset it \
             if they are public",
        ),
        (true, 0, 0) => Check::warning(
            NAME,
            "set, but not checked by the server",
            "fix the problems of the server and the runtimes first",
        ),
        (true, _, 1..) => {
            let sent = if plain {
                ", and sent over plain http"
            } else {
                ""
            };
            Check::warning(
                NAME,
                format!("set, but refused for {refused} of the repositories{sent}"),
                "give the token access to them as well",
            )
        }
        (true, _, 0) if plain => Check::warning(
            NAME,
            "set and accepted, but sent over plain http",
            HINT_PLAIN_TEXT,
        ),
        (true, _, 0) => Check::ok(NAME, "set, and accepted"),
        (false, 0, 1..) => Check::problem(
            NAME,
            "not set, but the server requires one",
            gitea::HINT_TOKEN,
        ),
        (false, _, _) => Check::ok(NAME, "not set; public repositories need none"),
    }
}

/// The server answers, but no runtime has a template there, or none with the branch that is set.
fn no_template(settings: &Settings) -> Check {
    let prefix = settings.repo_prefix.as_str();
    let (what, check) = match &settings.branch {
        Some(branch) => (
            format!("with the branch {}", quoted(branch)),
            "MOLECULE_LOCAL_TEMPLATE_BRANCH and MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX",
        ),
        None => ("exists".to_owned(), "MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX"),
    };
    let access = match settings.token.is_empty() {
        true => "; for private repositories, set MOLECULE_GITEA_TOKEN",
        false => ", and whether the token in MOLECULE_GITEA_TOKEN may read the repositories",
    };
    Check::problem(
        "gitea",
        format!("no template repository {what}: {prefix}…"),
        format!("check {check}{access}"),
    )
}

fn repository(settings: &Settings, runtime: &Runtime, head: Result<gitea::Head>) -> Check {
    let name = runtime.as_str();
    match head {
        Ok(head) => {
            let head = format!("{} at {}", head.branch, head.commit.short());
            let found = match settings.pins.get(runtime) {
                Some(pin) => format!("pinned to {}; {head}", pin.short()),
                None => head,
            };
            Check::ok(name, found)
        }
        // A missing repository is expected, but not a missing branch that is set: the server gives the same answer for
        // both. If all are missing, the check of the server reports it.
        Err(error) if error.code == Code::RepoNotFound => match &settings.branch {
            None => Check::ok(name, "no repository: cannot be built here"),
            Some(_) => Check::warning(name, error.message(), error.hint),
        },
        Err(error) => Check::failed(name, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_some_repositories_refuse_is_reported_first() {
        let found = |plain, accepted, refused| token(true, plain, accepted, refused).found;
        assert_eq!(found(true, 0, 2), "set, but refused");
        let some = "set, but refused for 2 of the repositories";
        assert_eq!(found(false, 1, 2), some);
        assert_eq!(
            found(true, 1, 2),
            format!("{some}, and sent over plain http")
        );
        let all = "set and accepted, but sent over plain http";
        assert_eq!(found(true, 3, 0), all);
        assert_eq!(found(false, 3, 0), "set, and accepted");
    }
}
