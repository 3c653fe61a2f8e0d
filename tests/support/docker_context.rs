//! The files that docker would send of a folder, by two references: the docker CLI of the distribution's
//! package, with a recorder as its engine, and the code of the current docker CLI and buildx.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};

use serde::Deserialize;
use tempfile::TempDir;

use super::daemon::GoProcess;
use super::required_var;

/// The paths that are sent, folders with a trailing slash; or the error.
pub type Choice = Result<BTreeSet<String>, String>;

/// The paths in an archive, including parent folders without an entry: the image has them too.
pub fn paths(archive: &[u8]) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let entry = entry.unwrap();
        let path = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
        let path = path.trim_end_matches('/');
        let slash = entry.header().entry_type().is_dir();
        paths.insert(format!("{path}{}", if slash { "/" } else { "" }));
    }
    with_folders(paths)
}

fn with_folders(mut paths: BTreeSet<String>) -> BTreeSet<String> {
    let folders: Vec<String> = paths
        .iter()
        .flat_map(|path| {
            path.match_indices('/')
                .map(|(end, _)| path[..=end].to_owned())
        })
        .collect();
    paths.extend(folders);
    paths
}

/// An engine that receives a build context and does not build it. The installed docker CLI sends it the
/// same context as to a real engine.
pub struct Recorder {
    folder: TempDir,
    contexts: Receiver<Vec<u8>>,
}

impl Recorder {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("engine")).unwrap();
        let (sender, contexts) = channel();
        // The thread runs until the test process exits.
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let sender = sender.clone();
                std::thread::spawn(move || serve(connection, &sender));
            }
        });
        Self { folder, contexts }
    }

    /// The files that `docker build` sends of a folder with a Dockerfile.
    pub fn docker_build(&self, tree: &Path) -> Choice {
        let engine = self.folder.path().join("engine");
        let output = Command::new(required_var("MOL_TEST_DOCKER"))
            .args(["build", "--quiet"])
            .arg(tree)
            .env_clear()
            .env("HOME", self.folder.path())
            .env("DOCKER_HOST", format!("unix://{}", engine.display()))
            .env("DOCKER_BUILDKIT", "0")
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("MOL_TEST_DOCKER: {error}"));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if said.contains(RECORDED) {
            Ok(paths(&self.contexts.recv().unwrap()))
        } else {
            Err(said)
        }
    }
}

/// The recorder's answer, which distinguishes it from a real failure.
const RECORDED: &str = "the recorder has it";

fn serve(connection: UnixStream, contexts: &Sender<Vec<u8>>) {
    let mut requests = BufReader::new(&connection);
    while let Some((line, headers)) = head(&mut requests) {
        let chunked = headers
            .iter()
            .any(|header| header == "transfer-encoding: chunked");
        let body = if chunked {
            chunks(&mut requests)
        } else {
            Vec::new()
        };
        let (status, answer) = if line.contains("/build?") {
            contexts.send(body).unwrap();
            let answer = serde_json::json!({ "message": RECORDED }).to_string();
            ("500 Internal Server Error", answer)
        } else {
            ("200 OK", String::new())
        };
        let length = answer.len();
        let answer = format!(
            "HTTP/1.1 {status}\r\nApi-Version: 1.41\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{answer}"
        );
        if (&connection).write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// The first line of a request, and its headers in lower case.
fn head(requests: &mut impl BufRead) -> Option<(String, Vec<String>)> {
    let mut lines = requests.lines().map_while(Result::ok);
    let first = lines.next()?;
    let headers = lines
        .take_while(|line| !line.is_empty())
        .map(|line| line.to_ascii_lowercase());
    Some((first, headers.collect()))
}

fn chunks(requests: &mut impl BufRead) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        requests.read_line(&mut line).unwrap();
        let length = usize::from_str_radix(line.trim(), 16).unwrap();
        let mut chunk = vec![0; length + 2];
        requests.read_exact(&mut chunk).unwrap();
        if length == 0 {
            return body;
        }
        body.extend_from_slice(&chunk[..length]);
    }
}

/// The current docker CLI and buildx: go/dockercontext, a process that answers one question per line.
pub struct DockerContext(GoProcess);

/// The files that they would send.
pub struct Answer {
    /// The patterns of the ignore file, as BuildKit sends them as exclude patterns.
    pub patterns: Vec<String>,
    pub classic: Choice,
    pub buildkit: Choice,
}

impl DockerContext {
    pub fn start() -> Self {
        Self(GoProcess::start("go/dockercontext", "."))
    }

    /// The files that they would send of a folder.
    pub fn ask(&mut self, tree: &Path) -> Answer {
        #[derive(Deserialize)]
        struct Sent {
            paths: Option<BTreeSet<String>>,
            #[serde(default)]
            error: String,
        }
        #[derive(Deserialize)]
        struct Line {
            patterns: Option<Vec<String>>,
            classic: Sent,
            buildkit: Sent,
        }
        let line = self.0.ask(tree.to_str().unwrap());
        let line: Line = serde_json::from_str(&line).unwrap();
        let choice = |sent: Sent| match sent.error {
            error if error.is_empty() => Ok(with_folders(sent.paths.unwrap_or_default())),
            error => Err(error),
        };
        Answer {
            patterns: line.patterns.unwrap_or_default(),
            classic: choice(line.classic),
            buildkit: choice(line.buildkit),
        }
    }
}
