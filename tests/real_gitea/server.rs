//! A real Gitea, started by the script scripts/gitea, and requests to it.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// The client of a request.
#[derive(Clone, Debug)]
pub enum As {
    Anonymous,
    Token(String),
}

/// A folder for servers.
pub struct Place {
    folder: tempfile::TempDir,
    /// The token of an administrator.
    token: String,
}

impl Place {
    pub fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("mol-gitea")
            .tempdir()
            .unwrap();
        let token = script(&["install", path(folder.path())]);
        Self { folder, token }
    }
}

pub struct Server<'p> {
    place: &'p Place,
    name: &'static str,
    pub url: String,
    pub token: String,
}

/// A response of any status.
pub struct Response {
    pub status: u16,
    pub content_type: String,
    pub location: String,
    pub body: String,
}

impl Response {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }
}

impl<'p> Server<'p> {
    /// Starts a server with these additional settings (`section:KEY=value`), in which `{address}` is replaced
    /// by its host and port.
    pub fn start(place: &'p Place, name: &'static str, settings: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        drop(listener);
        let url = format!("http://127.0.0.1:{port}");
        let settings: Vec<String> = settings
            .iter()
            .map(|setting| setting.replace("{address}", &format!("127.0.0.1:{port}")))
            .collect();
        let mut arguments = vec!["start", path(place.folder.path()), name, &port];
        arguments.extend(settings.iter().map(String::as_str));
        script(&arguments);
        let token = place.token.clone();
        Self {
            place,
            name,
            url,
            token,
        }
    }

    /// The folder of its files.
    pub fn folder(&self) -> PathBuf {
        self.place.folder.path().join(self.name)
    }

    /// Makes Gitea create a self-signed `cert.pem` and a `key.pem` for 127.0.0.1 in a folder.
    pub fn make_certificate(&self, folder: &Path) {
        let place = path(self.place.folder.path());
        let script = super::support::required_var("MOL_TEST_GITEA");
        let arguments = ["cli", place, "cert", "--ca", "--host", "127.0.0.1"];
        run(Command::new(script).current_dir(folder).args(arguments));
    }

    pub fn admin(&self) -> As {
        As::Token(self.token.clone())
    }

    /// Sends one request without following redirects.
    pub fn request(&self, method: &str, path: &str, client: &As, body: Option<Value>) -> Response {
        let header = match client {
            As::Anonymous => None,
            // As libmol sends it.
            As::Token(token) if path.starts_with("/api/") => Some(format!("token {token}")),
            As::Token(token) => {
                let pair = STANDARD.encode(format!("x-access-token:{token}"));
                Some(format!("Basic {pair}"))
            }
        };
        self.send(method, path, header, body)
    }

    fn send(
        &self,
        method: &str,
        path: &str,
        authorization: Option<String>,
        body: Option<Value>,
    ) -> Response {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .build()
            .into();
        let mut request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url));
        if let Some(authorization) = authorization {
            request = request.header("Authorization", authorization);
        }
        let text = body.map(|body| body.to_string()).unwrap_or_default();
        let request = request
            .header("Content-Type", "application/json")
            .body(text);
        let mut response = agent.run(request.unwrap()).unwrap();
        let header = |name: &str| {
            let value = response.headers().get(name);
            value.map_or("", |value| value.to_str().unwrap()).to_owned()
        };
        let (content_type, location) = (header("content-type"), header("location"));
        Response {
            status: response.status().as_u16(),
            content_type,
            location,
            body: String::from_utf8_lossy(&response.body_mut().read_to_vec().unwrap()).into_owned(),
        }
    }

    /// An API request as administrator that must succeed.
    pub fn change(&self, method: &str, path: &str, body: Value) -> Value {
        let response = self.request(method, &format!("/api/v1{path}"), &self.admin(), Some(body));
        let (status, body) = (response.status, &response.body);
        assert!(
            (200..300).contains(&status),
            "{method} {path}: {status} {body}"
        );
        response.json()
    }

    /// Creates a user and a token with these scopes.
    pub fn user(&self, name: &str, scopes: &[&str]) -> As {
        const PASSWORD: &str = "a-Password-of-the-tests-1";
        let user = json!({ "username": name, "email": format!("{name}@example.com"),
            "password": PASSWORD, "must_change_password": false });
        self.change("POST", "/admin/users", user);
        let pair = STANDARD.encode(format!("{name}:{PASSWORD}"));
        let token = self.send(
            "POST",
            &format!("/api/v1/users/{name}/tokens"),
            Some(format!("Basic {pair}")),
            Some(json!({ "name": "tests", "scopes": scopes })),
        );
        As::Token(token.json()["sha1"].as_str().unwrap().to_owned())
    }

    /// Creates a repository, and its organization if it does not exist.
    pub fn repository(&self, name: &str, more: Value) {
        let (organization, name) = name.split_once('/').unwrap();
        let path = format!("/api/v1/orgs/{organization}");
        if self.request("GET", &path, &self.admin(), None).status == 404 {
            self.change("POST", "/orgs", json!({ "username": organization }));
        }
        let mut settings = json!({ "name": name, "default_branch": "main" });
        settings
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        self.change("POST", &format!("/orgs/{organization}/repos"), settings);
    }

    /// Creates a root commit and force-pushes it as the head of a branch.
    pub fn push(&self, repository: &str, branch: &str, commit: &Commit) -> String {
        let folder = tempfile::tempdir().unwrap();
        let git = |arguments: &[&str]| git(folder.path(), arguments);
        git(&["init", "--quiet"]);
        for (name, text) in &commit.files {
            let file = folder.path().join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        }
        git(&["add", "--all", "--force"]);
        for (name, id) in &commit.submodules {
            git(&[
                "update-index",
                "--add",
                "--cacheinfo",
                &format!("160000,{id},{name}"),
            ]);
        }
        let message = folder.path().join(".git/message");
        std::fs::write(&message, &commit.message).unwrap();
        git(&["commit", "--quiet", "--file", path(&message)]);
        let server = self
            .url
            .replace("http://", &format!("http://root1:{}@", self.token));
        let url = format!("{server}/{repository}.git");
        git(&[
            "push",
            "--quiet",
            "--force",
            &url,
            &format!("HEAD:refs/heads/{branch}"),
        ]);
        let head = git(&["rev-parse", "HEAD"]);
        // Gitea updates its own list of branches a little later.
        let id = percent_encoding::utf8_percent_encode(branch, percent_encoding::NON_ALPHANUMERIC);
        let path = format!("/api/v1/repos/{repository}/branches/{id}");
        super::support::wait_until(&path, || {
            let response = self.request("GET", &path, &self.admin(), None);
            (response.json()["commit"]["id"] == head.as_str()).then_some(())
        });
        head
    }

    /// Creates a branch, without telling the server.
    pub fn branch(&self, repository: &str, branch: &str, commit: &str) {
        let name = format!("refs/heads/{branch}");
        self.git(repository, &["update-ref", &name, commit]);
    }

    /// Removes the unreachable commits of a repository, as Gitea's cron jobs eventually do.
    pub fn prune(&self, repository: &str) {
        self.git(repository, &["reflog", "expire", "--expire=now", "--all"]);
        self.git(repository, &["gc", "--quiet", "--prune=now"]);
    }

    /// Runs git in the server's own folder of a repository.
    fn git(&self, repository: &str, arguments: &[&str]) {
        let folder = self.folder().join("data/gitea-repositories");
        let folder = folder.join(format!("{repository}.git"));
        git(&folder, &[&["-c", "safe.directory=*"], arguments].concat());
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        script(&["stop", path(self.place.folder.path()), self.name]);
    }
}

/// A commit to push.
#[derive(Clone, Default)]
pub struct Commit {
    pub message: String,
    pub files: Vec<(&'static str, String)>,
    /// Path and commit.
    pub submodules: Vec<(&'static str, String)>,
}

pub fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn script(arguments: &[&str]) -> String {
    let script = super::support::required_var("MOL_TEST_GITEA");
    run(Command::new(script).args(arguments))
}

pub fn git(folder: &Path, arguments: &[&str]) -> String {
    run(Command::new("git")
        .current_dir(folder)
        .args([
            "-c",
            "init.defaultBranch=main",
            "-c",
            "http.postBuffer=100000000",
        ])
        .args(arguments)
        .envs([
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_AUTHOR_NAME", "Template Author"),
            ("GIT_AUTHOR_EMAIL", "author@example.com"),
            ("GIT_COMMITTER_NAME", "Template Author"),
            ("GIT_COMMITTER_EMAIL", "author@example.com"),
            ("GIT_AUTHOR_DATE", "2026-01-01T00:00:00Z"),
            ("GIT_COMMITTER_DATE", "2026-01-01T00:00:00Z"),
        ]))
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (out, err) = (output.stdout, String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {err}");
    String::from_utf8(out).unwrap().trim().to_owned()
}
