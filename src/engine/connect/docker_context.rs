//! Docker contexts: named engines in the docker CLI's store.
//!
//! Libraries looked at: bollard 0.21 reads `DOCKER_HOST` but no contexts. xray-docker 0.1 finds the address of the
//! current context, but not its TLS files, and does not follow Go's rules for JSON.

use std::fmt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::engine::connect::address::{self, Address, PLAIN_PORT, TLS_PORT};
use crate::engine::connect::config::is_absent;
use crate::engine::connect::invalid;
use crate::engine::connect::tls;
use crate::engine::go_json::{self, Json, WrongType};
use crate::error::Result;
use crate::names::commit::hex;
use crate::options::EngineSettings;
use crate::process::{limits, outside_file};

/// The docker CLI's name for "no context".
pub(in crate::engine) const NO_CONTEXT: &str = "default";

/// The largest `meta.json` of a context. The docker CLI writes a few hundred bytes.
const MAX_META: usize = 1 << 20;

/// The address of a context, and where it comes from. The docker CLI stores it in
/// `contexts/meta/<sha256 of the name>/meta.json`, with the TLS files in `contexts/tls/<sha256 of the name>/docker`.
/// `named_by` says where the name of the context comes from, `hint` what to do about a context that cannot be used.
///
/// # Errors
///
/// [`Code::InvalidOption`](crate::error::Code::InvalidOption) if the context does not exist, cannot be read, or
/// skips TLS verification; [`Code::ProcessLimit`](crate::error::Code::ProcessLimit).
pub(in crate::engine) fn load(
    settings: &EngineSettings,
    name: &str,
    named_by: &str,
    hint: &'static str,
) -> Result<(Address, String)> {
    let named_by = format!("{named_by} {name:?}");
    let dir = settings.config_dir.as_ref().ok_or_else(|| {
        let what = "cannot be looked up: HOME and DOCKER_CONFIG are unset";
        invalid(&named_by, what).hint("set one of them")
    })?;
    let file = meta_file(dir, name);
    let text = outside_file::read(&file, MAX_META).map_err(|error| {
        if let Some(limit) = limits::reached(&error) {
            return limit;
        }
        let what = match is_absent(&error) {
            true => "does not exist",
            false => "cannot be read",
        };
        let why = format!("{what}: {}: {error}", file.display());
        invalid(&named_by, &why).hint(hint)
    })?;
    let unusable = |why: &dyn fmt::Display| {
        invalid(&named_by, &format!("{why}: {}", file.display())).hint(hint)
    };
    let meta = go_json::first(&text).map_err(|why| unusable(&format!("cannot be read ({why})")))?;
    let docker = meta.as_ref().map(docker_endpoint).transpose();
    let docker = docker.map_err(|why| unusable(&format!("has an endpoint that {why}")))?;
    let Some((host, skip_tls_verify)) = docker.flatten() else {
        return Err(unusable(&"has no docker endpoint"));
    };
    if skip_tls_verify {
        return Err(
            invalid(&named_by, "skips TLS verification, which libmol rejects")
                .hint("add the engine's ca.pem to the context"),
        );
    }
    let folder = dir.join("contexts/tls").join(id(name)).join("docker");
    let tls = folder
        .exists()
        .then(|| tls::from_folder(&folder, &named_by, tls::HINT_FOLDER))
        .transpose()?;
    let default_port = if tls.is_some() { TLS_PORT } else { PLAIN_PORT };
    let address = address::parse(&host, tls, default_port, &named_by, settings)?;
    Ok((address, named_by))
}

/// Whether there is a context of this name.
pub(in crate::engine) fn exists(settings: &EngineSettings, name: &str) -> bool {
    let dir = settings.config_dir.as_ref();
    dir.is_some_and(|dir| meta_file(dir, name).is_file())
}

fn meta_file(config_dir: &Path, name: &str) -> PathBuf {
    config_dir
        .join("contexts/meta")
        .join(id(name))
        .join("meta.json")
}

/// The name of a context's folders.
fn id(name: &str) -> String {
    hex(&Sha256::digest(name))
}

/// The address in a context's `meta.json`, and whether TLS verification is skipped.
fn docker_endpoint(meta: &Json) -> std::result::Result<Option<(String, bool)>, WrongType> {
    let endpoints = meta.map("Endpoints")?;
    let Some(docker) = endpoints.get("docker") else {
        return Ok(None);
    };
    Ok(Some((
        docker.text("Host")?.to_owned(),
        docker.flag("SkipTLSVerify")?,
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    fn settings(config_dir: &Path) -> EngineSettings {
        EngineSettings {
            config_dir: Some(config_dir.to_owned()),
            ..EngineSettings::default()
        }
    }

    #[test]
    fn a_context_is_read_as_the_docker_cli_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let load = || load(&settings(dir.path()), "work", "DOCKER_CONTEXT", "");
        let file = meta_file(dir.path(), "work");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        for (meta, expected) in [
            (
                r#"{"Endpoints":{"docker":{"Host":" h:1/p\n"}}}"#,
                "tcp://h:1/p",
            ),
            (
                r#"{"endpoints":{"docker":{"host":"tcp://h","skipTlsVerify":null}}}"#,
                "tcp://h:2375",
            ),
            (
                r#"{"Endpoints":{"docker":{"Host":"a","Host":"b"}},"Name":null} x"#,
                "tcp://b:2375",
            ),
            // Docker uses the default socket.
            (
                r#"{"Endpoints":{"docker":null}}"#,
                "unix:///var/run/docker.sock",
            ),
            (
                r#"{"Endpoints":{"docker":{"Host":null}}}"#,
                "unix:///var/run/docker.sock",
            ),
        ] {
            std::fs::write(&file, meta).unwrap();
            assert_eq!(load().unwrap().0.to_string(), expected, "{meta}");
        }
        for (meta, why) in [
            ("", "has no docker endpoint"),
            ("null", "has no docker endpoint"),
            (r#"{"Endpoints":{"Docker":{}}}"#, "has no docker endpoint"),
            (r#"{"Endpoints":{"docker":{"Host":5}}}"#, "not a string"),
            (r#"{"Endpoints":[]}"#, "not an object"),
            ("\u{feff}{}", "byte-order mark"),
            (
                r#"{"Endpoints":{"docker":{"Host":"h"}},}"#,
                "line 1, column 38",
            ),
            (
                r#"{"Endpoints":{"docker":{"HOST":"h","SKIPTLSVERIFY":true}}}"#,
                "skips TLS",
            ),
            (
                r#"{"Endpoints":{"docker":{"Host":"fd://"}}}"#,
                "fd:// address",
            ),
        ] {
            std::fs::write(&file, meta).unwrap();
            let error = load().unwrap_err();
            assert_eq!(error.code, Code::InvalidOption, "{meta}");
            assert!(error.message().contains(why), "{meta}: {error:?}");
            assert!(error.message().contains("work"), "{meta}: {error:?}");
        }
    }
}
