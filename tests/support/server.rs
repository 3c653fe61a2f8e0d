//! The template server of a test: a real git server behind Gitea's API with configurable faults. Package
//! go/templateserver/server documents the faults.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::git::{Object, fetch_answer};
use super::{lock, required_var};

/// The files of a commit, by path.
pub type Files = BTreeMap<String, Value>;

/// The requests of a fetch, as patterns for faults, each with the content type of git's answer. An answer
/// with another type is refused before its body is read.
pub const GIT: [(&str, &str); 2] = [
    ("/info/refs", "application/x-git-upload-pack-advertisement"),
    ("/git-upload-pack$", "application/x-git-upload-pack-result"),
];

/// A file with this text.
pub fn file(text: &str) -> Value {
    json!({ "text": text })
}

/// An executable file.
pub fn script(text: &str) -> Value {
    json!({ "text": text, "mode": "100755" })
}

/// The files of a template with only a Dockerfile.
pub fn dockerfile(text: &str) -> Files {
    Files::from([("Dockerfile".to_owned(), file(text))])
}

/// A Dockerfile that needs no other file and no other image.
pub const PLAIN: &str = "FROM scratch\nCOPY Dockerfile /\n";

/// A template whose image has the file `content`.
pub fn copying(content: &str) -> Files {
    with_content("FROM scratch\nCOPY content /\n", content)
}

/// A template whose image has all files of its context.
pub fn copying_all(content: &str) -> Files {
    with_content("FROM scratch\nCOPY . /\n", content)
}

fn with_content(text: &str, content: &str) -> Files {
    let mut files = dockerfile(text);
    files.insert("content".to_owned(), file(content));
    files
}

/// A request that the server received.
#[derive(Clone, Debug, Deserialize)]
pub struct Request {
    pub method: String,
    pub path: String,
    #[serde(default)]
    pub query: String,
    pub service: String,
    #[serde(default)]
    pub authorization: String,
    #[serde(default)]
    pub user_agent: String,
    /// The address of the client's end of the connection.
    #[serde(default)]
    pub peer: String,
}

pub struct Server {
    pub url: String,
    pub repo_prefix: String,
    process: Child,
    /// The server stops when this is closed, also if the test is killed.
    stdin: Option<ChildStdin>,
    /// The number of requests that the test has already read.
    seen: AtomicUsize,
    faults: Mutex<Vec<Value>>,
    root: TempDir,
}

impl Server {
    pub fn start(flags: &[&str]) -> Self {
        #[derive(Deserialize)]
        struct Listening {
            url: String,
            repo_prefix: String,
        }
        let root = tempfile::tempdir().unwrap();
        let mut process = Command::new(required_var("MOL_TEST_TEMPLATESERVER"))
            .arg("--root")
            .arg(root.path())
            .args(flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // git reports the injected faults here.
            .stderr(Stdio::null())
            .spawn()
            .expect("the template server must be built; run `make test`");
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let listening: Listening =
            serde_json::from_str(&line).expect("the template server must print its address");
        Self {
            url: listening.url,
            repo_prefix: listening.repo_prefix,
            stdin: process.stdin.take(),
            process,
            seen: AtomicUsize::new(0),
            faults: Mutex::default(),
            root,
        }
    }

    /// The name of a runtime's template repository.
    pub fn template(&self, runtime: &str) -> String {
        format!("molecule-ai/molecule-ai-workspace-template-{runtime}")
    }

    /// Commits exactly these files as the head of a branch. Returns the commit id.
    pub fn commit(&self, repository: &str, branch: &str, files: Files) -> String {
        self.commit_as(
            repository,
            json!({ "branch": branch, "files": files, "reset": true }),
        )
    }

    /// Makes a commit with any options of the server. Returns the commit id.
    pub fn commit_as(&self, repository: &str, commit: Value) -> String {
        let answer = self.control("POST", &format!("repos/{repository}/commits"), &commit);
        answer["sha"].as_str().unwrap().to_owned()
    }

    /// Writes objects into a repository without git's checks, and makes the last one, a commit, the head of
    /// `main`. git itself serves them.
    pub fn plant(&self, repository: &str, objects: &[Object]) -> String {
        self.repository(repository, json!({}));
        let folder = self.root.path().join(format!("{repository}.git"));
        for object in objects {
            let (path, data) = object.loose();
            let path = folder.join("objects").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, data).unwrap();
        }
        let head = objects.last().unwrap().hex();
        std::fs::write(folder.join("refs/heads/main"), format!("{head}\n")).unwrap();
        head
    }

    /// Adds this many branches to a repository, all at one commit.
    pub fn branches(&self, repository: &str, count: usize, commit: &str) {
        let mut lines = String::from("# pack-refs with: peeled fully-peeled sorted \n");
        for number in 0..count {
            lines += &format!("{commit} refs/heads/branch-{number:06}\n");
        }
        let folder = self.root.path().join(format!("{repository}.git"));
        std::fs::write(folder.join("packed-refs"), lines).unwrap();
    }

    /// Makes a repository with the head `commit` send this pack, unchecked.
    pub fn answer_with(&self, repository: &str, commit: &Object, pack: &[u8]) {
        self.answer_fetch(repository, commit, &fetch_answer(&commit.hex(), pack));
    }

    /// The same, with the complete answer to `command=fetch`. git itself answers the earlier requests.
    pub fn answer_fetch(&self, repository: &str, commit: &Object, answer: &[u8]) {
        use base64::Engine as _;
        self.plant(repository, std::slice::from_ref(commit));
        self.faults(json!([{
            "match": "/git-upload-pack$",
            "match_body": "command=fetch",
            "headers": { "Content-Type": "application/x-git-upload-pack-result" },
            "body_base64": base64::engine::general_purpose::STANDARD.encode(answer),
        }]));
    }

    /// Creates or changes a repository.
    pub fn repository(&self, repository: &str, how: Value) {
        self.control("PUT", &format!("repos/{repository}"), &how);
    }

    /// Creates a runtime's template repository, for commits that only git can make. Returns its folder.
    pub fn bare_repository(&self, runtime: &str) -> PathBuf {
        let name = self.template(runtime);
        self.repository(&name, json!({}));
        self.root.path().join(name + ".git")
    }

    /// Sets the server's faults, instead of earlier ones.
    pub fn faults(&self, faults: Value) {
        self.control("PUT", "faults", &faults);
        *lock(&self.faults) = faults.as_array().unwrap().clone();
    }

    /// Adds faults to the current ones.
    pub fn more_faults(&self, faults: Value) {
        let mut all = lock(&self.faults).clone();
        all.extend_from_slice(faults.as_array().unwrap());
        self.faults(all.into());
    }

    /// All requests since the last call of this function.
    pub fn requests(&self) -> Vec<Request> {
        let requests = self.control("GET", "requests", &Value::Null);
        let mut requests: Vec<Request> = serde_json::from_value(requests).unwrap();
        // Clearing the server's list instead could lose a request that arrives in between.
        let seen = self.seen.swap(requests.len(), Ordering::Relaxed);
        requests.split_off(seen)
    }

    fn control(&self, method: &str, path: &str, body: &Value) -> Value {
        let url = format!("{}/_control/{path}", self.url);
        let agent = ureq::agent();
        let answer = match method {
            "GET" => agent.get(&url).call(),
            "PUT" => agent.put(&url).send(body.to_string()),
            _ => agent.post(&url).send(body.to_string()),
        };
        let text = answer
            .unwrap_or_else(|error| panic!("{method} {path}: {error}"))
            .body_mut()
            .read_to_string()
            .unwrap();
        serde_json::from_str(&text).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.process.wait();
    }
}

/// The requests of one service, `api` or `git`.
pub fn of_service<'a>(requests: &'a [Request], service: &str) -> Vec<&'a Request> {
    requests.iter().filter(|r| r.service == service).collect()
}

/// How many fetches these requests belong to. Each begins with one request for the capabilities of git's protocol.
pub fn fetches(requests: &[Request]) -> usize {
    let git = of_service(requests, "git");
    git.iter()
        .filter(|request| request.path.ends_with("/info/refs"))
        .count()
}
