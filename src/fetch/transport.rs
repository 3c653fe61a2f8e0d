//! Git's smart HTTP protocol over the library's own HTTP client.
//!
//! gix brings the protocol; the requests go through [`Http`], so that a fetch follows the same rules
//! for the token, proxies, certificates and redirects as the API call before it, on the same
//! connections. gix is blocking: everything here runs on a blocking thread and waits for the
//! runtime, and each wait ends at once when the fetch is interrupted.

use std::io::{self, BufRead, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes};
use gix_transport::client::blocking_io::http::{
    GetResponse, Http as GitHttp, PostBodyDataKind, PostResponse,
};
use reqwest::StatusCode;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::pack::Counters;
use crate::error::{Code, Error, Retry};
use crate::event::{human_bytes, human_duration};
use crate::job::gitea;
use crate::net::http::{Http, media_type, retry_after, uncompressed};
use crate::net::retry;

/// What the exchanges of one fetch share.
#[derive(Clone)]
pub(super) struct Wire {
    pub(super) http: Http,
    pub(super) runtime: Handle,
    pub(super) interrupt: CancellationToken,
    /// The longest silence that is not a stall.
    pub(super) stall_grace: Duration,
    /// Bytes received so far.
    pub(super) received: Arc<AtomicU64>,
    /// How far the pack is that they bring.
    pub(super) counters: Arc<Counters>,
    /// The first failure, as the library tells it. gix wraps what it gets; this is the original.
    pub(super) failure: Arc<Mutex<Option<Error>>>,
    /// Whether the server refuses the repository or the commit.
    pub(super) refused: Arc<AtomicBool>,
    /// "the commit … of …", for errors.
    pub(super) what: String,
    /// What to do after a failure that may pass.
    pub(super) hint_again: &'static str,
    /// Where the repository really is, once a redirect has told.
    pub(super) base: Option<String>,
}

impl Wire {
    /// Waits for the network on this blocking thread, until it answers, is silent for too long, or
    /// is no longer wanted.
    fn wait<T>(&self, what: &str, work: impl Future<Output = Result<T, Error>>) -> io::Result<T> {
        let result = self.runtime.block_on(async {
            tokio::select! {
                biased;
                () = self.interrupt.cancelled() => Err(Error::canceled()),
                () = tokio::time::sleep(self.stall_grace) => Err(Error::new(
                    Code::Stalled,
                    format!("{what} sent nothing for {}", human_duration(self.stall_grace)),
                )
                .hint("try again; on a slow line, raise MOLECULE_BUILD_STALL_GRACE_S")),
                result = work => result,
            }
        });
        result.map_err(|error| self.fail(error))
    }

    /// Keeps the error, and gives gix one of the kind that it takes.
    fn fail(&self, error: Error) -> io::Error {
        let text = error.message.clone();
        let mut first = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(error);
        io::Error::other(text)
    }

    pub(super) fn first_failure(&self) -> Option<Error> {
        let mut first = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        first.take()
    }
}

/// The most that a server may say besides the pack: capabilities, branches, where the history is cut,
/// remarks. 100,000 branches are 8 MiB. What is said is kept in memory, the pack is not.
const MAX_TALK: u64 = 8 << 20;

/// The share of the pack that is the headers of its packets: 5 bytes of 1000 at most (gitprotocol-pack(5),
/// "side-band").
const PACKET_SHARE: u64 = 100;

/// One request, sent when the first byte of its answer is wanted: by then gix has written the body.
struct Exchange {
    wire: Wire,
    url: Url,
    request: Option<(HeaderMap, Option<Vec<u8>>)>,
    response: Option<reqwest::Response>,
    /// Whether the beginning of the answer was looked at.
    begun: bool,
}

impl Exchange {
    fn response(&mut self) -> io::Result<&mut reqwest::Response> {
        if let Some((headers, body)) = self.request.take() {
            let url = self.url.clone();
            let kind = if body.is_some() {
                "result"
            } else {
                "advertisement"
            };
            let wire = self.wire.clone();
            let response = self.wire.wait(url.as_str(), async {
                let mut response = wire.http.git(url.clone(), headers, body).await?;
                wire.check_status(&url, &mut response).await?;
                check_type(&url, &response, kind)?;
                Ok(response)
            })?;
            point!("git-answered");
            self.response = Some(response);
        }
        self.response
            .as_mut()
            .ok_or_else(|| io::Error::other("the request failed before"))
    }

    /// The next piece of the body; empty at its end.
    fn chunk(&mut self) -> io::Result<Bytes> {
        let mut chunk = self.piece()?;
        if !std::mem::replace(&mut self.begun, true) {
            // A refusal is short: it comes whole, or is put together.
            while Refusal::may_begin(&chunk) {
                let more = self.piece()?;
                if more.is_empty() {
                    break;
                }
                chunk = [chunk, more].concat().into();
            }
            if let Some(Refusal(said)) = Refusal::read(&chunk) {
                self.wire.refused.store(true, Ordering::Relaxed);
                let said = self.wire.http.quoted(&String::from_utf8_lossy(said));
                let what = &self.wire.what;
                let text = format!("{what} cannot be fetched: the server says: {said}");
                let error = Error::new(Code::Fetch, text).hint(self.wire.hint_again);
                return Err(self.wire.fail(error));
            }
        }
        Ok(chunk)
    }

    fn piece(&mut self) -> io::Result<Bytes> {
        let wire = self.wire.clone();
        let url = self.url.clone();
        let response = self.response()?;
        let chunk = wire.wait(url.as_str(), async {
            response.chunk().await.map_err(|error| {
                Error::new(
                    Code::Fetch,
                    format!("{url} broke off: {}", crate::error::chain(&error)),
                )
                .hint("try again; the connection to the template server is not stable")
                .retryable(Retry::Soon)
            })
        })?;
        point!("git-received");
        let chunk = chunk.unwrap_or_default();
        let length = chunk.len() as u64;
        let received = wire.received.fetch_add(length, Ordering::Relaxed) + length;
        // What has come and is not of the pack, or not yet looked at.
        let pack = wire.counters.bytes.load(Ordering::Relaxed);
        if received.saturating_sub(pack + pack / PACKET_SHARE) <= MAX_TALK {
            return Ok(chunk);
        }
        let limit = human_bytes(MAX_TALK);
        let text = format!("{url} sent more than {limit} that is no object");
        Err(wire.fail(Error::new(Code::Fetch, text).hint(HINT_NO_GIT)))
    }
}

const HINT_NO_GIT: &str = "check that MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX is the address of a \
     Gitea, and that no proxy or login page stands in between";

/// A packet with which git refuses what it was asked for, instead of an answer (gitprotocol-common(5),
/// "pkt-line Format": `error-line`), and what it says.
struct Refusal<'a>(&'a [u8]);

impl<'a> Refusal<'a> {
    const LENGTH: usize = 4;
    const MARK: &'static [u8] = b"ERR ";

    /// The length of the packet that the text begins with, its own four digits included.
    fn length(text: &[u8]) -> Option<usize> {
        let digits = str::from_utf8(text.get(..Self::LENGTH)?).ok()?;
        usize::from_str_radix(digits, 16).ok()
    }

    /// Whether the text is the beginning of a refusal whose end is still to come. A packet has 64 KiB at most.
    fn may_begin(text: &[u8]) -> bool {
        let mark = text.get(Self::LENGTH..).unwrap_or_default();
        let begun = mark.starts_with(Self::MARK) || Self::MARK.starts_with(mark);
        begun && Self::length(text).is_none_or(|length| text.len() < length)
    }

    fn read(text: &'a [u8]) -> Option<Self> {
        let packet = text.get(Self::LENGTH..Self::length(text)?)?;
        packet.strip_prefix(Self::MARK).map(Self)
    }
}

/// Is it what git answers? A login page is not.
fn check_type(url: &Url, response: &reqwest::Response, kind: &str) -> Result<(), Error> {
    let wanted = format!("application/x-git-upload-pack-{kind}");
    let found = media_type(response.headers()).unwrap_or(b"nothing");
    if !found.eq_ignore_ascii_case(wanted.as_bytes()) {
        let found = String::from_utf8_lossy(found);
        let text = format!("{url} did not answer as git does: it sent {found}, not {wanted}");
        return Err(Error::new(Code::Fetch, text).hint(HINT_NO_GIT));
    }
    uncompressed(response)
        .map_err(|what| Error::new(Code::Fetch, format!("{url} {what}")).hint(HINT_NO_GIT))
}

impl Wire {
    async fn check_status(&self, url: &Url, response: &mut reqwest::Response) -> Result<(), Error> {
        let status = response.status();
        if status == StatusCode::OK {
            return Ok(());
        }
        let retry = retry_after(response);
        let pause = retry::asked(retry);
        let says = gitea::says(&self.http.git_reason(response).await);
        let said = |code| Error::new(code, format!("{url} answered {status}{pause}{says}"));
        let refused = matches!(status.as_u16(), 401 | 403 | 404);
        self.refused.store(refused, Ordering::Relaxed);
        Err(match status.as_u16() {
            401 => said(Code::Auth).hint(gitea::access_hint(status, self.http.has_token())),
            403 if self.http.has_token() => said(Code::Auth).hint(
                "see that the server allows git over HTTP, and that the token in MOLECULE_GITEA_TOKEN has \
                 the scope read:repository",
            ),
            403 => said(Code::Auth).hint(
                "see that the server allows git over HTTP, or set MOLECULE_GITEA_TOKEN to a token that may \
                 read the template repositories",
            ),
            404 => said(Code::RepoNotFound)
                .hint("the API knows the repository, but git does not find it: check the server"),
            408 | 429 | 500..=599 => said(Code::Fetch)
                .hint("try again in a while")
                .retryable(retry),
            _ => said(Code::Fetch).hint("check that the address is that of a Gitea"),
        })
    }
}

/// An exchange that its headers, its body and its answer share. They are used one after the other,
/// on one thread; the lock is only there because gix wants its transports to be `Send`.
type Shared = Arc<Mutex<Exchange>>;

/// The body that gix writes. Nothing is sent before it is dropped.
pub(super) struct RequestBody {
    exchange: Shared,
}

impl Write for RequestBody {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut exchange = self.exchange.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut exchange.request {
            Some((_, body)) => {
                body.get_or_insert_default().extend_from_slice(data);
                Ok(data.len())
            }
            None => Err(io::Error::other("the request is sent already")),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The headers of the answer, as the lines that gix reads.
pub(super) struct ResponseHeaders {
    exchange: Shared,
    lines: Option<io::Cursor<Vec<u8>>>,
}

impl ResponseHeaders {
    fn lines(&mut self) -> io::Result<&mut io::Cursor<Vec<u8>>> {
        if self.lines.is_none() {
            let mut exchange = self.exchange.lock().unwrap_or_else(PoisonError::into_inner);
            let mut lines = Vec::new();
            let headers = exchange.response()?.headers();
            let kind = media_type(headers).map(<[u8]>::to_ascii_lowercase);
            for (name, value) in headers {
                // gix compares the type letter by letter.
                let value = match &kind {
                    Some(kind) if name == CONTENT_TYPE => kind,
                    _ => value.as_bytes(),
                };
                lines.extend_from_slice(name.as_str().as_bytes());
                lines.extend_from_slice(b": ");
                lines.extend_from_slice(value);
                lines.push(b'\n');
            }
            self.lines = Some(io::Cursor::new(lines));
        }
        self.lines
            .as_mut()
            .ok_or_else(|| io::Error::other("no headers"))
    }
}

impl Read for ResponseHeaders {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.lines()?.read(buffer)
    }
}

impl BufRead for ResponseHeaders {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.lines()?.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        if let Some(lines) = &mut self.lines {
            lines.consume(amount);
        }
    }
}

/// The body of the answer.
pub(super) struct ResponseBody {
    exchange: Shared,
    chunk: Bytes,
    ended: bool,
}

impl Read for ResponseBody {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        super::read_filled(self, buffer)
    }
}

impl BufRead for ResponseBody {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.chunk.is_empty() && !self.ended {
            let mut exchange = self.exchange.lock().unwrap_or_else(PoisonError::into_inner);
            self.chunk = exchange.chunk()?;
            self.ended = self.chunk.is_empty();
        }
        Ok(&self.chunk)
    }

    fn consume(&mut self, amount: usize) {
        self.chunk.advance(amount.min(self.chunk.len()));
    }
}

impl Wire {
    fn exchange(
        &self,
        url: &str,
        base_url: &str,
        headers: impl IntoIterator<Item = impl AsRef<str>>,
        body: Option<Vec<u8>>,
    ) -> gix::Result<Shared> {
        let url = match &self.base {
            Some(base) => format!("{base}{}", url.strip_prefix(base_url).unwrap_or_default()),
            None => url.to_owned(),
        };
        let url = Url::parse(&url).map_err(gix::Error::from_error)?;
        let mut map = HeaderMap::new();
        for header in headers {
            let (name, value) = header.as_ref().split_once(':').unwrap_or_default();
            map.append(
                HeaderName::from_bytes(name.trim().as_bytes()).map_err(gix::Error::from_error)?,
                HeaderValue::from_str(value.trim()).map_err(gix::Error::from_error)?,
            );
        }
        Ok(Arc::new(Mutex::new(Exchange {
            wire: self.clone(),
            url,
            request: Some((map, body)),
            response: None,
            begun: false,
        })))
    }
}

fn reading(exchange: &Shared) -> (ResponseHeaders, ResponseBody) {
    (
        ResponseHeaders {
            exchange: Arc::clone(exchange),
            lines: None,
        },
        ResponseBody {
            exchange: Arc::clone(exchange),
            chunk: Bytes::new(),
            ended: false,
        },
    )
}

impl GitHttp for Wire {
    type Headers = ResponseHeaders;
    type ResponseBody = ResponseBody;
    type PostBody = RequestBody;

    fn get(
        &mut self,
        url: &str,
        base_url: &str,
        headers: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> gix::Result<GetResponse<Self::Headers, Self::ResponseBody>> {
        let exchange = self.exchange(url, base_url, headers, None)?;
        // A renamed repository answers with a redirect, and the requests after this one have bodies,
        // which no redirect carries along: they go to where this one ended.
        let tail = url.strip_prefix(base_url).unwrap_or_default().to_owned();
        {
            let mut exchange = exchange.lock().unwrap_or_else(PoisonError::into_inner);
            let asked = exchange.url.clone();
            let answered = exchange
                .response()
                .map_err(gix::Error::from_error)?
                .url()
                .clone();
            if answered != asked {
                self.base = answered.as_str().strip_suffix(&tail).map(str::to_owned);
            }
        }
        let (headers, body) = reading(&exchange);
        Ok(GetResponse { headers, body })
    }

    fn post(
        &mut self,
        url: &str,
        base_url: &str,
        headers: impl IntoIterator<Item = impl AsRef<str>>,
        _body: PostBodyDataKind,
    ) -> gix::Result<PostResponse<Self::Headers, Self::ResponseBody, Self::PostBody>> {
        let exchange = self.exchange(url, base_url, headers, Some(Vec::new()))?;
        let (headers, body) = reading(&exchange);
        Ok(PostResponse {
            post_body: RequestBody { exchange },
            headers,
            body,
        })
    }

    fn configure(&mut self, _config: &dyn std::any::Any) -> gix::Result {
        Ok(())
    }

    fn redirected_base_url(&self) -> Option<String> {
        self.base.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_known_by_its_packet() {
        for (answer, says) in [
            ("0010ERR not here", Some("not here")),
            ("000dERR gone\nx", Some("gone\n")),
            ("0008ERR ", Some("")),
            ("0008NAK\n", None),
            ("0000", None),
            ("000cERR whole", Some("whol")),
            ("0010ERR cut", None),
            ("zzzzERR odd", None),
            ("ERR bare", None),
            ("0003ERR x", None),
            ("", None),
        ] {
            let read = Refusal::read(answer.as_bytes());
            let read = read.map(|Refusal(said)| str::from_utf8(said).unwrap());
            assert_eq!(read, says, "{answer}");
        }
    }

    #[test]
    fn only_what_can_be_a_refusal_is_waited_for() {
        for (answer, waits) in [
            ("", true),
            ("00", true),
            ("0010", true),
            ("0010E", true),
            ("0010ERR ", true),
            ("0010ERR not her", true),
            ("0010ERR not here", false),
            ("0010EN", false),
            ("0008NAK\n", false),
            ("0000", false),
            ("0001000D", false),
        ] {
            assert_eq!(Refusal::may_begin(answer.as_bytes()), waits, "{answer}");
        }
    }
}
