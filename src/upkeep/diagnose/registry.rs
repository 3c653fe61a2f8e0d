//! Whether the registry of a shared build cache answers this process. The builder may be elsewhere, and trust other
//! certificates.

use std::io;
use std::time::Duration;

use reqwest::StatusCode;
use rustls::Error as TlsError;
use url::{Host, Url};

use crate::error::causes;
use crate::net::http::Http;

/// Time limit of a connection. BuildKit has limits of its own for that, and for the TLS handshake.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// What a registry does with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// It answers, with this status. Without a login that is often 401.
    Status(StatusCode),
    /// There is no answer from it here, for this reason. A builder may be elsewhere, and trust other certificates.
    Unreachable(String),
}

/// Asks for the manifest of a cache, such as `registry.example/team/cache/hermes:linux-amd64`, as BuildKit does. Sends
/// neither a login nor the token. The caller limits the time: a registry that accepts the connection may never answer.
pub(super) async fn ask(http: &Http, reference: &str) -> Reply {
    let https = url("https", reference);
    let (reply, is_plain) = request(http, &https).await;
    match reply {
        // BuildKit uses plain HTTP there, unless its configuration says otherwise.
        Reply::Unreachable(_) if is_plain || is_loopback(&https) => {
            request(http, &url("http", reference)).await.0
        }
        reply => reply,
    }
}

/// Sends one request. Also returns whether the server answered a TLS handshake with something else.
async fn request(http: &Http, url: &Option<Url>) -> (Reply, bool) {
    let Some(url) = url else {
        return (
            Reply::Unreachable("its address is not valid".to_owned()),
            false,
        );
    };
    let unreachable = |why: String| (Reply::Unreachable(why), false);
    match tokio::time::timeout(CONNECT_LIMIT, http.connect(url)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            return unreachable("the connection was refused".to_owned());
        }
        Ok(Err(error)) => return unreachable(error.to_string()),
        Err(_) => return unreachable("the connection timed out".to_owned()),
    }
    match http.head(url).await {
        Ok(status) => (Reply::Status(status), false),
        Err(error) => {
            let tls = causes(&error).find_map(|cause| cause.downcast_ref::<TlsError>());
            let why = match (tls, causes(&error).last()) {
                (Some(tls), _) => format!("TLS failed: {tls}"),
                (None, Some(cause)) => cause.to_string(),
                (None, None) => error.to_string(),
            };
            let is_plain = matches!(tls, Some(TlsError::InvalidMessage(_)));
            (Reply::Unreachable(why), is_plain)
        }
    }
}

/// The address of a cache's manifest (OCI distribution specification, "Pulling manifests").
fn url(scheme: &str, reference: &str) -> Option<Url> {
    let (host, path) = reference.split_once('/')?;
    let (repository, tag) = path.rsplit_once(':')?;
    let host = match host {
        "docker.io" | "index.docker.io" => "registry-1.docker.io",
        host => host,
    };
    Url::parse(&format!(
        "{scheme}://{host}/v2/{repository}/manifests/{tag}"
    ))
    .ok()
}

/// Whether the host is this machine, by the rule of containerd's `MatchLocalhost`, which BuildKit uses.
fn is_loopback(url: &Option<Url>) -> bool {
    match url.as_ref().and_then(Url::host) {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener};
    use std::sync::{Arc, Mutex};
    use std::thread;

    use crate::options::{OptionName, Options};
    use crate::process::executor::block_on;

    const TOKEN: &str = "t0ken-of-4-nobody";

    /// What a server does with the first bytes of a connection.
    #[derive(Clone, Copy)]
    enum Does {
        Answer(&'static str),
        /// It answers a TLS handshake, and no request.
        AnswerTlsOnly(&'static str),
        Close,
        Nothing,
    }

    /// A server on loopback, and what it receives.
    fn server(does: Does) -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, received) = (listener.local_addr().unwrap(), Arc::default());
        let log: Arc<Mutex<Vec<u8>>> = Arc::clone(&received);
        thread::spawn(move || {
            let mut silent = Vec::new();
            for connection in listener.incoming() {
                let mut connection = connection.unwrap();
                let mut first = [0; 4096];
                let length = connection.read(&mut first).unwrap_or(0);
                log.lock().unwrap().extend_from_slice(&first[..length]);
                let is_tls = first[0] == 0x16;
                match does {
                    Does::Answer(answer) => connection.write_all(answer.as_bytes()).unwrap(),
                    Does::AnswerTlsOnly(answer) if is_tls => {
                        connection.write_all(answer.as_bytes()).unwrap();
                    }
                    Does::Close => {}
                    // The check of the connection sends nothing.
                    _ if length == 0 => {}
                    _ => silent.push(connection),
                }
            }
        });
        (address, received)
    }

    /// Asks with a token, whose server this address is too. `None` if there is no answer within the limit.
    fn asked_within(limit: Duration, address: SocketAddr) -> Option<Reply> {
        let mut options = Options::default();
        options.set(
            OptionName::RepoPrefix,
            &format!("http://{address}/org/tpl-"),
        );
        options.set(OptionName::Token, TOKEN);
        let settings = options.settings().unwrap();
        let http = Http::new(&settings.repo_prefix, &settings.token, &settings.network).unwrap();
        let reference = format!("{address}/team/cache/hermes:linux-amd64");
        block_on(async {
            tokio::time::timeout(limit, ask(&http, &reference))
                .await
                .ok()
        })
    }

    /// The answer of a server that gives one.
    fn asked(address: SocketAddr) -> Reply {
        asked_within(Duration::from_secs(10), address).unwrap()
    }

    const REFUSED: &str = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n";

    #[test]
    fn any_status_is_an_answer_and_the_token_is_not_sent() {
        let (address, received) = server(Does::Answer(REFUSED));
        assert_eq!(asked(address), Reply::Status(StatusCode::UNAUTHORIZED));
        let received = String::from_utf8_lossy(&received.lock().unwrap()).into_owned();
        let request = "HEAD /v2/team/cache/hermes/manifests/linux-amd64 HTTP/1.1\r\n";
        assert!(received.contains(request), "{received}");
        let lower = received.to_lowercase();
        assert!(!lower.contains("authorization"), "{received}");
        assert!(!received.contains(TOKEN), "{received}");
    }

    #[test]
    fn a_redirect_to_another_server_is_an_answer() {
        let login = "HTTP/1.1 307 Temporary Redirect\r\nContent-Length: 0\r\n\
                     Location: https://login.example/\r\n\r\n";
        let (address, _) = server(Does::Answer(login));
        assert_eq!(
            asked(address),
            Reply::Status(StatusCode::TEMPORARY_REDIRECT)
        );
    }

    #[test]
    fn a_registry_is_silent_only_if_it_accepts_and_does_not_answer() {
        for does in [Does::Nothing, Does::AnswerTlsOnly(REFUSED)] {
            let (address, _) = server(does);
            assert_eq!(asked_within(Duration::from_millis(500), address), None);
        }
        // Bound, so that no other test gets the port, and not listening.
        let bound = tokio::net::TcpSocket::new_v4().unwrap();
        bound.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let refused = Reply::Unreachable("the connection was refused".to_owned());
        assert_eq!(asked(bound.local_addr().unwrap()), refused);
        for does in [Does::Close, Does::Answer("rubbish")] {
            let (address, _) = server(does);
            let reply = asked(address);
            assert!(matches!(reply, Reply::Unreachable(_)), "{reply:?}");
        }
    }

    #[test]
    fn a_reference_names_a_manifest() {
        for (reference, address) in [
            (
                "registry.example/cache/hermes:linux-amd64",
                "https://registry.example/v2/cache/hermes/manifests/linux-amd64",
            ),
            (
                "registry.example:5000/a/b/hermes:linux-arm-v7",
                "https://registry.example:5000/v2/a/b/hermes/manifests/linux-arm-v7",
            ),
            (
                "docker.io/team/hermes:linux-amd64",
                "https://registry-1.docker.io/v2/team/hermes/manifests/linux-amd64",
            ),
        ] {
            assert_eq!(url("https", reference).unwrap().as_str(), address);
        }
        assert_eq!(url("https", "cache"), None);
    }
}
