//! An exchange as the streams that gix writes and reads.

use std::io::{self, BufRead, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::{Buf, Bytes};
use reqwest::header::CONTENT_TYPE;

use crate::fetch::inflate::read_buffered;
use crate::fetch::transport::exchange::Exchange;
use crate::net::http::media_type;
use crate::process;

/// An exchange, shared by its streams. They are used one after the other on one thread: the lock is there because
/// gix requires transports that are `Send`.
#[derive(Clone)]
pub(super) struct SharedExchange(Arc<Mutex<Exchange>>);

impl SharedExchange {
    pub(super) fn new(exchange: Exchange) -> Self {
        Self(Arc::new(Mutex::new(exchange)))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Exchange> {
        process::lock(&self.0)
    }
}

/// The body that gix writes. It is sent when the response is first read.
pub(in crate::fetch) struct RequestBody {
    pub(super) exchange: SharedExchange,
}

impl Write for RequestBody {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut exchange = self.exchange.lock();
        match &mut exchange.request {
            Some((_, body)) => {
                body.get_or_insert_default().extend_from_slice(data);
                Ok(data.len())
            }
            None => Err(io::Error::other("the request was sent already")),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The headers of the response, as lines.
pub(in crate::fetch) struct ResponseHeaders {
    exchange: SharedExchange,
    lines: Option<io::Cursor<Vec<u8>>>,
}

impl ResponseHeaders {
    fn lines(&mut self) -> io::Result<&mut io::Cursor<Vec<u8>>> {
        if self.lines.is_none() {
            let mut exchange = self.exchange.lock();
            let mut lines = Vec::new();
            let headers = exchange.response()?.headers();
            let kind = media_type(headers).map(<[u8]>::to_ascii_lowercase);
            for (name, value) in headers {
                // gix compares the type in lower case only.
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

/// The body of the response.
pub(in crate::fetch) struct ResponseBody {
    exchange: SharedExchange,
    chunk: Bytes,
    ended: bool,
}

impl Read for ResponseBody {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        read_buffered(self, buffer)
    }
}

impl BufRead for ResponseBody {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.chunk.is_empty() && !self.ended {
            let mut exchange = self.exchange.lock();
            self.chunk = exchange.chunk()?;
            self.ended = self.chunk.is_empty();
        }
        Ok(&self.chunk)
    }

    fn consume(&mut self, amount: usize) {
        self.chunk.advance(amount.min(self.chunk.len()));
    }
}

/// The response of an exchange, as its headers and its body.
pub(super) fn response(exchange: &SharedExchange) -> (ResponseHeaders, ResponseBody) {
    (
        ResponseHeaders {
            exchange: exchange.clone(),
            lines: None,
        },
        ResponseBody {
            exchange: exchange.clone(),
            chunk: Bytes::new(),
            ended: false,
        },
    )
}
