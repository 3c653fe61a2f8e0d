//! Engines behind `ssh://`: every connection is an `ssh` that runs `docker system dial-stdio` on the
//! other machine, as the docker CLI does it.
//!
//! Keys, known hosts and jumps are those of the user's own ssh. It is never asked for a password: there
//! is nobody to answer.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;
use url::Url;

use super::child::Reaped;

/// How much of what ssh complains about is kept.
const MAX_COMPLAINT: u64 = 4096;

/// Where to go, and with which program.
#[derive(Clone, Debug)]
pub(crate) struct Destination {
    program: PathBuf,
    user: Option<String>,
    host: String,
    port: Option<u16>,
    /// The engine's socket over there; the default one without.
    socket: Option<String>,
}

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ssh://")?;
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        f.write_str(&self.host)?;
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        f.write_str(self.socket.as_deref().unwrap_or_default())
    }
}

impl Destination {
    /// Reads `ssh://user@host:port/socket`. The error completes the sentence "DOCKER_HOST …".
    pub(super) fn parse(url: &Url, program: PathBuf) -> Result<Self, &'static str> {
        let host = url.host_str().unwrap_or_default();
        if host.is_empty() {
            return Err("has no host");
        }
        if url.password().is_some() {
            return Err("has a password, which ssh does not take this way");
        }
        // ssh and the shell over there would take it for something else.
        let plain = |text: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+".contains(c);
            !text.starts_with('-') && text.chars().all(allowed)
        };
        if !plain(host) || !plain(url.username()) || !plain(url.path()) {
            return Err("has a character that has no place in a user, a host or a path");
        }
        Ok(Self {
            program,
            user: Some(url.username().to_owned()).filter(|user| !user.is_empty()),
            host: host.trim_matches(['[', ']']).to_owned(),
            port: url.port(),
            socket: Some(url.path().to_owned()).filter(|path| !path.is_empty() && path != "/"),
        })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=30", "-T"]);
        if let Some(user) = &self.user {
            command.args(["-l", user]);
        }
        if let Some(port) = self.port {
            command.args(["-p", &port.to_string()]);
        }
        command.args(["--", &self.host, "docker"]);
        if let Some(socket) = &self.socket {
            command.args(["--host", &format!("unix://{socket}")]);
        }
        command.args(["system", "dial-stdio"]);
        command
    }

    /// Opens a connection. Whether the other side answers shows when it is read from.
    pub(super) fn open(&self) -> io::Result<Connection> {
        let child = self
            .command()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut child = Reaped(child);
        let closed = || io::Error::from(io::ErrorKind::BrokenPipe);
        let input = OwnedFd::from(child.0.stdin.take().ok_or_else(closed)?);
        let output = OwnedFd::from(child.0.stdout.take().ok_or_else(closed)?);
        let stderr = child.0.stderr.take().ok_or_else(closed)?;

        let complaint = Arc::new(Mutex::new(String::new()));
        let kept = Arc::clone(&complaint);
        // It ends with ssh.
        std::thread::Builder::new().spawn(move || {
            let mut said = Vec::new();
            let _ = stderr.take(MAX_COMPLAINT).read_to_end(&mut said);
            let said = String::from_utf8_lossy(&said).trim().replace('\n', "; ");
            *kept.lock().unwrap_or_else(PoisonError::into_inner) = said;
        })?;
        Ok(Connection {
            reader: pipe::Receiver::from_owned_fd(output)?,
            writer: Some(pipe::Sender::from_owned_fd(input)?),
            silent: true,
            complaint,
            _child: child,
        })
    }
}

/// A connection through a program's standard input and output.
#[derive(Debug)]
pub(super) struct Connection {
    reader: pipe::Receiver,
    writer: Option<pipe::Sender>,
    /// Nothing was read yet.
    silent: bool,
    complaint: Arc<Mutex<String>>,
    _child: Reaped,
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.reader).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            self.silent = false;
        } else if self.silent {
            // It ended before it began: what ssh has complained about is the reason.
            let complaint = self
                .complaint
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            return Poll::Ready(Err(io::Error::other(match complaint.as_str() {
                "" => "ssh ended without an answer".to_owned(),
                complaint => format!("ssh says: {complaint}"),
            })));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.writer {
            Some(writer) => Pin::new(writer).poll_write(context, data),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A pipe is shut by closing it.
        self.writer = None;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destination(url: &str) -> Result<Destination, &'static str> {
        Destination::parse(&Url::parse(url).unwrap(), PathBuf::from("/usr/bin/ssh"))
    }

    fn arguments(url: &str) -> String {
        let command = destination(url).unwrap().command();
        let arguments: Vec<_> = command.get_args().map(|a| a.to_string_lossy()).collect();
        arguments[5..].join(" ")
    }

    #[test]
    fn ssh_is_called_as_the_docker_cli_calls_it() {
        assert_eq!(arguments("ssh://host"), "-- host docker system dial-stdio");
        assert_eq!(
            arguments("ssh://me@host:2222/run/user/1/docker.sock"),
            "-l me -p 2222 -- host docker --host unix:///run/user/1/docker.sock system dial-stdio"
        );
    }

    #[test]
    fn an_address_that_ssh_would_misread_is_refused() {
        for url in [
            "ssh://-oProxyCommand=x",
            "ssh://me:secret@host",
            "ssh://host/a;b",
            "ssh://-x@host",
        ] {
            assert!(destination(url).is_err(), "{url}");
        }
    }
}
