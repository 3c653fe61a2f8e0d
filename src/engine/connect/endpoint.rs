//! Which engine? The docker CLI's order, and then the places where the others are found.
//!
//! An option, `DOCKER_HOST`, `DOCKER_CONTEXT` and the CLI's current context each decide alone: who
//! has named an engine does not want another one. Only where nothing is named are several tried.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use sha2::{Digest, Sha256};
use tokio_util::task::TaskTracker;
use url::Url;

use crate::engine::child;
use crate::engine::connect::config::{self, Config, is_absent};
use crate::engine::connect::ssh;
use crate::engine::go_json::{self, Json, WrongType};
use crate::error::{Code, Error, Result, chain};
use crate::names::reference::hex;
use crate::net::certificates;
use crate::options::EngineSettings;
use crate::process::limits;
use crate::process::outside_file;

/// The docker CLI's default.
pub(in crate::engine) const DEFAULT_SOCKET: &str = "/var/run/docker.sock";

/// The ports of an engine, without TLS and with it.
const PLAIN_PORT: u16 = 2375;
const TLS_PORT: u16 = 2376;

/// No address in it has user information: masked once more, by whoever shows it, it would be spoilt.
const HINT_ADDRESS: &str = "use unix:///path, tcp://host:port, ssh://host, or unset it";

/// What Go escapes in a path (`net/url`, `encodePath`).
const IN_PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b',')
    .remove(b':')
    .remove(b';')
    .remove(b'=')
    .remove(b'@');

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
        /// Without brackets.
        host: String,
        port: u16,
        /// What goes before every request: nothing, or `/a/path` as it stands in a URL.
        path: String,
        tls: Option<Arc<rustls::ClientConfig>>,
    },
}

impl Address {
    /// The `Host` header of every request: the address, because a proxy may have many hosts. For what has
    /// none, it is what the docker CLI sends (moby's `client.DummyHost`, docker/cli's `connhelper`).
    pub(in crate::engine) fn host_header(&self) -> String {
        match self {
            Address::Unix(_) => "api.moby.localhost".to_owned(),
            Address::Ssh(_) => "docker.example.com".to_owned(),
            Address::Tcp { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
            Address::Tcp { host, port, .. } => format!("{host}:{port}"),
        }
    }

    /// The path that goes before that of every request.
    pub(in crate::engine) fn base_path(&self) -> &str {
        match self {
            Address::Tcp { path, .. } => path,
            Address::Unix(_) | Address::Ssh(_) => "",
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix://{}", path.display()),
            Address::Ssh(destination) => destination.fmt(f),
            Address::Tcp { path, .. } => write!(f, "tcp://{}{path}", self.host_header()),
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
            // The docker CLI has this port with TLS too.
            address: address(host, tls, PLAIN_PORT, "DOCKER_HOST", settings)?,
            named_by: "DOCKER_HOST".to_owned(),
        }]);
    }
    let (name, named_by, complaint) = match &settings.context {
        Some(name) => (name.clone(), "DOCKER_CONTEXT", None),
        None => {
            let config = Config::load(settings)?;
            let complaint = config.complaints.into_iter().next();
            (
                config.current_context,
                "the current docker context",
                complaint,
            )
        }
    };
    if !name.is_empty() && name != NO_CONTEXT {
        return Ok(vec![context(settings, &name, named_by)?]);
    }
    let mut places = well_known(settings);
    // Else nobody would know why a current context does not count.
    if let Some(why) = complaint {
        for place in &mut places {
            place.named_by = format!("{}; {why}", place.named_by);
        }
    }
    Ok(places)
}

/// Where engines put their sockets: Docker, then rootless Docker, Docker Desktop, Colima and Podman,
/// as their documents say.
fn well_known(settings: &EngineSettings) -> Vec<Endpoint> {
    let mut places = vec![(PathBuf::from(DEFAULT_SOCKET), "the default socket")];
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

/// Reads an address as the docker CLI does (github.com/docker/cli, `opts/hosts.go`, and
/// `client.ParseHostURL`): without white space at its ends, with the defaults for what is left out.
fn address(
    value: &str,
    tls: Option<Arc<rustls::ClientConfig>>,
    default_port: u16,
    named_by: &str,
    settings: &EngineSettings,
) -> Result<Address> {
    let value = value.trim();
    let (scheme, rest) = match value.split_once("://") {
        Some(parts) => parts,
        None if value.is_empty() && tls.is_some() => ("tcp", "localhost:2376"),
        None if value.is_empty() => ("unix", ""),
        None if value.starts_with('/') || value.starts_with("./") => ("unix", value),
        None => ("tcp", value),
    };
    match scheme {
        "unix" if rest.is_empty() => Ok(Address::Unix(PathBuf::from(DEFAULT_SOCKET))),
        "unix" if rest.starts_with('/') => Ok(Address::Unix(PathBuf::from(rest))),
        "unix" => Err(
            invalid(named_by, "names a socket without a path from the root")
                .hint("use unix:///var/run/docker.sock, with three slashes"),
        ),
        "https" if tls.is_none() => Err(invalid(
            named_by,
            "is an https:// address without TLS files",
        )
        .hint("use tcp://host:2376 with DOCKER_TLS_VERIFY=1, or a docker context with its ca.pem")),
        "tcp" | "http" | "https" => {
            let (host, port, path) = tcp(rest, default_port).map_err(|why| {
                invalid(named_by, why).hint("use tcp://host:2375, or tcp://host:2376 with TLS")
            })?;
            Ok(Address::Tcp {
                host,
                port,
                path,
                tls,
            })
        }
        "ssh" => {
            let program = child::find("ssh", settings.search_path.as_deref()).ok_or_else(|| {
                invalid(
                    named_by,
                    "is an ssh:// address, and there is no ssh in PATH",
                )
                .hint("install an ssh client, or forward the socket yourself and use unix://")
            })?;
            let url = Url::parse(value).map_err(|_| "is not a valid URL");
            url.and_then(|url| ssh::Destination::parse(&url, program))
                .map(Address::Ssh)
                .map_err(|why| invalid(named_by, why).hint("use ssh://host, or with a user"))
        }
        "fd" => Err(invalid(
            named_by,
            "is an fd:// address, at which only a daemon can listen",
        )
        .hint(HINT_ADDRESS)),
        "npipe" => Err(
            invalid(named_by, "is an npipe:// address, which only Windows has").hint(HINT_ADDRESS),
        ),
        _ => Err(invalid(named_by, "is not a valid address of an engine").hint(HINT_ADDRESS)),
    }
}

/// Reads what follows `tcp://`: the host, the port, and the path in front of every request, encoded.
/// User information, a query and a fragment are ignored, as the docker CLI does. The error completes the
/// sentence "DOCKER_HOST …".
fn tcp(rest: &str, default_port: u16) -> std::result::Result<(String, u16, String), &'static str> {
    if rest.chars().any(|c| c.is_ascii_control()) {
        return Err("has a control character");
    }
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let authority = authority.rsplit('@').next().unwrap_or_default();
    let is_ipv6 = |host: &str| host.parse::<Ipv6Addr>().is_ok();
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((host, port)) if is_ipv6(host) && (port.is_empty() || port.starts_with(':')) => {
                (host, port.trim_start_matches(':'))
            }
            _ => return Err("has an IPv6 address that is not valid"),
        },
        None if is_ipv6(authority) => (authority, ""),
        None => authority.split_once(':').unwrap_or((authority, "")),
    };
    let host = match host {
        "" => "localhost".to_owned(),
        host if host.is_ascii() => host.to_owned(),
        host => match url::Host::parse(host) {
            Ok(host) => host.to_string(),
            Err(_) => return Err("has a host that is not valid"),
        },
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._~:".contains(c);
    if !host.chars().all(plain) {
        return Err("has a host that is not valid");
    }
    let port = match port {
        "" => default_port,
        port if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            port.parse().map_err(|_| "has a port that is not valid")?
        }
        _ => return Err("has a port that is not valid"),
    };
    Ok((host, port, cleaned(path)))
}

/// A path without empty parts, `.` and `..`, as Go's `path.Join` makes it, and encoded as Go does it.
fn cleaned(path: &str) -> String {
    let decoded: Vec<u8> = percent_decode_str(path).collect();
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in decoded.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let encode = |part| format!("/{}", percent_encode(part, IN_PATH));
    parts.into_iter().map(encode).collect()
}

/// A context as the docker CLI stores it: `contexts/meta/<sha256 of the name>/meta.json`, with the
/// TLS files in `contexts/tls/<sha256 of the name>/docker`.
fn context(settings: &EngineSettings, name: &str, named_by: &str) -> Result<Endpoint> {
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
        if let Some(limit) = limits::reached(&error) {
            return limit;
        }
        let what = match is_absent(&error) {
            true => "is not there",
            false => "cannot be read",
        };
        let why = format!("{what}: {}: {error}", file.display());
        invalid(&named_by, &why).hint(hint)
    })?;
    let wrong = |why: &dyn fmt::Display| {
        invalid(&named_by, &format!("{why}: {}", file.display())).hint(hint)
    };
    let meta = go_json::first(&text).map_err(|why| wrong(&format!("cannot be read ({why})")))?;
    let docker = meta.as_ref().map(docker_endpoint).transpose();
    let docker = docker.map_err(|why| wrong(&format!("has an endpoint that {why}")))?;
    let Some((host, skip_tls_verify)) = docker.flatten() else {
        return Err(wrong(&"names no engine"));
    };
    if skip_tls_verify {
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
    let default_port = if tls.is_some() { TLS_PORT } else { PLAIN_PORT };
    Ok(Endpoint {
        address: address(&host, tls, default_port, &named_by, settings)?,
        named_by,
    })
}

/// The engine of a context's `meta.json`, and whether its certificate is not to be looked at.
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
    let trusted = certificates(&ca)?;
    for certificate in &trusted {
        roots
            .add(certificate.clone())
            .map_err(|error| wrong(&ca, error.to_string()))?;
    }
    let builder = crate::net::tls::client(roots, trusted)?;
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
    use serde::Deserialize;

    use super::*;
    use crate::redact::mask_token;

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

    /// The address of this DOCKER_HOST.
    fn read(value: &str, tls: bool) -> Result<Address> {
        let tls = tls.then(|| {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(rustls::RootCertStore::empty());
            Arc::new(config.with_no_client_auth())
        });
        let settings = settings(Path::new("/nowhere"));
        address(value, tls, PLAIN_PORT, "DOCKER_HOST", &settings)
    }

    #[test]
    fn docker_host_is_read_as_the_docker_cli_reads_it() {
        #[derive(Deserialize)]
        struct Vectors {
            cases: Vec<Case>,
        }
        #[derive(Deserialize)]
        struct Case {
            value: String,
            tls: bool,
            #[serde(default)]
            error: bool,
            socket: Option<String>,
            header: Option<String>,
            path: Option<String>,
        }
        let text = include_str!("../../../tests/vectors/docker_host.json");
        let vectors: Vectors = serde_json::from_str(text).unwrap();
        for case in vectors.cases {
            let what = format!("{:?}, TLS: {}", case.value, case.tls);
            let address = read(&case.value, case.tls);
            assert_eq!(address.is_err(), case.error, "{what}");
            let Ok(address) = address else { continue };
            if let Some(socket) = case.socket {
                assert_eq!(address.to_string(), socket, "{what}");
            }
            assert_eq!(Some(address.host_header()), case.header, "{what}");
            let path = format!("{}/v1.41/version", address.base_path());
            assert_eq!(Some(path), case.path, "{what}");
            // What is shown can be set again, and is the same engine.
            let shown = address.to_string();
            let again = read(&shown, case.tls).unwrap();
            assert_eq!(again.to_string(), shown, "{what}");
        }
    }

    #[test]
    fn what_newer_docker_takes_and_what_can_mean_one_thing_only_is_taken() {
        for (value, shown) in [
            ("/run/engine.sock", "unix:///run/engine.sock"),
            ("[::1]", "tcp://[::1]:2375"),
            ("tcp://[::1]/p", "tcp://[::1]:2375/p"),
            ("http://host", "tcp://host:2375"),
            ("tcp://h\u{f6}st:1/\u{fc}", "tcp://xn--hst-sna:1/%C3%BC"),
        ] {
            assert_eq!(read(value, false).unwrap().to_string(), shown, "{value}");
        }
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
    fn a_context_is_read_as_docker_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = settings(dir.path());
        settings.context = Some("work".into());
        let folder = dir
            .path()
            .join("contexts/meta")
            .join(hex(&Sha256::digest("work")));
        std::fs::create_dir_all(&folder).unwrap();
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
            // What docker takes for the engine of this machine.
            (
                r#"{"Endpoints":{"docker":null}}"#,
                "unix:///var/run/docker.sock",
            ),
            (
                r#"{"Endpoints":{"docker":{"Host":null}}}"#,
                "unix:///var/run/docker.sock",
            ),
        ] {
            std::fs::write(folder.join("meta.json"), meta).unwrap();
            assert_eq!(names(&settings), [expected], "{meta}");
        }
        for (meta, why) in [
            ("", "names no engine"),
            ("null", "names no engine"),
            (r#"{"Endpoints":{"Docker":{}}}"#, "names no engine"),
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
            std::fs::write(folder.join("meta.json"), meta).unwrap();
            let error = candidates(&settings).unwrap_err();
            assert_eq!(error.code, Code::InvalidOption, "{meta}");
            assert!(error.message.contains(why), "{meta}: {error:?}");
            assert!(error.message.contains("work"), "{meta}: {error:?}");
        }
    }

    #[test]
    fn a_broken_configuration_names_no_context_and_is_told() {
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
            assert!(error.message.contains("DOCKER_HOST"));
            assert!(!error.message.contains("secret"));
            assert!(!error.hint.is_empty());
            // Whoever masks the whole error once more does not spoil it.
            assert_eq!(mask_token(&error.hint, ""), error.hint, "{host}");
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
