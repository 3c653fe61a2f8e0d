//! A proxy between the library and a peer, the engine or the template server. It records all requests, and
//! injects faults at exact bytes. Everything else is passed to and from the real peer.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::{Engine, Server, block_on, lock, wait_until};

/// What to do with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handling {
    /// Pass the request and the answer.
    Pass,
    /// Answer with a 500.
    Fail,
    /// Pass the request without its headers Connection and Upgrade.
    WithoutUpgrade,
    /// Answer with these bytes, then end like this.
    Answer(Vec<u8>, End),
    /// Answer with the first bytes, then repeat the second ones as long as the library reads.
    Endless(Vec<u8>, Vec<u8>),
    /// Pass this many bytes of the request, then end like this.
    CutRequest(usize, End),
    /// Pass the request in pieces of at most 64 KiB, with this pause after each.
    SlowRequest(Duration),
    /// Pass this many bytes of the answer, then end like this.
    CutAnswer(usize, End),
    /// Pass the answer in pieces of this many bytes, with this pause after each.
    Drip(usize, Duration),
}

impl Handling {
    /// Answer with this status, type and body.
    pub fn answer(status: &str, kind: &str, body: &str) -> Self {
        let length = body.len();
        let head = format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}");
        Self::Answer(format!("{head}\r\n\r\n{body}").into_bytes(), End::Stay)
    }

    /// Answer with this JSON text.
    pub fn json(body: &str) -> Self {
        Self::answer("200 OK", "application/json", body)
    }
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Close,
    /// With a TCP reset. A Unix socket is closed, because it has no reset.
    Reset,
    /// It stays open, but no more data comes.
    Hang,
    /// It stays open for the next request.
    Stay,
}

/// Chooses the treatment of a request by its first line. It may keep state.
type Rule = Arc<dyn Fn(&str) -> Handling + Send + Sync>;

pub struct Proxy {
    /// The value for `DOCKER_HOST`, or the URL of the template server through the proxy.
    pub url: String,
    sent: Arc<Mutex<Vec<u8>>>,
    open: Arc<AtomicUsize>,
}

/// The address of the real peer.
#[derive(Clone)]
enum Peer {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// A Unix or TCP connection.
trait Connection: AsyncRead + AsyncWrite + Send + Unpin + 'static {
    fn reset(&self) {}
}

impl Connection for UnixStream {}

impl Connection for TcpStream {
    fn reset(&self) {
        self.set_zero_linger().unwrap();
    }
}

impl Proxy {
    /// A proxy in front of an engine. Runs until the test process exits.
    pub fn start(
        engine: &Engine,
        folder: &Path,
        handling: impl Fn(&str) -> Handling + Send + Sync + 'static,
    ) -> Self {
        let socket = folder.join("proxy.sock");
        let peer = Peer::Unix(engine.url.strip_prefix("unix://").unwrap().into());
        let (proxy, rule) = Self::new(format!("unix://{}", socket.display()), handling);
        let open = Arc::clone(&proxy.open);
        let sent = Arc::clone(&proxy.sent);
        block_on(async {
            let listener = UnixListener::bind(&socket).unwrap();
            tokio::spawn(async move {
                while let Ok((client, _)) = listener.accept().await {
                    begin(client, &peer, &sent, &open, &rule);
                }
            });
        });
        proxy
    }

    /// A proxy in front of an engine with a TCP address, because a TCP connection can be reset.
    pub fn over_tcp(
        engine: &Engine,
        handling: impl Fn(&str) -> Handling + Send + Sync + 'static,
    ) -> Self {
        let peer = Peer::Unix(engine.url.strip_prefix("unix://").unwrap().into());
        Self::listening("tcp", peer, handling)
    }

    /// A proxy in front of a template server.
    pub fn before(
        server: &Server,
        handling: impl Fn(&str) -> Handling + Send + Sync + 'static,
    ) -> Self {
        let address = server.url.strip_prefix("http://").unwrap();
        let peer = Peer::Tcp(address.parse().unwrap());
        Self::listening("http", peer, handling)
    }

    /// A proxy in front of a registry. The host in its images is that of [`Proxy::url`].
    pub fn before_registry(
        host: &str,
        handling: impl Fn(&str) -> Handling + Send + Sync + 'static,
    ) -> Self {
        Self::listening("http", Peer::Tcp(host.parse().unwrap()), handling)
    }

    fn listening(
        scheme: &str,
        peer: Peer,
        handling: impl Fn(&str) -> Handling + Send + Sync + 'static,
    ) -> Self {
        let listener = block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let (proxy, rule) = Self::new(url, handling);
        let open = Arc::clone(&proxy.open);
        let sent = Arc::clone(&proxy.sent);
        block_on(async {
            tokio::spawn(async move {
                while let Ok((client, _)) = listener.accept().await {
                    begin(client, &peer, &sent, &open, &rule);
                }
            });
        });
        proxy
    }

    fn new(
        url: String,
        handling: impl Fn(&str) -> Handling + Send + Sync + 'static,
    ) -> (Self, Rule) {
        let (sent, open) = (Arc::default(), Arc::default());
        (Self { url, sent, open }, Arc::new(handling))
    }

    /// The repository prefix of a template server through this proxy.
    pub fn repo_prefix(&self, server: &Server) -> String {
        server.repo_prefix.replace(&server.url, &self.url)
    }

    /// All bytes that the library has sent so far.
    pub fn sent(&self) -> String {
        String::from_utf8_lossy(&lock(&self.sent)).into_owned()
    }

    /// The number of open connections.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// Waits until the library has closed all its connections.
    pub fn until_closed(&self) {
        wait_until("all connections to be closed", || {
            (self.open() == 0).then_some(())
        });
    }
}

fn begin(
    client: impl Connection,
    peer: &Peer,
    sent: &Arc<Mutex<Vec<u8>>>,
    open: &Arc<AtomicUsize>,
    rule: &Rule,
) {
    struct Opened(Arc<AtomicUsize>);
    impl Drop for Opened {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
    open.fetch_add(1, Ordering::SeqCst);
    let opened = Opened(Arc::clone(open));
    let (peer, sent, rule) = (peer.clone(), Arc::clone(sent), Arc::clone(rule));
    tokio::spawn(async move {
        let _opened = opened;
        match peer {
            Peer::Unix(path) => {
                if let Ok(peer) = UnixStream::connect(path).await {
                    serve(client, peer, &sent, &rule).await;
                }
            }
            Peer::Tcp(address) => {
                if let Ok(peer) = TcpStream::connect(address).await {
                    serve(client, peer, &sent, &rule).await;
                }
            }
        }
    });
}

/// The current request on a connection, which may carry several in sequence.
struct Exchange {
    handling: Handling,
    asked: usize,
    answered: usize,
}

/// The half of the connection that the library reads. Both directions write to it.
type ToClient<C> = tokio::sync::Mutex<WriteHalf<C>>;

async fn serve<C: Connection>(
    client: C,
    peer: impl Connection,
    sent: &Mutex<Vec<u8>>,
    rule: &Rule,
) {
    let (mut from_client, to_client) = split(client);
    let (mut from_peer, mut to_peer) = split(peer);
    let to_client = ToClient::new(to_client);
    let exchange = Mutex::new(Exchange {
        handling: Handling::Pass,
        asked: 0,
        answered: 0,
    });
    let end = tokio::select! {
        end = requests(&mut from_client, &mut to_peer, &to_client, &exchange, sent, rule) => end,
        end = answers(&mut from_peer, &to_client, &exchange) => end,
    };
    if end == End::Hang {
        // Until the library closes the connection. The peer does not get this data.
        let mut rest = [0; 4096];
        while let Ok(1..) = from_client.read(&mut rest).await {}
    }
    let client = from_client.unsplit(to_client.into_inner());
    if end == End::Reset {
        client.reset();
    }
}

async fn requests<C: Connection>(
    from_client: &mut ReadHalf<C>,
    to_peer: &mut WriteHalf<impl Connection>,
    to_client: &ToClient<C>,
    exchange: &Mutex<Exchange>,
    sent: &Mutex<Vec<u8>>,
    rule: &Rule,
) -> End {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from_client.read(&mut buffer).await {
        let data = &buffer[..length];
        lock(sent).extend_from_slice(data);
        if let Some(line) = first_line(data) {
            *lock(exchange) = Exchange {
                handling: rule(&line),
                asked: 0,
                answered: 0,
            };
        }
        let (handling, asked) = {
            let mut exchange = lock(exchange);
            exchange.asked += length;
            (exchange.handling.clone(), exchange.asked - length)
        };
        let without_upgrade;
        let data = match handling {
            Handling::WithoutUpgrade if asked == 0 => {
                without_upgrade = drop_upgrade(data);
                &without_upgrade
            }
            _ => data,
        };
        match handling {
            // Answer only once: this data is the rest of the same request.
            Handling::Fail | Handling::Answer(..) | Handling::Endless(..) if asked > 0 => {}
            Handling::Fail => {
                let body = r#"{"message":"injected failure"}"#;
                let head = "HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json";
                let answer = format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                let _ = to_client.lock().await.write_all(answer.as_bytes()).await;
            }
            Handling::Answer(bytes, end) => {
                let _ = to_client.lock().await.write_all(&bytes).await;
                if end != End::Stay {
                    return end;
                }
            }
            Handling::Endless(head, rest) => {
                let mut to_client = to_client.lock().await;
                let _ = to_client.write_all(&head).await;
                while to_client.write_all(&rest).await.is_ok() {}
                return End::Close;
            }
            Handling::CutRequest(limit, end) if asked + length >= limit => {
                let _ = to_peer
                    .write_all(&data[..limit.saturating_sub(asked)])
                    .await;
                return end;
            }
            handling => {
                if to_peer.write_all(data).await.is_err() {
                    break;
                }
                if let Handling::SlowRequest(pause) = handling {
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }
    End::Close
}

async fn answers<C: Connection>(
    from_peer: &mut ReadHalf<impl Connection>,
    to_client: &ToClient<C>,
    exchange: &Mutex<Exchange>,
) -> End {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from_peer.read(&mut buffer).await {
        let mut data = &buffer[..length];
        let (handling, answered) = {
            let mut exchange = lock(exchange);
            exchange.answered += length;
            (exchange.handling.clone(), exchange.answered - length)
        };
        let mut end = None;
        match handling {
            Handling::CutAnswer(limit, how) if answered + length >= limit => {
                data = &data[..limit.saturating_sub(answered)];
                end = Some(how);
            }
            Handling::Drip(bytes, pause) => {
                for piece in data.chunks(bytes) {
                    if to_client.lock().await.write_all(piece).await.is_err() {
                        return End::Close;
                    }
                    tokio::time::sleep(pause).await;
                }
                continue;
            }
            _ => {}
        }
        if to_client.lock().await.write_all(data).await.is_err() {
            break;
        }
        if let Some(end) = end {
            return end;
        }
    }
    End::Close
}

/// The request without these headers, as a proxy without support for upgrades forwards it (RFC 9110,
/// section 7.6.1).
fn drop_upgrade(request: &[u8]) -> Vec<u8> {
    let text = String::from_utf8(request.to_vec()).unwrap();
    let hop_by_hop = |line: &&str| {
        let name = line.split(':').next().unwrap_or_default().to_lowercase();
        !matches!(name.as_str(), "connection" | "upgrade")
    };
    let kept: Vec<&str> = text.split("\r\n").filter(hop_by_hop).collect();
    assert_ne!(kept.len(), text.split("\r\n").count(), "{text}");
    kept.join("\r\n").into_bytes()
}

/// The request line, if this data is the beginning of a request.
fn first_line(data: &[u8]) -> Option<String> {
    let line = data.split(|byte| *byte == b'\r').next()?;
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.split(' ');
    let method = words.next()?;
    let known = ["GET", "HEAD", "POST", "PUT", "DELETE"].contains(&method);
    (known && words.next()?.starts_with('/') && words.next()?.starts_with("HTTP/"))
        .then(|| line.to_owned())
}
