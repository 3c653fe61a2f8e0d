//! Connections to an engine over any kind of address, kept alive and reused.

pub(super) mod address;
pub(super) mod body;
pub(super) mod config;
pub(super) mod docker_context;
pub(super) mod endpoint;
pub(super) mod grpc;
pub(super) mod places;
pub(super) mod request;
mod ssh;
pub(super) mod tls;
pub(super) mod unreachable;

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
use rustix::net::sockopt;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, BufReader};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::error::{Code, Error};
use crate::process::executor;
use crate::process::outside_file::within;
use address::Address;

/// The time limit for connecting. An engine is on this machine or on a nearby network.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The time limit for the first bytes of a gRPC server with TLS. The connection is used even if none arrive.
const FIRST_BYTES_TIMEOUT: Duration = Duration::from_secs(1);

/// Keep-alive of TCP: the silence before the first probe, the interval between probes, and how many unanswered probes
/// mean that the peer is lost.
const KEEP_ALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_ALIVE_PROBES: u32 = 3;

/// Idle connections are closed after this time, before an engine or a tunnel in between closes them.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// A placeholder for the host in the URI of a request. It is not resolved or sent: the connection and the `Host`
/// header depend on the address only.
pub(super) const HOST: &str = "engine";

/// The error for an endpoint that cannot be used. `what` completes the sentence that starts with `named_by`.
pub(in crate::engine) fn invalid(named_by: &str, what: &str) -> Error {
    Error::new(Code::InvalidOption, format!("{named_by} {what}"))
}

/// Connections to one engine, kept alive.
pub(super) type Pool = Client<Connector, Empty<Bytes>>;

/// A pool of connections to the engine at `address`. The first request opens one.
pub(super) fn pool(address: &Address) -> Pool {
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .build(Connector(Arc::new(address.clone())))
}

/// Opens a connection outside of the pool, for a long request.
pub(super) async fn dial(address: &Address) -> io::Result<Stream> {
    let io = connect(address).await?;
    Ok(Stream(TokioIo::new(io)))
}

/// Opens a connection to a gRPC server, which sends its HTTP/2 settings without waiting for the client.
///
/// With TLS 1.3, a server rejects a client's certificate after the handshake is complete for the client. If the client
/// writes before it reads, the write may fail with "broken pipe", and the reason is never read.
pub(super) async fn dial_for_grpc(address: &Address) -> io::Result<Stream> {
    let mut io = connect(address).await?;
    if matches!(address, Address::Tcp { tls: Some(_), .. }) {
        let mut buffered = BufReader::new(io);
        // A proxy in between may wait for the client.
        if let Ok(spoken) = tokio::time::timeout(FIRST_BYTES_TIMEOUT, buffered.fill_buf()).await {
            spoken?;
        }
        io = Box::new(buffered);
    }
    Ok(Stream(TokioIo::new(io)))
}

async fn connect(address: &Address) -> io::Result<Box<dyn Duplex>> {
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    tokio::time::timeout_at(deadline, open(address, deadline))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Opens connections to one address, and ignores the URI.
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

/// Runs file system calls that may hang on a blocking thread, with a time limit.
async fn limited<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    // The thread holds no resources, so it does not have to be awaited when the client closes.
    let tasks = TaskTracker::new();
    within(&tasks, Code::EngineUnreachable, what, || Ok(work()))
        .await
        .map_err(io::Error::other)?
}

async fn open(address: &Address, deadline: Instant) -> io::Result<Box<dyn Duplex>> {
    Ok(match address {
        Address::Unix(path) => {
            // connect() resolves the path on this thread, and would block it if a network file system hangs.
            let socket = path.clone();
            let what = format!("the socket {}", path.display());
            limited(&what, move || std::fs::metadata(socket).map(drop)).await?;
            Box::new(UnixStream::connect(path).await?)
        }
        Address::Ssh(destination) => Box::new(destination.open().await?),
        Address::Tcp {
            host, port, tls, ..
        } => {
            let addresses = executor::resolve(host, *port).await?;
            let stream = connect_to_any(&addresses, deadline).await?;
            stream.set_nodelay(true)?;
            keep_alive(&stream)?;
            match tls {
                None => Box::new(stream),
                Some(tls) => {
                    let name = match &tls.server_name {
                        Some(name) => name.clone(),
                        None => ServerName::try_from(host.clone()).map_err(io::Error::other)?,
                    };
                    let connector = tokio_rustls::TlsConnector::from(Arc::clone(&tls.config));
                    Box::new(connector.connect(name, stream).await?)
                }
            }
        }
    })
}

/// Enables TCP keep-alive, so that a connection fails when its peer loses power or network. Otherwise a build that
/// prints nothing would wait on.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEP_ALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEP_ALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEP_ALIVE_PROBES)?;
    Ok(())
}

/// Connects to the first address that accepts; otherwise returns the error of the last one. Each address has its share
/// of the remaining time, but at least two seconds, as in Go: a firewall may drop the packets to one of them.
async fn connect_to_any(addresses: &[SocketAddr], deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::other("the host has no address");
    for (address, left) in addresses.iter().zip((1..=addresses.len() as u32).rev()) {
        let share = deadline.saturating_duration_since(Instant::now()) / left;
        let share = share.max(Duration::from_secs(2));
        match tokio::time::timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

/// A byte stream in both directions.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection with hyper's traits.
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

#[cfg(test)]
mod tests {
    use tokio::net::TcpSocket;

    use super::*;
    use crate::process::executor::block_on;

    #[test]
    fn an_address_that_drops_packets_leaves_time_for_the_next_one() {
        block_on(async {
            let listen = || {
                let socket = TcpSocket::new_v4().unwrap();
                socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
                socket.listen(0).unwrap()
            };
            let (silent, open) = (listen(), listen());
            let addresses = [silent.local_addr().unwrap(), open.local_addr().unwrap()];
            // Linux drops the packets for a listener whose queue is full.
            let mut queued = Vec::new();
            let wait = Duration::from_millis(200);
            while let Ok(stream) =
                tokio::time::timeout(wait, TcpStream::connect(addresses[0])).await
            {
                queued.push(stream.unwrap());
            }
            let deadline = Instant::now() + Duration::from_secs(6);
            let connected = connect_to_any(&addresses, deadline);
            let connected = tokio::time::timeout_at(deadline, connected).await.unwrap();
            assert_eq!(connected.unwrap().peer_addr().unwrap(), addresses[1]);
        });
    }
}
