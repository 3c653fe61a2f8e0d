//! Which engine? The docker CLI's order, and then the places where the others are found.
//!
//! An option, `DOCKER_HOST`, `DOCKER_CONTEXT` and the CLI's current context each decide alone: who
//! has named an engine does not want another one. Only where nothing is named are several tried.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio_util::task::TaskTracker;
use url::Url;

use super::config::{self, Config, is_absent};
use super::{child, ssh};
use crate::certificates;
use crate::error::{Code, Error, Result, chain};
use crate::image::hex;
use crate::options::EngineSettings;
use crate::outside_file;

/// The docker CLI's name for "no context".
const NO_CONTEXT: &str = "default";

/// The largest `meta.json` of a context. The docker CLI writes some hundred bytes.
const MAX_META: usize = 1 << 20;

/// An engine's address, and who named it.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) address: Address,
    /// `DOCKER_HOST`, a context, a well-known place.
    pub(crate) named_by: String,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.address, self.named_by)
    }
}

/// How to connect.
#[derive(Clone)]
pub(crate) enum Address {
    Unix(PathBuf),
    Ssh(ssh::Destination),
    Tcp {
        host: String,
        port: u16,
        tls: Option<Arc<rustls::ClientConfig>>,
    },
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix://{}", path.display()),
            Address::Ssh(destination) => destination.fmt(f),
            Address::Tcp { host, port, .. } => write!(f, "tcp://{host}:{port}"),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The endpoints to try, in order. Docker's files are read on a thread that may wait.
pub(crate) async fn in_time(
    settings: &EngineSettings,
    tasks: &TaskTracker,
) -> Result<Vec<Endpoint>> {
    let what = described(settings);
    let settings = settings.clone();
    let read = move || candidates(&settings);
    outside_file::within(tasks, Code::InvalidOption, &what, read).await
}

/// What [`candidates`] reads.
fn described(settings: &EngineSettings) -> String {
    let certificates = settings.cert_path.as_ref();
    match certificates.filter(|_| settings.host.is_some() && settings.tls_verify) {
        Some(folder) => format!("DOCKER_CERT_PATH ({})", folder.display()),
        None => config::described(settings),
    }
}

/// The endpoints to try, in order.
fn candidates(settings: &EngineSettings) -> Result<Vec<Endpoint>> {
    if let Some(host) = &settings.host {
        let tls = settings
            .tls_verify
            .then(|| {
                let dir = settings
                    .cert_path
                    .as_deref()
                    .or(settings.config_dir.as_deref());
                tls(dir.unwrap_or(Path::new("/")), "DOCKER_CERT_PATH")
            })
            .transpose()?;
        return Ok(vec![Endpoint {
            address: address(host, tls, "DOCKER_HOST", settings)?,
            named_by: "DOCKER_HOST".to_owned(),
        }]);
    }
    if let Some((name, named_by)) = context_name(settings)? {
        return Ok(vec![context(settings, &name, named_by)?]);
    }
    Ok(well_known(settings))
}

/// Where engines put their sockets: Docker, then rootless Docker, Docker Desktop, Colima and Podman,
/// as their documents say.
fn well_known(settings: &EngineSettings) -> Vec<Endpoint> {
    let mut places = vec![(PathBuf::from("/var/run/docker.sock"), "the default socket")];
    if let Some(runtime) = &settings.runtime_dir {
        places.push((runtime.join("docker.sock"), "rootless Docker"));
    }
    if let Some(home) = &settings.home {
        places.push((home.join(".docker/run/docker.sock"), "Docker Desktop"));
        places.push((home.join(".docker/desktop/docker.sock"), "Docker Desktop"));
        places.push((home.join(".colima/default/docker.sock"), "Colima"));
    }
    if let Some(runtime) = &settings.runtime_dir {
        places.push((runtime.join("podman/podman.sock"), "rootless Podman"));
    }
    places.push((PathBuf::from("/run/podman/podman.sock"), "Podman"));
    places
        .into_iter()
        .map(|(path, named_by)| Endpoint {
            address: Address::Unix(path),
            named_by: named_by.to_owned(),
        })
        .collect()
}

fn invalid(named_by: &str, what: &str) -> Error {
    Error::new(Code::InvalidOption, format!("{named_by} {what}"))
}

fn address(
    host: &str,
    tls: Option<Arc<rustls::ClientConfig>>,
    named_by: &str,
    settings: &EngineSettings,
) -> Result<Address> {
    if let Some(path) = host.strip_prefix("unix://") {
        if path.starts_with('/') {
            return Ok(Address::Unix(PathBuf::from(path)));
        }
        return Err(
            invalid(named_by, "names a socket without a path from the root")
                .hint("use unix:///var/run/docker.sock, with three slashes"),
        );
    }
    let url = Url::parse(host).ok();
    match url.as_ref().map(Url::scheme) {
        Some("tcp" | "http" | "https") => {
            let url = url.as_ref();
            let name = url.and_then(Url::host_str).filter(|name| !name.is_empty());
            let name = name.ok_or_else(|| {
                invalid(named_by, "has no host")
                    .hint("use tcp://host:2375, or tcp://host:2376 with TLS")
            })?;
            // As the docker CLI has it: 2376 with TLS, 2375 without.
            let default = if tls.is_some() { 2376 } else { 2375 };
            Ok(Address::Tcp {
                host: name.trim_matches(['[', ']']).to_owned(),
                port: url.and_then(Url::port).unwrap_or(default),
                tls,
            })
        }
        Some("ssh") => {
            let program = child::find("ssh", settings.search_path.as_deref()).ok_or_else(|| {
                invalid(
                    named_by,
                    "is an ssh:// address, and there is no ssh in PATH",
                )
                .hint("install an ssh client, or forward the socket yourself and use unix://")
            })?;
            url.as_ref()
                .map_or(Err("is no URL"), |url| {
                    ssh::Destination::parse(url, program)
                })
                .map(Address::Ssh)
                .map_err(|why| invalid(named_by, why).hint("use ssh://user@host"))
        }
        _ => Err(invalid(named_by, "is no address of an engine")
            .hint("use unix:///path, tcp://host:port, ssh://user@host, or unset it")),
    }
}

fn context_name(settings: &EngineSettings) -> Result<Option<(String, &'static str)>> {
    if let Some(name) = &settings.context {
        return Ok((name != NO_CONTEXT).then(|| (name.clone(), "DOCKER_CONTEXT")));
    }
    let name = Config::load(settings)?.current_context;
    let named = !name.is_empty() && name != NO_CONTEXT;
    Ok(named.then_some((name, "the current docker context")))
}

/// A context as the docker CLI stores it: `contexts/meta/<sha256 of the name>/meta.json`, with the
/// TLS files in `contexts/tls/<sha256 of the name>/docker`.
fn context(settings: &EngineSettings, name: &str, named_by: &str) -> Result<Endpoint> {
    #[derive(Deserialize)]
    struct Meta {
        #[serde(rename = "Endpoints")]
        endpoints: Endpoints,
    }
    #[derive(Deserialize)]
    struct Endpoints {
        docker: Option<Docker>,
    }
    #[derive(Deserialize)]
    struct Docker {
        #[serde(rename = "Host")]
        host: String,
        #[serde(default, rename = "SkipTLSVerify")]
        skip_tls_verify: bool,
    }
    let named_by = format!("{named_by} {name:?}");
    let store = settings
        .config_dir
        .as_ref()
        .ok_or_else(|| {
            invalid(
                &named_by,
                "cannot be looked up: HOME and DOCKER_CONFIG are unset",
            )
        })?
        .join("contexts");
    let id = hex(&Sha256::digest(name));
    let file = store.join("meta").join(&id).join("meta.json");
    let hint = "see docker context ls, or set DOCKER_HOST";
    let text = outside_file::read(&file, MAX_META).map_err(|error| {
        let what = match is_absent(&error) {
            true => "is not there",
            false => "cannot be read",
        };
        let why = format!("{what}: {}: {error}", file.display());
        invalid(&named_by, &why).hint(hint)
    })?;
    let docker = serde_json::from_slice::<Meta>(&text)
        .ok()
        .and_then(|meta| meta.endpoints.docker)
        .ok_or_else(|| {
            invalid(&named_by, &format!("names no engine: {}", file.display())).hint(hint)
        })?;
    if docker.skip_tls_verify {
        return Err(invalid(
            &named_by,
            "skips TLS verification, which this version refuses",
        )
        .hint("add the engine's ca.pem to the context"));
    }
    let certificates = store.join("tls").join(&id).join("docker");
    let tls = certificates
        .exists()
        .then(|| tls(&certificates, &named_by))
        .transpose()?;
    Ok(Endpoint {
        address: address(&docker.host, tls, &named_by, settings)?,
        named_by,
    })
}

/// TLS with the files that the docker CLI uses: `ca.pem`, and `cert.pem` with `key.pem` if the
/// engine wants to know its client.
fn tls(dir: &Path, named_by: &str) -> Result<Arc<rustls::ClientConfig>> {
    let wrong = |file: &Path, why: String| {
        invalid(
            named_by,
            &format!("has no usable TLS file {}: {why}", file.display()),
        )
        .hint("put ca.pem, cert.pem and key.pem there")
    };
    let certificates = |file: &Path| certificates::of_file(file).map_err(|why| wrong(file, why));
    let ca = dir.join("ca.pem");
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates(&ca)? {
        roots
            .add(certificate)
            .map_err(|error| wrong(&ca, error.to_string()))?;
    }
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::ring::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .map_err(|error| Error::new(Code::Internal, format!("TLS cannot be set up: {error}")))?
    .with_root_certificates(roots);
    let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    let config = if cert.exists() || key.exists() {
        let private = certificates::key_of_file(&key).map_err(|why| wrong(&key, why))?;
        builder
            .with_client_auth_cert(certificates(&cert)?, private)
            .map_err(|error| wrong(&key, chain(&error)))?
    } else {
        builder.with_no_client_auth()
    };
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(config_dir: &Path) -> EngineSettings {
        EngineSettings {
            host: None,
            context: None,
            config_dir: Some(config_dir.to_owned()),
            tls_verify: false,
            cert_path: None,
            classic_builder: false,
            home: Some("/home/u".into()),
            runtime_dir: Some("/run/user/1".into()),
            search_path: None,
        }
    }

    fn names(settings: &EngineSettings) -> Vec<String> {
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
        assert_eq!(names(&settings), ["unix:///play.sock"]);
        settings.context = Some("work".into());
        assert_eq!(names(&settings), ["tcp://work:1234"]);
        settings.host = Some("unix:///host.sock".into());
        assert_eq!(names(&settings), ["unix:///host.sock"]);
    }

    #[test]
    fn without_a_name_the_well_known_places_are_tried_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = settings(dir.path());
        let places = names(&settings);
        assert_eq!(places[0], "unix:///var/run/docker.sock");
        assert_eq!(places.last().unwrap(), "unix:///run/podman/podman.sock");
        assert!(places.contains(&"unix:///home/u/.docker/run/docker.sock".to_owned()));
        settings.context = Some("default".into());
        assert_eq!(names(&settings), places);
    }

    #[test]
    fn what_is_no_address_is_an_error_that_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = settings(dir.path());
        for host in ["", "nonsense", "unix://relative", "tcp://", "ssh://host"] {
            settings.host = Some(host.into());
            let error = candidates(&settings).unwrap_err();
            assert_eq!(error.code, Code::InvalidOption, "{host}");
            assert!(error.message.contains("DOCKER_HOST"));
            assert!(!error.hint.is_empty());
        }
        settings.host = None;
        settings.context = Some("nowhere".into());
        assert!(
            candidates(&settings)
                .unwrap_err()
                .message
                .contains("nowhere")
        );
    }
}
