//! Engines behind `ssh://`: each connection is an `ssh` process that runs `docker system dial-stdio` on the remote
//! machine, as in the docker CLI.
//!
//! The user's ssh configuration provides keys, known hosts and jump hosts. ssh never asks for a password
//! (`BatchMode=yes`): nobody could answer.
//!
//! Libraries looked at: bollard's `ssh` feature uses the openssh crate, which starts ssh with `tokio::process`. That
//! installs a SIGCHLD handler without SA_ONSTACK, which a Go host does not survive. russh is a client of its own,
//! and russh-config reads only a part of `~/.ssh/config`.

use std::io;
use std::os::unix::net;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::{ChildStderr, ChildStdout, Command, Stdio};
use std::task::{Context, Poll, ready};

use percent_encoding::percent_decode_str;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio_util::task::TaskTracker;
use url::Url;

use crate::engine::child::{self, ChildProcess};
use crate::process::executor::{SHORT_WORK, blocking_in};
use crate::redact::whole_words;

/// The most bytes of ssh's standard error that are kept.
const MAX_STDERR: usize = 4096;

/// A remote engine, and the ssh program to reach it.
#[derive(Clone, Debug)]
pub(crate) struct Destination {
    program: PathBuf,
    user: Option<String>,
    host: String,
    port: Option<u16>,
    /// The engine's socket on the remote machine, if it is not the default one.
    socket: Option<String>,
    /// Tracks the threads that start ssh, and those that wait for it after it is killed.
    tasks: TaskTracker,
}

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ssh://")?;
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        match self.host.contains(':') {
            true => write!(f, "[{}]", self.host)?,
            false => f.write_str(&self.host)?,
        }
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        f.write_str(self.socket.as_deref().unwrap_or_default())
    }
}

impl Destination {
    /// Parses `ssh://user@host:port/socket`. The error completes the sentence "DOCKER_HOST …".
    pub(super) fn parse(url: &Url, program: PathBuf) -> Result<Self, &'static str> {
        let host = url.host_str().unwrap_or_default();
        // ssh expects an IPv6 address without brackets.
        let host = host.trim_matches(['[', ']']);
        if host.is_empty() {
            return Err("has no host");
        }
        if url.password().is_some() {
            return Err("has a password, which ssh does not accept in an address");
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err("has a query or a fragment");
        }
        let decoded = |text| percent_decode_str(text).decode_utf8();
        let (Ok(user), Ok(path)) = (decoded(url.username()), decoded(url.path())) else {
            return Err("is not UTF-8");
        };
        // ssh or the remote shell would interpret other characters.
        let plain = |text: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+".contains(c);
            !text.starts_with('-') && text.chars().all(allowed)
        };
        if !plain(host) || !plain(&user) || !plain(&path) {
            return Err("has a character that is not allowed in a user, a host or a path");
        }
        Ok(Self {
            program,
            user: Some(user.into_owned()).filter(|user| !user.is_empty()),
            host: host.to_owned(),
            port: url.port(),
            socket: Some(path.into_owned()).filter(|path| !path.is_empty() && path != "/"),
            tasks: TaskTracker::new(),
        })
    }

    /// Has `tasks` track the threads that start ssh, and those that wait for it after it is killed.
    pub(in crate::engine) fn track_in(&mut self, tasks: &TaskTracker) {
        self.tasks = tasks.clone();
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

    /// Opens a connection. Whether the remote engine responds shows only on the first read. If the future is
    /// dropped while ssh starts, ssh is killed.
    pub(super) async fn open(&self) -> io::Result<Connection> {
        let destination = self.clone();
        let started = blocking_in(&SHORT_WORK, &self.tasks, move || Ok(destination.start())).await;
        started.map_err(io::Error::other)??.connected()
    }

    fn start(&self) -> io::Result<Started> {
        let (input, theirs) = child::stdin_socket()?;
        input.set_nonblocking(true)?;
        let mut child = ChildProcess::spawn(
            self.command()
                .stdin(theirs)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped()),
            &self.tasks,
        )?;
        let closed = || io::Error::from(io::ErrorKind::BrokenPipe);
        let output = child.child.stdout.take().ok_or_else(closed)?;
        let stderr = child.child.stderr.take().ok_or_else(closed)?;
        Ok(Started {
            input,
            output,
            stderr,
            child,
        })
    }
}

/// A started ssh process and its pipes.
struct Started {
    input: net::UnixStream,
    output: ChildStdout,
    stderr: ChildStderr,
    child: ChildProcess,
}

impl Started {
    fn connected(self) -> io::Result<Connection> {
        Ok(Connection {
            reader: pipe::Receiver::from_owned_fd(self.output.into())?,
            writer: Some(UnixStream::from_std(self.input)?),
            stderr: pipe::Receiver::from_owned_fd(self.stderr.into())?,
            errors: Vec::new(),
            silent: true,
            _child: self.child,
        })
    }
}

/// A connection through the standard input and output of ssh.
#[derive(Debug)]
pub(super) struct Connection {
    reader: pipe::Receiver,
    writer: Option<UnixStream>,
    stderr: pipe::Receiver,
    /// The beginning of the standard error.
    errors: Vec<u8>,
    /// Whether nothing was read yet.
    silent: bool,
    _child: ChildProcess,
}

impl Connection {
    /// Reads the standard error to its end. All of it is read, so that ssh never blocks on the pipe.
    fn poll_stderr(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut piece = [0; 512];
        loop {
            let mut buffer = ReadBuf::new(&mut piece);
            match ready!(Pin::new(&mut self.stderr).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {
                    let room = MAX_STDERR - self.errors.len();
                    let piece = buffer.filled();
                    self.errors
                        .extend_from_slice(&piece[..piece.len().min(room)]);
                }
                _ => return Poll::Ready(()),
            }
        }
    }

    /// The error of a connection that ended before its first byte: the standard error of ssh.
    fn poll_failure(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        ready!(self.poll_stderr(context));
        let text = String::from_utf8_lossy(&self.errors);
        let text = match self.errors.len() {
            MAX_STDERR => whole_words(&text),
            _ => &text,
        };
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        Poll::Ready(io::Error::other(match lines.join("; ").trim() {
            "" => "ssh ended without an answer".to_owned(),
            errors => format!("ssh says: {errors}"),
        }))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let _ = self.poll_stderr(context);
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.reader).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            self.silent = false;
        } else if self.silent {
            return self.poll_failure(context).map(Err);
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
        let Some(writer) = &mut self.writer else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        match ready!(Pin::new(writer).poll_write(context, data)) {
            // ssh exited before this write: report its standard error instead of EPIPE.
            Err(error) if child::is_gone(&error) && self.silent => {
                self.poll_failure(context).map(Err)
            }
            result => Poll::Ready(result),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Nothing is read from this socket, so it is closed completely.
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
    fn ssh_is_called_as_in_the_docker_cli() {
        for (url, expected) in [
            ("ssh://host", "-- host docker system dial-stdio"),
            ("ssh://host/", "-- host docker system dial-stdio"),
            ("ssh://[::1]:22", "-p 22 -- ::1 docker system dial-stdio"),
            (
                "ssh://me%40corp@host",
                "-l me@corp -- host docker system dial-stdio",
            ),
            (
                "ssh://me@host:2222/run/user/1/docker.sock",
                "-l me -p 2222 -- host docker --host unix:///run/user/1/docker.sock system dial-stdio",
            ),
        ] {
            assert_eq!(arguments(url), expected);
        }
    }

    #[test]
    fn a_destination_is_displayed_as_in_docker_host() {
        for url in ["ssh://me@host:2222/run/docker.sock", "ssh://[::1]:22"] {
            assert_eq!(destination(url).unwrap().to_string(), url);
        }
    }

    #[test]
    fn an_address_that_ssh_would_misread_is_rejected() {
        for url in [
            "ssh://-oProxyCommand=x",
            "ssh://me:secret@host",
            "ssh://host/a;b",
            "ssh://host/a%3Bb",
            "ssh://host/a%20b",
            "ssh://-x@host",
            "ssh://%2Dx@host",
            "ssh://a%0Ab@host",
            "ssh://host?query",
            "ssh://host#fragment",
        ] {
            assert!(destination(url).is_err(), "{url}");
        }
    }
}
