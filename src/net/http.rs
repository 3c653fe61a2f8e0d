//! The HTTP client for the template server. The API and the fetch share its connections, proxies, certificates and
//! token rules. `mol doctor` also asks the registry of a shared cache with it, without the token.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use hyper_util::client::proxy::matcher::Matcher;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, DATE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{StatusCode, dns, redirect};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use url::{Origin, Url};
use zeroize::Zeroizing;

use crate::error::{Code, Error, Result, Retry, causes, chain};
use crate::net::tls;
use crate::options::{NetworkSettings, RepoPrefix};
use crate::process::executor;
use crate::process::limits;
use crate::redact::{Masker, Secret};

/// Upper bound of an API answer, in bytes (promise P9). A branch has about 2 KiB.
pub(crate) const MAX_ANSWER: usize = 64 * 1024;

/// Time limit of a connection attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Time limit of a complete API answer.
const API_TIMEOUT: Duration = Duration::from_secs(30);

/// Time limit for reading the reason of a refusal, which is only shown.
const REASON_TIMEOUT: Duration = Duration::from_secs(2);

/// Upper bound of the shown part of a server's reason, in bytes. Gitea's reasons have about 120.
const MAX_REASON: usize = 400;

/// Upper bound of API requests at once. Ten thousand callers must not open ten thousand connections: a process has
/// about a thousand file descriptors, and servers have limits too.
const API_REQUESTS: usize = 32;

/// Upper bound of redirects, so that a loop ends.
const MAX_REDIRECTS: usize = 10;

/// A client for one template server.
#[derive(Clone, Debug)]
pub(crate) struct Http {
    client: reqwest::Client,
    /// The only origin that gets the token: scheme, host and port of the repository prefix.
    origin: Origin,
    is_plain_text: bool,
    token: Arc<Secret>,
    /// Which proxy a request takes, as reqwest decides with the same code.
    proxies: Arc<Matcher>,
    /// Whether the warning about a token in plain text was given.
    warned: Arc<AtomicBool>,
    /// Limits concurrent API requests.
    slots: Arc<Semaphore>,
}

/// An answer of the API.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// Whether the status allows another attempt.
    pub(crate) retry: Retry,
    /// The server's time (RFC 9110, section 6.6.1).
    pub(crate) date: Option<SystemTime>,
    /// The body; `None` if it is larger than [`MAX_ANSWER`].
    pub(crate) body: Option<Bytes>,
    /// The server's reason for a refusal, masked and truncated; empty if it gives none.
    pub(crate) reason: String,
}

impl Http {
    pub(crate) fn new(
        prefix: &RepoPrefix,
        token: &Secret,
        network: &NetworkSettings,
    ) -> Result<Self> {
        let server = prefix.server();
        let tls = tls::config(server, network)?;
        let has_token = !token.is_empty();
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("libmol/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .referer(false)
            .dns_resolver(Resolver)
            // Otherwise reqwest reads the proxies from the environment.
            .no_proxy()
            .redirect(redirect::Policy::custom(move |attempt| {
                follow(attempt, has_token)
            }))
            .tls_backend_preconfigured(tls);
        let no_proxy = no_proxy(network);
        for (name, scheme, address) in [
            ("HTTPS_PROXY", "https", &network.https_proxy),
            ("HTTP_PROXY", "http", &network.http_proxy),
        ] {
            if let Some(address) = address {
                builder = builder.proxy(proxy(name, scheme, address.expose(), &no_proxy)?);
            }
        }
        let address = |proxy: &Option<Secret>| {
            let address = proxy.as_ref().map(Secret::expose);
            address.unwrap_or_default().to_owned()
        };
        let client = builder.build().map_err(|error| {
            Error::new(
                Code::Internal,
                format!("the HTTP client cannot be set up: {}", chain(&error)),
            )
        })?;
        Ok(Self {
            client,
            origin: server.origin(),
            is_plain_text: prefix.is_plain_text(),
            token: Arc::new(token.clone()),
            proxies: Arc::new(
                Matcher::builder()
                    .https(address(&network.https_proxy))
                    .http(address(&network.http_proxy))
                    .no(no_proxy)
                    .build(),
            ),
            warned: Arc::default(),
            slots: Arc::new(Semaphore::new(API_REQUESTS)),
        })
    }

    /// The token, if it may be sent to this address: only to the origin of the repository prefix.
    fn token_for(&self, url: &Url) -> Option<&str> {
        (!self.token.is_empty() && url.origin() == self.origin).then(|| self.token.expose())
    }

    /// Whether the text contains the token, in any spelling.
    pub(crate) fn token_is_in(&self, text: &str) -> bool {
        Masker::new(&self.token).finds_token_in(text)
    }

    /// The server, if the token is sent to another machine without TLS. Only the first call returns it, so that there is
    /// one warning.
    pub(crate) fn take_plain_text_warning(&self) -> Option<String> {
        (self.is_plain_text && !self.token.is_empty() && !self.warned.swap(true, Ordering::Relaxed))
            .then(|| self.origin.ascii_serialization())
    }

    /// Sends a request to the API, and reads the whole answer.
    pub(crate) async fn get_api(&self, url: &Url) -> Result<Answer> {
        // Never closed, so this cannot fail.
        let _slot = self.slots.acquire().await;
        // Boxed after acquiring, so that waiting futures stay small.
        Box::pin(self.get(url)).await
    }

    async fn get(&self, url: &Url) -> Result<Answer> {
        let mut request = self
            .client
            .get(url.clone())
            .header("Accept", "application/json");
        if let Some(token) = self.token_for(url) {
            request = request.header("Authorization", authorization("token ", token.as_bytes())?);
        }
        let read = async {
            let mut response = request
                .send()
                .await
                .map_err(|e| self.unreachable(url, &e))?;
            uncompressed(&response).map_err(|what| {
                Error::new(Code::BadResponse, format!("{url} {what}")).hint(HINT_NO_GITEA)
            })?;
            let status = response.status();
            let retry = retry_after(&response);
            let date = response.headers().get(DATE);
            let date = date.and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
            let body = body(&mut response).await;
            let body = body.map_err(|error| self.unreachable(url, &error))?;
            let reason = match (&body, status.is_success()) {
                (Some(body), false) => self.reason(&response, body),
                _ => String::new(),
            };
            Ok(Answer {
                status,
                retry,
                date,
                body,
                reason,
            })
        };
        tokio::time::timeout(API_TIMEOUT, read)
            .await
            .unwrap_or_else(|_| {
                Err(Error::new(
                    Code::GiteaUnreachable,
                    format!(
                        "{url} did not answer within {} seconds",
                        API_TIMEOUT.as_secs()
                    ),
                )
                .hint(HINT_UNREACHABLE))
            })
    }

    /// The server's reason for a refusal: the `message` of Gitea's API, or plain text, as its git sends. A page of HTML
    /// is not shown. The text is only shown; no decision depends on it.
    fn reason(&self, response: &reqwest::Response, body: &[u8]) -> String {
        #[derive(serde::Deserialize)]
        struct Refusal {
            message: String,
        }
        let reason = match media_type(response.headers()) {
            Some(kind) if kind.eq_ignore_ascii_case(b"application/json") => {
                let refusal = serde_json::from_str(&String::from_utf8_lossy(body)).ok();
                refusal.map_or_else(String::new, |Refusal { message }| message)
            }
            Some(kind) if kind.eq_ignore_ascii_case(b"text/plain") => {
                String::from_utf8_lossy(body).into_owned()
            }
            _ => return String::new(),
        };
        let reason = self.quoted(&reason);
        match response.status().canonical_reason() {
            // It repeats the status.
            Some(status) if reason.eq_ignore_ascii_case(status) => String::new(),
            _ => reason,
        }
    }

    /// A server's text for an error message: masked and truncated.
    pub(crate) fn quoted(&self, text: &str) -> String {
        Masker::new(&self.token).shown(text.trim(), MAX_REASON)
    }

    /// The server's reason for refusing a git request; empty if it does not arrive at once.
    pub(crate) async fn git_reason(&self, response: &mut reqwest::Response) -> String {
        let body = tokio::time::timeout(REASON_TIMEOUT, body(response)).await;
        match body {
            Ok(Ok(Some(body))) => self.reason(response, &body),
            _ => String::new(),
        }
    }

    /// Whether a token is set.
    pub(crate) fn has_token(&self) -> bool {
        !self.token.is_empty()
    }

    /// Sends one request of git's smart HTTP protocol. The caller reads the body of the answer.
    pub(crate) async fn git(
        &self,
        url: Url,
        mut headers: HeaderMap,
        body: Option<Vec<u8>>,
    ) -> Result<reqwest::Response> {
        use base64::Engine as _;
        use base64::engine::general_purpose::STANDARD;
        const USER: &[u8] = b"x-access-token:";
        if let Some(token) = self.token_for(&url) {
            // Gitea accepts a token as the user name or as the password of Basic.
            let mut pair = Zeroizing::new(Vec::with_capacity(USER.len() + token.len()));
            pair.extend_from_slice(USER);
            pair.extend_from_slice(token.as_bytes());
            let basic = Zeroizing::new(STANDARD.encode(&*pair));
            headers.insert("Authorization", authorization("Basic ", basic.as_bytes())?);
        }
        let request = match body {
            Some(body) => self.client.post(url.clone()).body(body),
            None => self.client.get(url.clone()),
        };
        request
            .headers(headers)
            .send()
            .await
            .map_err(|error| self.unreachable(&url, &error))
    }

    /// Connects to the server of a URL, or to the proxy that leads there, and closes the connection.
    pub(crate) async fn connect(&self, url: &Url) -> io::Result<()> {
        let uri = url.as_str().parse().ok();
        let proxy = uri.and_then(|uri| self.proxies.intercept(&uri));
        let to = match &proxy {
            Some(proxy) => {
                let https = proxy.uri().scheme_str() == Some("https");
                let port = proxy.uri().port_u16();
                proxy
                    .uri()
                    .host()
                    .zip(port.or(Some(if https { 443 } else { 80 })))
            }
            None => url.host_str().zip(url.port_or_known_default()),
        };
        let (host, port) = to.ok_or(ErrorKind::InvalidInput)?;
        let addresses = executor::resolve(host.trim_matches(['[', ']']), port).await?;
        TcpStream::connect(&*addresses).await.map(drop)
    }

    /// Sends a `HEAD` request, never with the token, and returns the status, also of a redirect to another server,
    /// which is not followed.
    pub(crate) async fn head(&self, url: &Url) -> reqwest::Result<StatusCode> {
        match self.client.head(url.clone()).send().await {
            Ok(answer) => Ok(answer.status()),
            Err(error) => match RefusedRedirect::find(&error) {
                Some(RefusedRedirect {
                    why: Refusal::OtherServer(_),
                    status,
                }) => Ok(*status),
                _ => Err(error),
            },
        }
    }

    fn unreachable(&self, url: &Url, error: &reqwest::Error) -> Error {
        // Once there is a connection, the proxy only passes it on.
        let proxy = error.is_connect().then(|| self.proxy_for(url)).flatten();
        unreachable(url, proxy.as_deref(), error)
    }

    /// The address of the proxy for a URL, without the user.
    fn proxy_for(&self, url: &Url) -> Option<String> {
        let proxy = self.proxies.intercept(&url.as_str().parse().ok()?)?;
        Some(proxy.uri().authority()?.to_string())
    }
}

/// Resolves host names on the library's own threads.
struct Resolver;

impl dns::Resolve for Resolver {
    fn resolve(&self, name: dns::Name) -> dns::Resolving {
        Box::pin(async move {
            // reqwest sets the port.
            let found = executor::resolve(name.as_str(), 0).await?;
            Ok(Box::new(found.into_iter()) as dns::Addrs)
        })
    }
}

const HINT_UNREACHABLE: &str = "check the network and the proxy variables, or set \
     MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX to a server that can be reached";

const HINT_PROXY: &str = "check the proxy in HTTPS_PROXY or HTTP_PROXY, or name the server in NO_PROXY if it can be \
     reached without one";

/// What to do about a token that is sent in plain text.
pub(crate) const HINT_PLAIN_TEXT: &str =
    "use an https:// address in MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX";

/// The hint for an answer that is not from Gitea. Go has it too (`go/mol/gitea_url.go`).
pub(crate) const HINT_NO_GITEA: &str = "check that MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX is the address of a Gitea \
     server, and that no proxy or login page is in between";

/// Reads a body to its end; `None` if it is larger than [`MAX_ANSWER`].
async fn body(response: &mut reqwest::Response) -> reqwest::Result<Option<Bytes>> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > MAX_ANSWER {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body.freeze()))
}

/// Refuses a compressed answer. The library requests none (it sends no `Accept-Encoding`), so that a few bytes cannot
/// unpack to gigabytes.
pub(crate) fn uncompressed(response: &reqwest::Response) -> std::result::Result<(), String> {
    let header = response.headers().get(CONTENT_ENCODING);
    match header.map(HeaderValue::as_bytes) {
        None | Some(b"" | b"identity") => Ok(()),
        Some(encoding) => Err(format!(
            "sent a compressed answer ({}), which was not asked for",
            String::from_utf8_lossy(encoding)
        )),
    }
}

/// The media type of a body, without its parameters (RFC 9110, section 8.3.1). Its case does not matter.
pub(crate) fn media_type(headers: &HeaderMap) -> Option<&[u8]> {
    let header = headers.get(CONTENT_TYPE)?.as_bytes();
    let kind = header.split(|byte| *byte == b';').next()?;
    Some(kind.trim_ascii())
}

/// Whether the status allows another attempt, and when.
pub(crate) fn retry_after(response: &reqwest::Response) -> Retry {
    if !matches!(response.status().as_u16(), 429 | 502 | 503 | 504) {
        return Retry::Never;
    }
    let header = response.headers().get(RETRY_AFTER);
    let value = header.and_then(|value| value.to_str().ok());
    value
        .and_then(|value| pause(value.trim(), SystemTime::now()))
        .map_or(Retry::Soon, Retry::After)
}

/// The seconds of a `Retry-After`: a number, or a date in the future (RFC 9110, section 10.2.3).
fn pause(value: &str, now: SystemTime) -> Option<u32> {
    let seconds = match value.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number that overflows counts as the longest pause.
        true if !value.is_empty() => value.parse().unwrap_or(u64::MAX),
        _ => {
            let pause = httpdate::parse_http_date(value)
                .ok()?
                .duration_since(now)
                .ok()?;
            pause.as_secs() + u64::from(pause.subsec_nanos() > 0)
        }
    };
    Some(u32::try_from(seconds).unwrap_or(u32::MAX))
}

/// A header that logs of the HTTP stack do not show, and whose memory is wiped after its last use. The HTTP stack and
/// TLS copy it into buffers of their own, which are not wiped.
fn authorization(scheme: &str, credentials: &[u8]) -> Result<HeaderValue> {
    let mut value = Zeroizing::new(Vec::with_capacity(scheme.len() + credentials.len()));
    value.extend_from_slice(scheme.as_bytes());
    value.extend_from_slice(credentials);
    let value = Bytes::from_owner(value);
    let mut header = HeaderValue::from_maybe_shared(value).map_err(|_| {
        Error::new(
            Code::InvalidOption,
            "MOLECULE_GITEA_TOKEN has a character that an HTTP header cannot contain",
        )
    })?;
    header.set_sensitive(true);
    Ok(header)
}

/// A redirect that is not followed.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
struct RefusedRedirect {
    why: Refusal,
    status: StatusCode,
}

/// Why a redirect is not followed.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("more than {MAX_REDIRECTS} redirects")]
    TooMany,
    #[error("it redirects to another server, {0}; this redirect is not followed")]
    OtherServer(String),
}

impl RefusedRedirect {
    /// The refused redirect that caused an error, if it was one.
    fn find(error: &reqwest::Error) -> Option<&Self> {
        causes(error).find_map(|cause| cause.downcast_ref())
    }
}

/// Follows redirects within one origin, which Gitea sends for a renamed repository. With a token, a redirect to another
/// origin is an error, so that the caller learns that the address is wrong. Without a token it is followed, but never
/// from https to http.
fn follow(attempt: redirect::Attempt<'_>, has_token: bool) -> redirect::Action {
    match refusal(attempt.previous(), attempt.url(), has_token) {
        None => attempt.follow(),
        Some(why) => {
            let status = attempt.status();
            attempt.error(RefusedRedirect { why, status })
        }
    }
}

/// Why a redirect to `next` is refused; `None` if it is followed. `previous` begins with the URL of the request.
fn refusal(previous: &[Url], next: &Url, has_token: bool) -> Option<Refusal> {
    if previous.len() > MAX_REDIRECTS {
        return Some(Refusal::TooMany);
    }
    let from = previous.last()?;
    let same = from.origin() == next.origin();
    let downgrade = from.scheme() == "https" && next.scheme() != "https";
    (!same && (has_token || downgrade))
        .then(|| Refusal::OtherServer(next.origin().ascii_serialization()))
}

/// `NO_PROXY`, and this machine, to which no proxy leads (as in Go's golang.org/x/net/http/httpproxy).
fn no_proxy(network: &NetworkSettings) -> String {
    let configured = network.no_proxy.as_deref().unwrap_or_default();
    format!("{configured},localhost,127.0.0.0/8,::1")
}

fn proxy(name: &str, scheme: &str, address: &str, no_proxy: &str) -> Result<reqwest::Proxy> {
    let made = match scheme {
        "https" => reqwest::Proxy::https(address),
        _ => reqwest::Proxy::http(address),
    };
    // The address may contain a password, so the error does not repeat it.
    let proxy = made.map_err(|_| {
        Error::new(
            Code::InvalidOption,
            format!("{name} is not a valid proxy address"),
        )
        .hint("use http://host:port")
    })?;
    Ok(proxy.no_proxy(reqwest::NoProxy::from_string(no_proxy)))
}

/// The error for a missing or incomplete answer. Each kind of failure has its own hint. `proxy` is the one that the
/// connection was to go through.
fn unreachable(url: &Url, proxy: Option<&str>, error: &reqwest::Error) -> Error {
    if let Some(limit) = limits::reached(error) {
        return limit;
    }
    let causes: Vec<_> = causes(error).collect();
    let innermost = causes.last().map(ToString::to_string).unwrap_or_default();
    let io = causes
        .iter()
        .rev()
        .find_map(|cause| cause.downcast_ref::<io::Error>())
        .map(io::Error::kind);
    let tls = causes
        .iter()
        .find_map(|cause| cause.downcast_ref::<rustls::Error>());
    // The server closed the connection without an answer.
    let closed = causes
        .iter()
        .filter_map(|cause| cause.downcast_ref::<hyper::Error>())
        .any(hyper::Error::is_incomplete_message);
    let transient = matches!(
        io,
        Some(
            ErrorKind::ConnectionReset
                | ErrorKind::ConnectionAborted
                | ErrorKind::BrokenPipe
                | ErrorKind::UnexpectedEof
        )
    ) || closed;
    let answer_started = error.is_body() || error.is_decode();
    let network_hint = match proxy {
        Some(_) => HINT_PROXY,
        None => HINT_UNREACHABLE,
    };
    let (what, hint) = if let Some(tls) = tls {
        (
            format!("TLS failed: {tls}"),
            "check the machine's clock and certificates, or point SSL_CERT_FILE at the certificate of the \
             server or of its authority",
        )
    } else if let Some(refused) = RefusedRedirect::find(error) {
        let hint = match refused.why {
            Refusal::TooMany => HINT_NO_GITEA,
            Refusal::OtherServer(_) => {
                "set MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX to the address that the server redirects to"
            }
        };
        (refused.to_string(), hint)
    } else if error.is_dns() {
        (
            format!("the host name cannot be resolved: {innermost}"),
            network_hint,
        )
    } else if error.is_timeout() {
        ("the connection timed out".to_owned(), network_hint)
    } else if io == Some(ErrorKind::ConnectionRefused) {
        ("the connection was refused".to_owned(), network_hint)
    } else {
        (innermost, network_hint)
    };
    let how = match (answer_started, proxy) {
        (true, _) => "did not complete its answer".to_owned(),
        (false, None) => "cannot be reached".to_owned(),
        (false, Some(proxy)) => format!("cannot be reached through the proxy {proxy}"),
    };
    Error::new(Code::GiteaUnreachable, format!("{url} {how}: {what}"))
        .hint(hint)
        .retryable(if transient { Retry::Soon } else { Retry::Never })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    #[test]
    fn each_redirect_is_compared_with_the_one_before() {
        for (urls, without_token, with_token) in [
            (&["http://a/1", "http://a/2"][..], true, true),
            (&["http://a/", "https://b/"], true, false),
            (&["http://a/", "http://b/", "http://a/"], true, false),
            (&["https://a/", "http://a/"], false, false),
            (&["http://a/", "https://b/", "http://c/"], false, false),
            (&["http://a/", "https://a/", "http://a/"], false, false),
        ] {
            let urls: Vec<Url> = urls.iter().map(|url| url.parse().unwrap()).collect();
            for (has_token, followed) in [(false, without_token), (true, with_token)] {
                let refused =
                    (1..urls.len()).find_map(|next| refusal(&urls[..next], &urls[next], has_token));
                assert_eq!(refused.is_none(), followed, "{urls:?} {refused:?}");
            }
        }
    }

    #[test]
    fn retry_after_is_a_number_or_a_date_in_the_future() {
        let now = UNIX_EPOCH + Duration::from_millis(784_111_777_500);
        for (value, seconds) in [
            ("0", Some(0)),
            ("120", Some(120)),
            ("007", Some(7)),
            ("99999999999999999999999", Some(u32::MAX)),
            ("Sun, 06 Nov 1994 08:49:38 GMT", Some(1)),
            ("Sunday, 06-Nov-94 09:49:37 GMT", Some(3600)),
            ("Sun Nov  6 08:50:37 1994", Some(60)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", None),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some(u32::MAX)),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
        ] {
            assert_eq!(pause(value, now), seconds, "{value}");
        }
    }

    #[test]
    fn a_media_type_is_read_without_its_parameters() {
        for (header, kind) in [
            ("text/plain", "text/plain"),
            (" text/plain ; charset=utf-8; x=\"a;b\"", "text/plain"),
            ("TEXT/Plain;", "TEXT/Plain"),
            ("", ""),
        ] {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, header.parse().unwrap())]);
            assert_eq!(media_type(&headers), Some(kind.as_bytes()), "{header}");
        }
        assert_eq!(media_type(&HeaderMap::new()), None);
    }
}
