//! A daemon in a container that buildx has created (driver `docker-container`). It listens only inside the container,
//! so a connection is an exec of `buildctl dial-stdio` there, over its standard input and output.

use bytes::Bytes;
use futures_util::TryStreamExt;
use http_body_util::{BodyExt, Full};
use hyper::header::CONTENT_TYPE;
use hyper::http::request::Builder as RequestBuilder;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};
use tokio_util::io::StreamReader;

use crate::engine::api::in_path;
use crate::engine::builders::trouble::Trouble;
use crate::engine::connect::address::Address;
use crate::engine::connect::body::read_body;
use crate::engine::connect::request::{Body, Failure, send, upgrade_with};
use crate::printable;

/// The largest answer to a request, and the largest piece of output.
const MAX_ANSWER: usize = 64 << 10;
const MAX_PIECE: usize = 1 << 20;

/// Each piece of output begins with its stream (1 for standard output), three zero bytes and its length (Docker Engine
/// API, `ContainerAttach`).
const HEADER: usize = 8;
const STDOUT: u8 = 1;

/// Opens a connection to the daemon in a container, which is started if it is stopped and `start` is true.
pub(super) async fn connect(
    engine: &Address,
    container: &str,
    start: bool,
) -> Result<TokioIo<impl AsyncRead + AsyncWrite + Send + Unpin + use<>>, Trouble> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Created {
        id: String,
    }
    let name = in_path(container);
    let path = format!("/containers/{name}/exec");
    let exec = || {
        post(
            engine,
            &path,
            r#"{"AttachStdin":true,"AttachStdout":true,"AttachStderr":true,"Cmd":["buildctl","dial-stdio"]}"#,
        )
    };
    let created = match exec().await {
        Err(failure) if is_conflict(&failure) && !start => {
            return Err(not_running(engine, container).await);
        }
        Err(failure) if is_conflict(&failure) => {
            match post(engine, &format!("/containers/{name}/start"), "").await {
                Err(failure) if !is_started(&failure) => Err(failure),
                _ => exec().await,
            }
        }
        created => created,
    };
    let created = created.map_err(|failure| trouble(engine, container, &failure))?;
    let Created { id } = serde_json::from_slice(&created).map_err(|error| {
        Trouble::new(
            format!("the engine at {engine} gave an answer that cannot be read: {error}"),
            "read the engine's log",
        )
    })?;
    let request = json(Request::post(format!("/exec/{}/start", in_path(&id))));
    let body = body(r#"{"Detach":false,"Tty":false}"#);
    let connection = upgrade_with(engine, request, "tcp", body).await;
    let connection = connection.map_err(|failure| trouble(engine, container, &failure))?;
    let (output, input) = tokio::io::split(TokioIo::new(connection));
    let pieces = LengthDelimitedCodec::builder()
        .length_field_offset(4)
        // The header stays, because it has the stream.
        .num_skip(0)
        .length_adjustment(HEADER as isize)
        .max_frame_length(MAX_PIECE)
        .new_codec();
    let output = FramedRead::new(output, pieces).try_filter_map(|mut piece| {
        let is_output = piece.first() == Some(&STDOUT);
        let content = is_output.then(|| piece.split_off(HEADER.min(piece.len())).freeze());
        std::future::ready(Ok(content))
    });
    Ok(TokioIo::new(tokio::io::join(
        StreamReader::new(output),
        input,
    )))
}

/// Sends a request to the engine, and returns the body of its answer.
async fn post(engine: &Address, path: &str, content: &'static str) -> Result<Vec<u8>, Failure> {
    exchange(engine, json(Request::post(path)), content).await
}

async fn exchange(
    engine: &Address,
    request: RequestBuilder,
    content: &'static str,
) -> Result<Vec<u8>, Failure> {
    let request = request.body(body(content));
    let request = request.map_err(|error| Failure::broken(&error))?;
    let answer = send(engine, request).await?;
    let body = read_body(answer.response.into_body(), MAX_ANSWER).await;
    body.map_err(|error| Failure::Broken(error.to_string()))
}

fn json(request: RequestBuilder) -> RequestBuilder {
    request.header(CONTENT_TYPE, "application/json")
}

fn body(content: &'static str) -> Body {
    let whole = Full::new(Bytes::from_static(content.as_bytes()));
    whole.map_err(|never| match never {}).boxed_unsync()
}

/// Whether the engine refuses because of the container's state.
fn is_conflict(failure: &Failure) -> bool {
    matches!(failure, Failure::Refused(refusal) if refusal.status == StatusCode::CONFLICT.as_u16())
}

/// Whether the container to be started already runs (Docker Engine API, `ContainerStart`), because another build has
/// started it in the meantime.
fn is_started(failure: &Failure) -> bool {
    let status = StatusCode::NOT_MODIFIED.as_u16();
    matches!(failure, Failure::Refused(refusal) if refusal.status == status)
}

/// Why a container cannot run a program: it is stopped (a build starts it), or paused, for example.
async fn not_running(engine: &Address, container: &str) -> Trouble {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Inspected {
        state: State,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct State {
        status: String,
    }
    let request = Request::get(format!("/containers/{}/json", in_path(container)));
    let answer = exchange(engine, request, "").await.ok();
    let inspected = answer.and_then(|answer| serde_json::from_slice::<Inspected>(&answer).ok());
    match inspected.map(|inspected| inspected.state.status) {
        Some(status) if !matches!(&*status, "created" | "exited" | "stopped") => Trouble::new(
            format!("its container {container} is {}", printable::line(&status)),
            "check the container: docker ps --all",
        ),
        // One that cannot be looked at is most likely stopped.
        _ => Trouble {
            is_stopped: true,
            ..Trouble::new(
                format!("its container {container} is stopped; a build starts it"),
                "start it: docker buildx inspect --bootstrap, with the builder's name",
            )
        },
    }
}

fn trouble(engine: &Address, container: &str, failure: &Failure) -> Trouble {
    match failure {
        Failure::Refused(refusal) if refusal.is_not_found() => Trouble::new(
            format!("the engine at {engine} has no container {container}"),
            "start the builder: docker buildx inspect --bootstrap, with its name",
        ),
        Failure::Local(limit) => Trouble {
            limit: Some(Box::new(limit.clone())),
            ..Trouble::new(limit.message(), "")
        },
        failure => Trouble::new(
            format!("the engine at {engine} cannot connect to it: {failure}"),
            "check the engine and the container (docker logs); docker buildx inspect --bootstrap starts the builder",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::os::unix::net::UnixListener;
    use std::thread;

    use crate::process::executor::block_on;

    /// Serves these requests, each on a connection of its own: the path, and the answer.
    fn serve(listener: UnixListener, answers: Vec<(&'static str, &'static str)>) {
        for (path, answer) in answers {
            let (mut connection, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(connection.try_clone().unwrap());
            let (mut first, mut length) = (String::new(), 0);
            reader.read_line(&mut first).unwrap();
            assert_eq!(first, format!("POST {path} HTTP/1.1\r\n"));
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                let line = line.trim_end().to_lowercase();
                if let Some(value) = line.strip_prefix("content-length: ") {
                    length = value.parse().unwrap();
                }
                if line.is_empty() {
                    break;
                }
            }
            reader.read_exact(&mut vec![0; length]).unwrap();
            let answer = answer.replace('\n', "\r\n");
            connection.write_all(answer.as_bytes()).unwrap();
        }
    }

    #[test]
    fn a_container_that_another_build_has_just_started_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("engine.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let answers = vec![
            (
                "/containers/buildkit/exec",
                "HTTP/1.1 409 Conflict\nContent-Length: 0\n\n",
            ),
            (
                "/containers/buildkit/start",
                "HTTP/1.1 304 Not Modified\n\n",
            ),
            (
                "/containers/buildkit/exec",
                "HTTP/1.1 201 Created\nContent-Length: 11\n\n{\"Id\":\"id\"}",
            ),
            (
                "/exec/id/start",
                "HTTP/1.1 101 Switching Protocols\nConnection: Upgrade\nUpgrade: tcp\n\n",
            ),
        ];
        let engine = thread::spawn(move || serve(listener, answers));
        let connected = block_on(connect(&Address::Unix(socket), "buildkit", true));
        assert!(connected.is_ok(), "{:?}", connected.err());
        engine.join().unwrap();
    }
}
