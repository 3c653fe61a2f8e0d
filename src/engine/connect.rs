//! Connections to an engine, kept alive and used again, whatever kind of address it has.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bollard::{BollardRequest, ClientVersion, Docker};
use hyper::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::endpoint::Address;
use crate::executor;

/// Time to reach an engine. It is on this machine, or on the network of its owner.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// bollard's own limit, which counts until an answer begins. Whoever calls has a limit that fits the
/// call: for a build, whose context may take hours to send, the stall grace.
const NO_LIMIT_S: u64 = 7 * 24 * 3600;

/// Unused connections are closed before an engine or a tunnel in between would do it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// The name in the `Host` header. Nobody looks it up: the address says where to go.
pub(super) const HOST: &str = "engine";

/// A client for the engine's API at `address`. It connects at the first call.
pub(super) fn client(
    address: &Address,
    version: &ClientVersion,
) -> Result<Docker, bollard::errors::Error> {
    let connector = Connector(Arc::new(address.clone()));
    let client = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .build::<_, hyper_body::Body>(connector);
    let transport = move |request: BollardRequest| {
        let client = client.clone();
        async move { client.request(request).await.map_err(Into::into) }
    };
    let url = format!("http://{HOST}");
    Docker::connect_with_custom_transport(transport, Some(&url), NO_LIMIT_S, version)
}

/// A connection of one's own, for what takes long.
pub(super) async fn dial(address: &Address) -> io::Result<Stream> {
    let io = tokio::time::timeout(CONNECT_TIMEOUT, open(address))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    Ok(Stream(TokioIo::new(io)))
}

/// The type of a request's body, which bollard does not name in public.
mod hyper_body {
    use bollard::BollardRequest;

    pub(super) trait RequestBody {
        type Body;
    }

    impl<B> RequestBody for hyper::Request<B> {
        type Body = B;
    }

    pub(super) type Body = <BollardRequest as RequestBody>::Body;
}

/// Opens connections to one address, whatever the URI says.
#[derive(Clone)]
struct Connector(Arc<Address>);

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

async fn open(address: &Address) -> io::Result<Box<dyn Duplex>> {
    Ok(match address {
        Address::Unix(path) => Box::new(UnixStream::connect(path).await?),
        Address::Ssh(destination) => Box::new(destination.open().await?),
        Address::Tcp { host, port, tls } => {
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
