//! Addresses of engines, as in `DOCKER_HOST` and in docker contexts.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use tokio_util::task::TaskTracker;
use url::Url;

use crate::engine::child;
use crate::engine::connect::invalid;
use crate::engine::connect::places::DEFAULT_SOCKET;
use crate::engine::connect::ssh;
use crate::engine::connect::tls::Tls;
use crate::error::Result;
use crate::options::EngineSettings;

/// The default ports of an engine, without and with TLS.
pub(in crate::engine) const PLAIN_PORT: u16 = 2375;
pub(super) const TLS_PORT: u16 = 2376;

/// The addresses have no user information, so that masking the hint does not change it.
const HINT_ADDRESS: &str = "use unix:///path, tcp://host:port, ssh://host, or unset it";

/// The characters that Go escapes in a path (`net/url`, `encodePath`).
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

/// How to connect to an engine.
#[derive(Clone)]
pub(crate) enum Address {
    Unix(PathBuf),
    Ssh(ssh::Destination),
    Tcp {
        /// Without brackets.
        host: String,
        port: u16,
        /// The prefix of every request's path: empty, or `/a/path`, percent-encoded.
        path: String,
        tls: Option<Tls>,
    },
}

impl Address {
    /// The `Host` header of every request. For TCP it is the address, because a proxy may serve several hosts.
    /// Otherwise it is what the docker CLI sends (moby's `client.DummyHost`, docker/cli's `connhelper`).
    pub(in crate::engine) fn host_header(&self) -> String {
        match self {
            Address::Unix(_) => "api.moby.localhost".to_owned(),
            Address::Ssh(_) => "docker.example.com".to_owned(),
            Address::Tcp { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
            Address::Tcp { host, port, .. } => format!("{host}:{port}"),
        }
    }

    /// Has `tasks` track the programs that are started for connections.
    pub(in crate::engine) fn track_in(&mut self, tasks: &TaskTracker) {
        if let Address::Ssh(destination) = self {
            destination.track_in(tasks);
        }
    }

    /// The prefix of every request's path.
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

/// Parses an address as the docker CLI does (github.com/docker/cli, `opts/hosts.go`, and
/// `client.ParseHostURL`): white space at both ends is ignored, and missing parts have defaults.
pub(in crate::engine) fn parse(
    value: &str,
    tls: Option<Tls>,
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
        "unix" => Err(invalid(named_by, "has a socket path that is not absolute")
            .hint("use unix:///var/run/docker.sock, with three slashes")),
        "https" if tls.is_none() => Err(invalid(
            named_by,
            "is an https:// address without TLS files",
        )
        .hint("use tcp://host:2376 with DOCKER_TLS_VERIFY=1, or a docker context with its ca.pem")),
        "tcp" | "http" | "https" => {
            let (host, port, path) = parse_tcp(rest, default_port).map_err(|why| {
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
                    "is an ssh:// address, but there is no ssh in PATH",
                )
                .hint("install an ssh client, or forward the socket yourself and use unix://")
            })?;
            let url = Url::parse(value).map_err(|_| "is not a valid URL");
            url.and_then(|url| ssh::Destination::parse(&url, program))
                .map(Address::Ssh)
                .map_err(|why| {
                    invalid(named_by, why)
                        .hint("use ssh://host; a user name goes before the host, with an @")
                })
        }
        "fd" => Err(
            invalid(named_by, "is an fd:// address, which only a daemon can use")
                .hint(HINT_ADDRESS),
        ),
        "npipe" => Err(invalid(
            named_by,
            "is an npipe:// address, which exists only on Windows",
        )
        .hint(HINT_ADDRESS)),
        _ => Err(invalid(named_by, "is not a valid engine address").hint(HINT_ADDRESS)),
    }
}

/// Parses the part after `tcp://`: the host, the port, and the percent-encoded prefix of every request's path.
/// User information, a query and a fragment are ignored, as in the docker CLI. The error completes the sentence
/// "DOCKER_HOST …".
fn parse_tcp(
    rest: &str,
    default_port: u16,
) -> std::result::Result<(String, u16, String), &'static str> {
    if rest.chars().any(|c| c.is_ascii_control()) {
        return Err("contains a control character");
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
            _ => return Err("has an invalid IPv6 address"),
        },
        None if is_ipv6(authority) => (authority, ""),
        None => authority.split_once(':').unwrap_or((authority, "")),
    };
    let host = match host {
        "" => "localhost".to_owned(),
        host if host.is_ascii() => host.to_owned(),
        host => match url::Host::parse(host) {
            Ok(host) => host.to_string(),
            Err(_) => return Err("has an invalid host"),
        },
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._~:".contains(c);
    if !host.chars().all(plain) {
        return Err("has an invalid host");
    }
    let port = match port {
        "" => default_port,
        port if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            port.parse().map_err(|_| "has an invalid port")?
        }
        _ => return Err("has an invalid port"),
    };
    Ok((host, port, clean_path(path)))
}

/// The path without empty parts, `.` and `..` (Go's `path.Join`), percent-encoded like in Go.
fn clean_path(path: &str) -> String {
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde::Deserialize;

    use super::*;

    /// The address that DOCKER_HOST means.
    fn parse(value: &str, tls: bool) -> Result<Address> {
        let tls = tls.then(|| {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(rustls::RootCertStore::empty());
            Tls {
                config: Arc::new(config.with_no_client_auth()),
                server_name: None,
            }
        });
        super::parse(
            value,
            tls,
            PLAIN_PORT,
            "DOCKER_HOST",
            &EngineSettings::default(),
        )
    }

    #[test]
    fn docker_host_is_parsed_as_in_the_docker_cli() {
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
            let address = parse(&case.value, case.tls);
            assert_eq!(address.is_err(), case.error, "{what}");
            let Ok(address) = address else { continue };
            if let Some(socket) = case.socket {
                assert_eq!(address.to_string(), socket, "{what}");
            }
            assert_eq!(Some(address.host_header()), case.header, "{what}");
            let path = format!("{}/v1.41/version", address.base_path());
            assert_eq!(Some(path), case.path, "{what}");
            // The displayed address, used as DOCKER_HOST, means the same engine.
            let shown = address.to_string();
            let again = parse(&shown, case.tls).unwrap();
            assert_eq!(again.to_string(), shown, "{what}");
        }
    }

    #[test]
    fn addresses_that_docker_rejects_or_parses_differently_are_accepted() {
        for (value, shown) in [
            ("/run/engine.sock", "unix:///run/engine.sock"),
            ("[::1]", "tcp://[::1]:2375"),
            ("tcp://[::1]/p", "tcp://[::1]:2375/p"),
            ("http://host", "tcp://host:2375"),
            ("tcp://h\u{f6}st:1/\u{fc}", "tcp://xn--hst-sna:1/%C3%BC"),
        ] {
            assert_eq!(parse(value, false).unwrap().to_string(), shown, "{value}");
        }
    }
}
