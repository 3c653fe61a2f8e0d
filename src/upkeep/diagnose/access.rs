//! The access to registries and networks: docker's logins, the proxies, and the shared cache.

use std::sync::Arc;

use crate::engine::{Engine, HINT_SHARED_CACHE, Logins};
use crate::error::Result;
use crate::job::shared::Shared;
use crate::names::platform::Platform;
use crate::options::PlatformChoice;
use crate::process::executor::blocking;
use crate::redact::Secret;
use crate::upkeep::diagnose::registry::{self, Reply};
use crate::upkeep::diagnose::{Check, Deadline};

/// Which logins there are. Builds work without them, so the worst outcome is a warning. If the engine cannot be found
/// without the file, the check of the engine says so.
pub(super) async fn logins(shared: &Arc<Shared>, deadline: Deadline) -> Check {
    const NAME: &str = "logins";
    let settings = shared.settings.engine.clone();
    let work = blocking(&shared.tasks, move || Logins::of(&settings));
    let logins = match deadline.limited("docker's config.json", work).await {
        Ok(logins) => logins,
        Err(error) => return Check::warning(NAME, error.message(), error.hint),
    };
    let mut found = Vec::new();
    if logins.stored > 0 {
        found.push(format!("{} in config.json", logins.stored));
    }
    let (found_helpers, missing): (Vec<_>, Vec<_>) =
        logins.helpers.into_iter().partition(|(_, at)| *at);
    let names = |helpers: Vec<(String, bool)>| {
        let names: Vec<String> = helpers.into_iter().map(|(name, _)| name).collect();
        names.join(", ")
    };
    if !found_helpers.is_empty() {
        found.push(format!("helpers: {}", names(found_helpers)));
    }
    if !missing.is_empty() {
        let missing = names(missing);
        found.push(format!("not in PATH: {missing}"));
        found.extend(logins.warnings);
        return Check::warning(
            NAME,
            found.join("; "),
            format!(
                "install {missing}, or remove it from credsStore and credHelpers in docker's config.json"
            ),
        );
    }
    if !logins.warnings.is_empty() {
        found.extend(logins.warnings);
        return Check::warning(NAME, found.join("; "), "fix docker's config.json");
    }
    match found.is_empty() {
        true => Check::ok(NAME, "none; public base images need none"),
        false => Check::ok(NAME, found.join("; ")),
    }
}

pub(super) fn proxy(shared: &Shared) -> Check {
    let network = &shared.settings.network;
    let proxy = |address: &Option<Secret>| Some(without_login(address.as_ref()?.expose()));
    let set = [
        ("HTTPS_PROXY", proxy(&network.https_proxy)),
        ("HTTP_PROXY", proxy(&network.http_proxy)),
        ("NO_PROXY", network.no_proxy.as_deref().map(without_login)),
    ];
    let set: Vec<String> = set
        .into_iter()
        .filter_map(|(name, value)| Some(format!("{name} {}", value?)))
        .collect();
    match set.is_empty() {
        true => Check::ok("proxy", "none"),
        false => Check::ok("proxy", set.join(", ")),
    }
}

/// The reply of the shared cache's registry; `None` if no cache is set or the client is offline.
pub(super) async fn registry(shared: &Shared, deadline: Deadline) -> Option<Result<Reply>> {
    let cache = shared.settings.engine.shared_cache.as_ref();
    let cache = cache.filter(|_| !shared.settings.offline)?;
    // Any reference will do: all are in the same registry.
    let runtime = shared.settings.runtimes.iter().next()?;
    let platform = match &shared.settings.platform {
        PlatformChoice::Fixed(platform) => platform.clone(),
        PlatformChoice::Native => Platform::parse(Platform::DEFAULT)?,
    };
    let reference = cache.of(runtime, &platform).reference();
    let reply = async { Ok(registry::ask(&shared.http, &reference).await) };
    Some(deadline.limited("its registry", reply).await)
}

/// Whether builds can use the shared cache, if there is one. Builds work without it, so the worst outcome is a warning.
pub(super) fn shared_cache(
    shared: &Shared,
    engine: Option<&Engine>,
    reply: Option<Result<Reply>>,
) -> Option<Check> {
    const NAME: &str = "shared cache";
    const REGISTRY: &str = "check the registry of MOLECULE_LOCAL_SHARED_CACHE, or unset it";
    let settings = &shared.settings.engine;
    let cache = settings.shared_cache.as_ref()?;
    let found = |what: &str| format!("{cache}: {what}");
    let own = engine.filter(|_| settings.builder.is_none());
    let restricted = own.and_then(|engine| engine.builder().restricts_shared_cache(cache.write));
    Some(match (restricted, reply) {
        (_, None) => Check::ok(NAME, found("not checked: MOLECULE_LOCAL_OFFLINE is set")),
        (_, Some(Ok(Reply::Unreachable(why)))) => Check::warning(
            NAME,
            found(&format!("its registry cannot be reached from here: {why}")),
            "check MOLECULE_LOCAL_SHARED_CACHE, the proxy variables and SSL_CERT_FILE; a builder may still reach it",
        ),
        (_, Some(Err(error))) => Check::warning(NAME, found(&error.message()), REGISTRY),
        (_, Some(Ok(Reply::Status(status)))) if status.is_server_error() => Check::warning(
            NAME,
            found(&format!("its registry answers {status}")),
            "read the registry's log",
        ),
        (Some(how), Some(Ok(Reply::Status(_)))) => {
            Check::warning(NAME, found(how), HINT_SHARED_CACHE)
        }
        (None, Some(Ok(Reply::Status(_)))) => Check::ok(NAME, found("its registry answers")),
    })
}

/// Hides the user information of a proxy address, which may have no scheme.
fn without_login(address: &str) -> String {
    match address.rsplit_once('@') {
        Some((login, host)) => match login.split_once("://") {
            Some((scheme, _)) => format!("{scheme}://***@{host}"),
            None => format!("***@{host}"),
        },
        None => address.to_owned(),
    }
}
