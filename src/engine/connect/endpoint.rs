//! Resolves the engine's endpoint, in the order of the docker CLI, and then in the well-known places of other engines.
//!
//! An option, `DOCKER_HOST`, `DOCKER_CONTEXT` or the CLI's current context names one endpoint, and no other is
//! tried. Several are tried only if no endpoint is named.

use std::fmt;
use std::path::Path;

use tokio_util::task::TaskTracker;

use crate::engine::connect::address::{self, Address, PLAIN_PORT};
use crate::engine::connect::config::{self, Config};
use crate::engine::connect::places::{self, DEFAULT_SOCKET, KnownSocket};
use crate::engine::connect::{docker_context, tls};
use crate::error::{Code, Result};
use crate::options::EngineSettings;
use crate::process::outside_file;

/// The hint for a docker context that cannot be used.
const HINT_CONTEXT: &str = "see docker context ls, or set DOCKER_HOST";

/// The address of an engine, and where it comes from.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) address: Address,
    /// `DOCKER_HOST`, a context, or the engine whose socket this is.
    pub(crate) named_by: String,
    /// Set if the address is a well-known socket.
    pub(in crate::engine) known_socket: Option<KnownSocket>,
}

impl Endpoint {
    pub(super) fn named(address: Address, named_by: &str, settings: &EngineSettings) -> Self {
        let known_socket = match &address {
            Address::Unix(socket) => places::at(settings, socket),
            Address::Ssh(_) | Address::Tcp { .. } => None,
        };
        Self {
            address,
            named_by: named_by.to_owned(),
            known_socket,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.address, self.named_by)
    }
}

/// The endpoints to try, in order. Docker's files are read on a blocking thread, with a time limit.
pub(crate) async fn resolve(
    settings: &EngineSettings,
    tasks: &TaskTracker,
) -> Result<Vec<Endpoint>> {
    let what = described(settings);
    let settings = settings.clone();
    let read = move || candidates(&settings);
    outside_file::within(tasks, Code::InvalidOption, &what, read).await
}

/// What [`candidates`] reads, for an error.
fn described(settings: &EngineSettings) -> String {
    let certificates = settings.cert_path.as_ref();
    match certificates.filter(|_| settings.host.is_some() && settings.tls_verify) {
        Some(folder) => format!("DOCKER_CERT_PATH ({})", folder.display()),
        None => config::described(settings),
    }
}

/// The endpoints to try, in order.
pub(in crate::engine) fn candidates(settings: &EngineSettings) -> Result<Vec<Endpoint>> {
    if let Some(host) = &settings.host {
        let tls = settings
            .tls_verify
            .then(|| {
                if let Some(folder) = &settings.cert_path {
                    return tls::from_folder(folder, "DOCKER_CERT_PATH", tls::HINT_FOLDER);
                }
                // As the docker CLI does.
                let folder = settings.config_dir.as_deref().unwrap_or(Path::new("/"));
                tls::from_folder(
                    folder,
                    "docker's configuration",
                    "put ca.pem, cert.pem and key.pem there, set DOCKER_CERT_PATH to their folder, or unset \
                     DOCKER_TLS_VERIFY",
                )
            })
            .transpose()?;
        // The docker CLI uses this port with TLS too.
        let address = address::parse(host, tls, PLAIN_PORT, "DOCKER_HOST", settings)?;
        return Ok(vec![Endpoint::named(address, "DOCKER_HOST", settings)]);
    }
    let (name, named_by, warning) = match &settings.context {
        Some(name) => (name.clone(), "DOCKER_CONTEXT", None),
        None => {
            let config = Config::load(settings)?;
            let warning = config.warnings.into_iter().next();
            (
                config.current_context,
                "the current docker context",
                warning,
            )
        }
    };
    if !name.is_empty() && name != docker_context::NO_CONTEXT {
        let (address, named_by) = docker_context::load(settings, &name, named_by, HINT_CONTEXT)?;
        return Ok(vec![Endpoint::named(address, &named_by, settings)]);
    }
    let mut places = well_known(settings);
    // It explains why the current context is not used.
    if let Some(why) = warning {
        for place in &mut places {
            place.named_by = format!("{}; {why}", place.named_by);
        }
    }
    Ok(places)
}

/// The places where engines listen.
fn well_known(settings: &EngineSettings) -> Vec<Endpoint> {
    let endpoint = |known: KnownSocket| Endpoint {
        address: Address::Unix(known.socket.clone()),
        // Another engine may have a link there.
        named_by: match known.socket.as_path() == Path::new(DEFAULT_SOCKET) {
            true => "the default socket".to_owned(),
            false => known.engine.to_owned(),
        },
        known_socket: Some(known),
    };
    places::all(settings).into_iter().map(endpoint).collect()
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::names::commit::hex;
    use crate::redact::mask_token;

    fn settings(config_dir: &Path) -> EngineSettings {
        EngineSettings {
            config_dir: Some(config_dir.to_owned()),
            home: Some("/home/u".into()),
            runtime_dir: Some("/run/user/1".into()),
            ..EngineSettings::default()
        }
    }

    fn addresses(settings: &EngineSettings) -> Vec<String> {
        candidates(settings)
            .unwrap()
            .iter()
            .map(|endpoint| endpoint.address.to_string())
            .collect()
    }

    fn write_context(config_dir: &Path, name: &str, host: &str) {
        let dir = config_dir
            .join("contexts/meta")
            .join(hex(&Sha256::digest(name)));
        std::fs::create_dir_all(&dir).unwrap();
        let meta = format!(r#"{{"Name":"{name}","Endpoints":{{"docker":{{"Host":"{host}"}}}}}}"#);
        std::fs::write(dir.join("meta.json"), meta).unwrap();
    }

    #[test]
    fn a_named_engine_is_the_only_one_tried() {
        let dir = tempfile::tempdir().unwrap();
        write_context(dir.path(), "work", "tcp://work:1234");
        write_context(dir.path(), "play", "unix:///play.sock");
        std::fs::write(
            dir.path().join("config.json"),
            r#"{"currentContext":"play","auths":{}}"#,
        )
        .unwrap();
        let mut settings = settings(dir.path());
        assert_eq!(addresses(&settings), ["unix:///play.sock"]);
        settings.context = Some("work".into());
        assert_eq!(addresses(&settings), ["tcp://work:1234"]);
        settings.host = Some("unix:///host.sock".into());
        assert_eq!(addresses(&settings), ["unix:///host.sock"]);
    }

    #[test]
    fn a_broken_configuration_is_reported_with_each_endpoint() {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path());
        std::fs::write(
            dir.path().join("config.json"),
            "{\"currentContext\":\"x\",}",
        )
        .unwrap();
        for endpoint in candidates(&settings).unwrap() {
            let shown = endpoint.to_string();
            assert!(shown.contains("config.json cannot be read"), "{shown}");
        }
    }

    #[test]
    fn missing_tls_files_are_reported_with_the_setting_that_names_them() {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = settings(dir.path());
        settings.host = Some("tcp://host:2376".into());
        settings.tls_verify = true;
        let file = dir.path().join("ca.pem");
        for (cert_path, named_by, hint) in [
            (None, "docker's configuration", "unset DOCKER_TLS_VERIFY"),
            (Some(dir.path()), "DOCKER_CERT_PATH", "put ca.pem"),
        ] {
            settings.cert_path = cert_path.map(Path::to_owned);
            let error = candidates(&settings).unwrap_err();
            let says = format!("{named_by} has no usable TLS file {}: ", file.display());
            assert!(error.message().starts_with(&says), "{error:?}");
            assert!(error.hint.contains(hint), "{error:?}");
        }
    }

    #[test]
    fn the_context_default_means_the_usual_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = settings(dir.path());
        let places = addresses(&settings);
        assert!(places.contains(&"unix:///home/u/.docker/run/docker.sock".to_owned()));
        settings.context = Some("default".into());
        assert_eq!(addresses(&settings), places);
    }

    #[test]
    fn an_invalid_address_is_an_error_with_a_hint() {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = settings(dir.path());
        for host in [
            "nonsense://host",
            "unix://relative",
            "./relative",
            "https://host",
            "fd://",
            "fd://3",
            "npipe:////./pipe/docker_engine",
            "tcp://me:secret@ho st:1",
            "tcp://host:65536",
            "tcp://host\u{7}:1",
            "tcp://[fe80::1%25eth0]:1",
            "ssh://host",
        ] {
            settings.host = Some(host.into());
            let error = candidates(&settings).unwrap_err();
            assert_eq!(error.code, Code::InvalidOption, "{host}");
            assert!(error.message().contains("DOCKER_HOST"));
            assert!(!error.message().contains("secret"));
            assert!(!error.hint.is_empty());
            // Masking the hint does not change it.
            assert_eq!(mask_token(&error.hint, ""), error.hint, "{host}");
        }
        settings.host = None;
        settings.context = Some("nowhere".into());
        assert!(
            candidates(&settings)
                .unwrap_err()
                .message()
                .contains("nowhere")
        );
    }
}
