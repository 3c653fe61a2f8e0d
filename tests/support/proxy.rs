//! Stands between the library and the engine: sees all that is sent, and fails where it is told to.
//! Everything else is the real engine's.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::{Engine, lock};

/// What to do with a request, by the first bytes that come of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treat {
    /// The engine answers.
    Pass,
    /// The answer is a 500.
    Fail,
    /// The engine gets it, and the connection breaks as soon as it answers.
    Break,
}

pub struct Proxy {
    /// What to set `DOCKER_HOST` to.
    pub url: String,
    sent: Arc<Mutex<Vec<u8>>>,
}

impl Proxy {
    pub fn start(engine: &Engine, folder: &Path, treat: fn(&str) -> Treat) -> Self {
        let socket = folder.join("proxy.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let real = engine.url.strip_prefix("unix://").unwrap().to_owned();
        let sent = Arc::<Mutex<Vec<u8>>>::default();
        let log = Arc::clone(&sent);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (engine, log) = (UnixStream::connect(&real).unwrap(), Arc::clone(&log));
                std::thread::spawn(move || serve(client, engine, &log, treat));
            }
        });
        Self {
            url: format!("unix://{}", socket.display()),
            sent,
        }
    }

    /// All that the library has sent so far.
    pub fn sent(&self) -> String {
        String::from_utf8_lossy(&lock(&self.sent)).into_owned()
    }
}

/// One connection, which may carry several requests, one after the other.
fn serve(
    mut client: UnixStream,
    mut engine: UnixStream,
    log: &Mutex<Vec<u8>>,
    treat: fn(&str) -> Treat,
) {
    let broken = Arc::new(Mutex::new(false));
    let (mut from, mut to) = (engine.try_clone().unwrap(), client.try_clone().unwrap());
    let cut = Arc::clone(&broken);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if *lock(&cut) || to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = client.read(&mut buffer) {
        let data = &buffer[..length];
        lock(log).extend_from_slice(data);
        let head = String::from_utf8_lossy(data);
        match treat(head.lines().next().unwrap_or_default()) {
            Treat::Fail => {
                let body = r#"{"message":"told to fail"}"#;
                let head = "HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json";
                let answer = format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                client.write_all(answer.as_bytes()).unwrap();
                continue;
            }
            Treat::Break => *lock(&broken) = true,
            Treat::Pass => {}
        }
        if engine.write_all(data).is_err() {
            break;
        }
    }
    let _ = engine.shutdown(Shutdown::Both);
}
