//! Git's smart HTTP protocol over the library's own HTTP client.
//!
//! gix implements the protocol; the requests go through [`Http`], so that a fetch follows the same rules for the
//! token, proxies, certificates and redirects as the API call before it, on the same connections. gix is
//! blocking: everything here runs on a blocking thread and waits for the async runtime, and each wait ends at once
//! when the fetch is interrupted.
//!
//! The transports of gix (with reqwest or curl) have clients of their own, with their own rules for all of that:
//! see `docs/adr/0002`.

mod exchange;
mod refusal;
mod streams;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gix_transport::client::blocking_io::http::{
    GetResponse, Http as GitHttp, PostBodyDataKind, PostResponse,
};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::error::{Code, Error};
use crate::event::human_duration;
use crate::fetch::pack::Counters;
use crate::fetch::transport::streams::{
    RequestBody, ResponseBody, ResponseHeaders, SharedExchange, response,
};
use crate::net::http::Http;
use crate::process;

/// What all requests of one fetch share.
#[derive(Clone)]
pub(super) struct Wire {
    pub(super) http: Http,
    pub(super) runtime: Handle,
    pub(super) interrupt: CancellationToken,
    /// How long the server may send nothing before the fetch fails as stalled.
    pub(super) stall_grace: Duration,
    /// Bytes received so far.
    pub(super) received: Arc<AtomicU64>,
    /// Progress of the pack that they receive.
    pub(super) counters: Arc<Counters>,
    /// The first failure, as the library's error. gix gets only its text, as an I/O error.
    pub(super) failure: Arc<Mutex<Option<Error>>>,
    /// Whether the server refused the repository or the commit.
    pub(super) refused: Arc<AtomicBool>,
    /// "the commit … of …", for errors.
    pub(super) subject: String,
    /// What to do after a failure that may be temporary.
    pub(super) retry_hint: &'static str,
    /// The URL of the repository after a redirect.
    pub(super) base: Option<String>,
}

/// What to do after a failure that may be temporary.
pub(super) fn retry_hint(looked_up: bool) -> &'static str {
    match looked_up {
        true => {
            "try again; if the branch was force-pushed meanwhile, the next call sees its new head"
        }
        false => "try again, and check that the repository still has the commit",
    }
}

impl Wire {
    /// Waits for the network on this blocking thread. Fails if it is silent for too long, or the fetch is
    /// interrupted.
    fn wait<T>(&self, what: &str, work: impl Future<Output = Result<T, Error>>) -> io::Result<T> {
        let result = self.runtime.block_on(async {
            tokio::select! {
                biased;
                () = self.interrupt.cancelled() => Err(Error::canceled()),
                () = tokio::time::sleep(self.stall_grace) => Err(Error::new(
                    Code::Stalled,
                    format!("{what} sent nothing for {}", human_duration(self.stall_grace)),
                )
                .hint("try again; on a slow connection, raise MOLECULE_BUILD_STALL_GRACE_S")),
                result = work => result,
            }
        });
        result.map_err(|error| self.fail(error))
    }

    /// Keeps the error if it is the first, and returns its text as the I/O error that gix expects.
    fn fail(&self, error: Error) -> io::Error {
        let text = error.message();
        let mut first = process::lock(&self.failure);
        first.get_or_insert(error);
        io::Error::other(text)
    }

    pub(super) fn first_failure(&self) -> Option<Error> {
        let mut first = process::lock(&self.failure);
        first.take()
    }
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
    ) -> gix_error::Result<GetResponse<Self::Headers, Self::ResponseBody>> {
        let mut exchange = self.exchange(url, base_url, headers, None)?;
        // A renamed repository redirects this request. The next ones have bodies, which are not sent again after
        // a redirect: they go to the redirected URL directly.
        let tail = url.strip_prefix(base_url).unwrap_or_default();
        let requested = exchange.url.clone();
        let answered = exchange
            .response()
            .map_err(gix_error::Error::from_error)?
            .url();
        if *answered != requested {
            self.base = answered.as_str().strip_suffix(tail).map(str::to_owned);
        }
        let (headers, body) = response(&SharedExchange::new(exchange));
        Ok(GetResponse { headers, body })
    }

    fn post(
        &mut self,
        url: &str,
        base_url: &str,
        headers: impl IntoIterator<Item = impl AsRef<str>>,
        _body: PostBodyDataKind,
    ) -> gix_error::Result<PostResponse<Self::Headers, Self::ResponseBody, Self::PostBody>> {
        let exchange = self.exchange(url, base_url, headers, Some(Vec::new()))?;
        let exchange = SharedExchange::new(exchange);
        let (headers, body) = response(&exchange);
        Ok(PostResponse {
            post_body: RequestBody { exchange },
            headers,
            body,
        })
    }

    fn configure(&mut self, _config: &dyn std::any::Any) -> gix_error::Result {
        Ok(())
    }

    fn redirected_base_url(&self) -> Option<String> {
        self.base.clone()
    }
}
