//! The access to registries and networks: docker's logins, and the proxies.

use std::sync::Arc;

use crate::engine::Logins;
use crate::job::shared::Shared;
use crate::process::executor::blocking;
use crate::upkeep::diagnose::{Check, Deadline};

pub(super) async fn logins(shared: &Arc<Shared>, deadline: Deadline) -> Check {
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
