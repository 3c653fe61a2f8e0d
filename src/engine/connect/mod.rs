//! Connections to an engine, kept alive and used again, whatever kind of address it has.

pub(super) mod config;
pub(super) mod endpoint;
pub(super) mod request;
mod ssh;

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::task::TaskTracker;

use crate::error::Code;
use crate::process::executor;
use crate::process::outside_file::within;
use endpoint::Address;

/// Time to reach an engine. It is on this machine, or on the network of its owner.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Unused connections are closed before an engine or a tunnel in between would do it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// The host in the URI of a request. Nobody looks it up or sees it: the address says where to go, and what
/// the `Host` header is.
pub(super) const HOST: &str = "engine";

/// Connections to one engine, kept alive.
pub(super) type Pool = Client<Connector, Empty<Bytes>>;

/// Connections to the engine at `address`. The first call opens one.
pub(super) fn pool(address: &Address) -> Pool {
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .build(Connector(Arc::new(address.clone())))
}

/// A connection of one's own, for what takes long.
pub(super) async fn dial(address: &Address) -> io::Result<Stream> {
    let io = tokio::time::timeout(CONNECT_TIMEOUT, open(address))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    Ok(Stream(TokioIo::new(io)))
}

/// Opens connections to one address, whatever the URI says.
#[derive(Clone)]
pub(super) struct Connector(Arc<Address>);

impl tower_service::Service<Uri> for Connector {
    type Response = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let address = Arc::clone(&self.0);
        Box::pin(async move { dial(&address).await })
    }
}

/// Does what looks a path up on a thread that may wait.
async fn waiting<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    // Nobody has to wait for the thread: it holds nothing.
    let tasks = TaskTracker::new();
    within(&tasks, Code::EngineUnreachable, what, || Ok(work()))
        .await
        .map_err(io::Error::other)?
}

async fn open(address: &Address) -> io::Result<Box<dyn Duplex>> {
    Ok(match address {
        Address::Unix(path) => {
            // To connect looks the path up, on this thread. A home folder that hangs would stop it.
            let socket = path.clone();
            let what = format!("the socket {}", path.display());
            waiting(&what, move || std::fs::metadata(socket).map(drop)).await?;
            Box::new(UnixStream::connect(path).await?)
        }
        Address::Ssh(destination) => Box::new(destination.open().await?),
        Address::Tcp {
            host, port, tls, ..
        } => {
            let stream = connect_to_any(&executor::resolve(host, *port).await?).await?;
            stream.set_nodelay(true)?;
            match tls {
                None => Box::new(stream),
                Some(config) => {
                    let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
                    let connector = tokio_rustls::TlsConnector::from(Arc::clone(config));
                    Box::new(connector.connect(name, stream).await?)
                }
            }
        }
    })
}

/// The first of the addresses that answers; what the last one says if none does.
async fn connect_to_any(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut last = io::Error::other("the host has no address");
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Anything that carries bytes both ways.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// One connection, as hyper wants it.
pub(super) struct Stream(TokioIo<Box<dyn Duplex>>);

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
