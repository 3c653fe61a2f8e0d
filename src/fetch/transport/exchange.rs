//! One request and its response, with the checks of its status, type and size.

use std::io;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use reqwest::StatusCode;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use url::Url;

use crate::error::{Code, Error, Retry, chain};
use crate::event::human_bytes;
use crate::fetch::transport::Wire;
use crate::fetch::transport::refusal::Refusal;
use crate::net::gitea;
use crate::net::http::{HINT_NO_GITEA, media_type, retry_after, uncompressed};
use crate::net::retry;

/// Upper bound of what a server sends besides the pack: capabilities, refs (100,000 branches are 8 MiB), shallow
/// commits and messages. Unlike the pack, all of it is kept in memory.
const MAX_PREAMBLE: u64 = 8 << 20;

/// The headers of packets take at most 5 of 1000 bytes (gitprotocol-pack(5), "side-band"). The allowance for them is
/// the pack's size divided by this number, twice what they need.
const PACKET_SHARE: u64 = 100;

/// A request, sent when its response is first read: by then gix has written the body.
pub(super) struct Exchange {
    wire: Wire,
    pub(super) url: Url,
    /// The headers and the body, until they are sent.
    pub(super) request: Option<(HeaderMap, Option<Vec<u8>>)>,
    response: Option<reqwest::Response>,
    /// Whether the beginning of the body was checked for a refusal.
    checked: bool,
}

impl Exchange {
    pub(super) fn response(&mut self) -> io::Result<&mut reqwest::Response> {
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

    /// The next chunk of the body; empty at its end.
    pub(super) fn chunk(&mut self) -> io::Result<Bytes> {
        let mut chunk = self.receive()?;
        if !std::mem::replace(&mut self.checked, true) {
            // A refusal is short, but may come in several chunks.
            while Refusal::may_begin(&chunk) {
                let more = self.receive()?;
                if more.is_empty() {
                    break;
                }
                chunk = [chunk, more].concat().into();
            }
            if let Some(Refusal(reason)) = Refusal::read(&chunk) {
                self.wire.refused.store(true, Ordering::Relaxed);
                let reason = self.wire.http.quoted(&String::from_utf8_lossy(reason));
                let subject = &self.wire.subject;
                let text = format!("{subject} cannot be fetched: the server says: {reason}");
                let error = Error::new(Code::Fetch, text).hint(self.wire.retry_hint);
                return Err(self.wire.fail(error));
            }
        }
        Ok(chunk)
    }

    fn receive(&mut self) -> io::Result<Bytes> {
        let wire = self.wire.clone();
        let url = self.url.clone();
        let response = self.response()?;
        let chunk = wire.wait(url.as_str(), async {
            response.chunk().await.map_err(|error| {
                let text = format!("the connection to {url} was lost: {}", chain(&error));
                Error::new(Code::Fetch, text)
                    .hint("try again")
                    .retryable(Retry::Soon)
            })
        })?;
        point!("git-received");
        let chunk = chunk.unwrap_or_default();
        let length = chunk.len() as u64;
        let received = wire.received.fetch_add(length, Ordering::Relaxed) + length;
        // The bytes outside the pack, and those that its reader has not reached yet.
        let pack = wire.counters.bytes.load(Ordering::Relaxed);
        if received.saturating_sub(pack + pack / PACKET_SHARE) <= MAX_PREAMBLE {
            return Ok(chunk);
        }
        let limit = human_bytes(MAX_PREAMBLE);
        let text = format!("{url} sent more than {limit} that is not part of the pack");
        Err(wire.fail(Error::new(Code::Fetch, text).hint(HINT_NO_GITEA)))
    }
}

/// Checks that the response is git's, and not a login page.
fn check_type(url: &Url, response: &reqwest::Response, kind: &str) -> Result<(), Error> {
    let wanted = format!("application/x-git-upload-pack-{kind}");
    let found = media_type(response.headers()).unwrap_or(b"nothing");
    if !found.eq_ignore_ascii_case(wanted.as_bytes()) {
        let found = String::from_utf8_lossy(found);
        let text = format!("{url} did not answer as git does: it sent {found}, not {wanted}");
        return Err(Error::new(Code::Fetch, text).hint(HINT_NO_GITEA));
    }
    uncompressed(response)
        .map_err(|what| Error::new(Code::Fetch, format!("{url} {what}")).hint(HINT_NO_GITEA))
}

impl Wire {
    async fn check_status(&self, url: &Url, response: &mut reqwest::Response) -> Result<(), Error> {
        let status = response.status();
        if status == StatusCode::OK {
            return Ok(());
        }
        let retry = retry_after(response);
        let pause = retry::requested_pause(retry);
        let says = gitea::says(&self.http.git_reason(response).await);
        let error = |code| Error::new(code, format!("{url} answered {status}{pause}{says}"));
        let refused = matches!(status.as_u16(), 401 | 403 | 404);
        self.refused.store(refused, Ordering::Relaxed);
        Err(match status.as_u16() {
            401 => error(Code::Auth).hint(gitea::access_hint(status, self.http.has_token())),
            403 if self.http.has_token() => error(Code::Auth).hint(
                "check that the server allows git over HTTP, and that the token in MOLECULE_GITEA_TOKEN has \
                 the scope read:repository",
            ),
            403 => error(Code::Auth).hint(
                "check that the server allows git over HTTP, or set MOLECULE_GITEA_TOKEN to a token that may \
                 read the template repositories",
            ),
            404 => error(Code::RepoNotFound)
                .hint("check that the repository exists, and that the server allows git over HTTP"),
            408 | 429 | 500..=599 => error(Code::Fetch)
                .hint("try again later")
                .retryable(retry),
            _ => error(Code::Fetch).hint(HINT_NO_GITEA),
        })
    }

    pub(super) fn exchange(
        &self,
        url: &str,
        base_url: &str,
        headers: impl IntoIterator<Item = impl AsRef<str>>,
        body: Option<Vec<u8>>,
    ) -> gix_error::Result<Exchange> {
        let url = match &self.base {
            Some(base) => format!("{base}{}", url.strip_prefix(base_url).unwrap_or_default()),
            None => url.to_owned(),
        };
        let url = Url::parse(&url).map_err(gix_error::Error::from_error)?;
        let mut map = HeaderMap::new();
        for header in headers {
            let (name, value) = header.as_ref().split_once(':').unwrap_or_default();
            map.append(
                HeaderName::from_bytes(name.trim().as_bytes())
                    .map_err(gix_error::Error::from_error)?,
                HeaderValue::from_str(value.trim()).map_err(gix_error::Error::from_error)?,
            );
        }
        Ok(Exchange {
            wire: self.clone(),
            url,
            request: Some((map, body)),
            response: None,
            checked: false,
        })
    }
}
