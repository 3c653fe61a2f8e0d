//! Jobs of libmol against a real Gitea.

use std::process::Command;
use std::sync::mpsc;

use mol::event::Kind;
use mol::{Client, Code, Error, Image, OptionName};
use serde_json::json;

use super::server::{As, Place, Server, git, path};
use super::support::{TestEnv, WAIT_LIMIT, block_on};
use super::{ORGANIZATION, PREFIX, plain, template};

/// Clients with a token.
pub struct Users {
    pub reader: As,
    pub narrow: As,
    pub public_only: As,
    pub stranger: As,
    pub bad: As,
}

/// A client with its own cache and isolation, for one server.
struct Job {
    env: TestEnv,
    options: Vec<(OptionName, String)>,
}

impl Job {
    fn new(server: &Server<'_>, client: &As) -> Self {
        let prefix = format!("{}/{ORGANIZATION}/{PREFIX}", server.url);
        let mut options = vec![(OptionName::RepoPrefix, prefix)];
        if let As::Token(token) = client {
            options.push((OptionName::Token, token.clone()));
        }
        Self {
            env: TestEnv::new(),
            options,
        }
    }

    fn with(mut self, name: OptionName, value: &str) -> Self {
        self.options.push((name, value.to_owned()));
        self
    }

    /// Runs the whole job. `between` runs after the lookup and before the fetch.
    fn run(&self, runtime: &str, between: impl Fn() + Send + Sync + 'static) -> mol::Result<Image> {
        let mut options = self.env.options();
        for (name, value) in &self.options {
            options.set(*name, value);
        }
        let observer = Box::new(move |event: mol::Event| {
            if event.kind == Kind::FetchStarted {
                between();
            }
        });
        let client = Client::new(&options, Some(observer)).unwrap();
        let (sender, end) = mpsc::channel();
        let done = move |_, result| sender.send(result).unwrap_or(());
        client
            .ensure_local_image(runtime)
            .start(None, done)
            .unwrap();
        let result = end.recv_timeout(WAIT_LIMIT).expect("the call must end");
        block_on(client.close());
        result
    }

    fn ensure(&self, runtime: &str) -> Image {
        self.run(runtime, || {})
            .unwrap_or_else(|error| panic!("{runtime}: {error:?}"))
    }

    #[track_caller]
    fn ensure_err(&self, runtime: &str, code: Code, says: &str) -> Error {
        expect_error(self.run(runtime, || {}), code, says)
    }
}

/// Asserts that the result is this error, with this text of the server in its message.
#[track_caller]
fn expect_error(result: mol::Result<Image>, code: Code, says: &str) -> Error {
    let error = result.expect_err("the call must fail");
    assert_eq!(error.code, code, "{error:?}");
    assert!(error.message.contains(says), "{says}: {error:?}");
    assert!(!error.hint.is_empty(), "{error:?}");
    error
}

/// The hint says to set a token only if none is set.
#[track_caller]
fn assert_hint(error: &Error, has_token: bool) {
    let hint = error.hint.as_ref();
    assert!(hint.contains("MOLECULE_GITEA_TOKEN"), "{error:?}");
    assert_eq!(
        !hint.contains("set MOLECULE_GITEA_TOKEN"),
        has_token,
        "{error:?}"
    );
}

/// Each refusal is reported with Gitea's reason.
pub fn errors(server: &Server<'_>, users: &Users) {
    let private =
        |client: &As, code, says: &str| Job::new(server, client).ensure_err("codex", code, says);
    assert_hint(
        &private(&As::Anonymous, Code::RepoNotFound, "was not found"),
        false,
    );
    assert_hint(
        &private(&users.stranger, Code::RepoNotFound, "was not found"),
        true,
    );
    let scope = "required=[read:repository], token scope=read:user";
    assert_hint(&private(&users.narrow, Code::Auth, scope), true);
    let limited = "token scope is limited to public repos";
    assert_hint(&private(&users.public_only, Code::Auth, limited), true);
    let public = Job::new(server, &users.bad).ensure_err("hermes", Code::Auth, "401");
    assert_hint(&public, true);

    let anonymous = Job::new(server, &As::Anonymous);
    let error = anonymous.ensure_err("openclaw", Code::RepoNotFound, &template("openclaw"));
    assert!(!error.hint.contains("hermes"), "{error:?}");
    anonymous.ensure_err("crewai", Code::RepoNotFound, "is empty");
    let branch = Job::new(server, &As::Anonymous).with(OptionName::Branch, "no/such");
    branch.ensure_err("hermes", Code::RepoNotFound, "no/such");

    let reader = Job::new(server, &users.reader);
    let image = reader.ensure("codex");
    assert_eq!(reader.env.engine.read(&image.reference, "content"), "codex");
    assert!(reader.ensure("codex").cache_hit);
}

/// Changes to a repository between the lookup and the fetch.
pub fn changes_after_lookup(server: &Server<'_>) {
    std::thread::scope(|scope| {
        let during = |runtime: &'static str, client: As, change: &dyn Fn(&Server<'_>)| {
            // The library's thread waits between lookup and fetch, until the change is made.
            let job = Job::new(server, &client);
            let (begun, wait) = mpsc::channel();
            let (done, go_on) = mpsc::channel::<()>();
            let go_on = std::sync::Mutex::new(go_on);
            let running = scope.spawn(move || {
                let between = move || {
                    begun.send(()).unwrap();
                    go_on.lock().unwrap().recv_timeout(WAIT_LIMIT).unwrap();
                };
                let result = job.run(runtime, between);
                (job, result)
            });
            wait.recv_timeout(WAIT_LIMIT).expect("the fetch must start");
            change(server);
            done.send(()).unwrap();
            running.join().unwrap()
        };
        let create = |runtime: &str, private: bool| {
            server.repository(&template(runtime), json!({ "private": private }));
            server.push(&template(runtime), "main", &plain("old"))
        };

        // Force-pushed: the commit of the lookup is built.
        let old = create("deepagents", false);
        let force = |server: &Server<'_>| {
            let name = template("deepagents");
            server.push(&name, "main", &plain("new"));
        };
        let (job, result) = during("deepagents", As::Anonymous, &force);
        let image = result.unwrap();
        assert_eq!(image.commit_sha, old);
        assert_eq!(job.env.engine.read(&image.reference, "content"), "old");

        // Force-pushed, and the commit pruned.
        let prune = |server: &Server<'_>| {
            let name = template("deepagents");
            server.push(&name, "main", &plain("newer"));
            server.prune(&name);
        };
        let (job, result) = during("deepagents", As::Anonymous, &prune);
        let error = expect_error(result, Code::Fetch, "is gone from");
        assert!(error.message.contains("not our ref"), "{error:?}");
        assert!(error.hint.contains("force-pushed"), "{error:?}");
        let image = job.ensure("deepagents");
        assert_eq!(job.env.engine.read(&image.reference, "content"), "newer");

        // Renamed: the redirect is followed.
        let rename = |server: &Server<'_>| {
            let path = format!("/repos/{}", template("deepagents"));
            server.change(
                "PATCH",
                &path,
                json!({ "name": format!("{PREFIX}elsewhere") }),
            );
        };
        let (_, result) = during("deepagents", As::Anonymous, &rename);
        result.unwrap();

        // Made private, or deleted.
        for (client, delete) in [
            (As::Anonymous, false),
            (As::Anonymous, true),
            (server.admin(), true),
        ] {
            let has_token = matches!(client, As::Token(_));
            create("gemini-cli", has_token);
            let change = move |server: &Server<'_>| {
                let path = format!("/repos/{}", template("gemini-cli"));
                match delete {
                    true => server.change("DELETE", &path, json!({})),
                    false => server.change("PATCH", &path, json!({ "private": true })),
                };
            };
            let (_, result) = during("gemini-cli", client, &change);
            let error = expect_error(
                result,
                Code::RepoNotFound,
                "was deleted or made private after the lookup",
            );
            assert!(error.hint.contains("deleted"), "{error:?}");
            assert!(
                !error.hint.contains("set MOLECULE_GITEA_TOKEN"),
                "{error:?}"
            );
            if !delete {
                let path = format!("/repos/{}", template("gemini-cli"));
                server.change("DELETE", &path, json!({}));
            }
        }
    });
}

/// Jobs that succeed, with and without an existing image.
pub fn successes(server: &Server<'_>) {
    let anonymous = Job::new(server, &As::Anonymous);
    let image = anonymous.ensure("hermes");
    assert!(!image.cache_hit);
    assert_eq!(
        anonymous.env.engine.read(&image.reference, "content"),
        "hermes"
    );
    assert!(anonymous.ensure("hermes").cache_hit);

    // Renamed before the lookup.
    let image = anonymous.ensure("autogen");
    assert_eq!(
        anonymous.env.engine.read(&image.reference, "content"),
        "autogen"
    );

    // A commit message of 200 KiB, on branches with a common prefix.
    server.repository(&template("langgraph"), json!({}));
    let mut long = plain("long");
    long.message = "A long message.\n".repeat(12_800);
    let name = template("langgraph");
    let sha = server.push(&name, "main", &long);
    for branch in ["main-2", "mainline", "feature/größe%2F#1"] {
        long.files[1].1 = branch.into();
        server.push(&name, branch, &long);
    }
    let image = anonymous.ensure("langgraph");
    assert_eq!(image.commit_sha, sha);
    for branch in ["mainline", "feature/größe%2F#1"] {
        let job = Job::new(server, &As::Anonymous).with(OptionName::Branch, branch);
        let image = job.ensure("langgraph");
        assert_eq!(job.env.engine.read(&image.reference, "content"), branch);
    }

    // The same with 300 such branches.
    for number in 0..300 {
        server.branch(&name, &format!("main-{number}"), &sha);
    }
    let image = Job::new(server, &As::Anonymous).ensure("langgraph");
    assert_eq!(image.commit_sha, sha);

    // LFS pointers and .gitmodules are checked out unchanged.
    let pointer = "version https://git-lfs.github.com/spec/v1\n\
         oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n";
    let mut special = plain(pointer);
    special.files[0].1 = "FROM scratch\nCOPY . /all/\n".into();
    let attributes = "content filter=lfs diff=lfs merge=lfs -text\n";
    special.files.push((".gitattributes", attributes.into()));
    let modules = "[submodule \"sub\"]\n\tpath = sub\n\turl = https://example.com/sub.git\n";
    special.files.push((".gitmodules", modules.into()));
    special
        .submodules
        .push(("sub", "0123456789abcdef0123456789abcdef01234567".into()));
    server.push(&template("hermes"), "main", &special);
    let image = anonymous.ensure("hermes");
    assert_eq!(
        anonymous.env.engine.read(&image.reference, "all/content"),
        pointer
    );
    assert_eq!(
        anonymous
            .env
            .engine
            .read(&image.reference, "all/.gitmodules"),
        modules
    );

    // SHA-256 repositories. Gitea supports them from git 2.42 on.
    let version = git(std::path::Path::new("/"), &["version"]);
    let mut numbers = version
        .split([' ', '.'])
        .filter_map(|part| part.parse::<u32>().ok());
    let supported = (numbers.next(), numbers.next()) >= (Some(2), Some(42));
    let repository = json!({ "name": format!("{PREFIX}claude-code"), "object_format_name": "sha256",
        "auto_init": true, "default_branch": "main" });
    let path = format!("/api/v1/orgs/{ORGANIZATION}/repos");
    let created = server.request("POST", &path, &server.admin(), Some(repository));
    assert_eq!(
        created.status == 201,
        supported,
        "{version}: {}",
        created.body
    );
    if supported {
        anonymous.ensure_err("claude-code", Code::NoDockerfile, "Dockerfile");
    }
}

/// The server requires a login.
pub fn sign_in(server: &Server<'_>) {
    let says = "signed in user";
    let error = Job::new(server, &As::Anonymous).ensure_err("hermes", Code::Auth, says);
    assert_hint(&error, false);
    Job::new(server, &server.admin()).ensure("hermes");
}

/// The server has git over HTTP switched off.
pub fn no_git(server: &Server<'_>) {
    let says = "Interacting with repositories by HTTP protocol is not allowed";
    let error = Job::new(server, &As::Anonymous).ensure_err("hermes", Code::Auth, says);
    assert!(error.hint.contains("git over HTTP"), "{error:?}");
}

/// A server below a path, then with only the certificate of `gitea cert --ca` trusted.
pub fn path_and_certificate(place: &Place) {
    let folder = tempfile::tempdir().unwrap();
    let certificate = folder.path().join("cert.pem");
    let settings = [
        "server:LOCAL_ROOT_URL=http://{address}/git/",
        "server:ROOT_URL=http://{address}/git/",
        "server:USE_SUB_URL_PATH=true",
    ];
    let mut server = Server::start(place, "path", &settings);
    let plain_url = server.url.clone();
    server.url += "/git";
    server.repository(&template("hermes"), json!({}));
    let sha = server.push(&template("hermes"), "main", &plain("hermes"));
    let job = Job::new(&server, &As::Anonymous);
    assert_eq!(job.ensure("hermes").commit_sha, sha);

    let generated = folder.path().join("generated");
    std::fs::create_dir(&generated).unwrap();
    let _ = Command::new("chmod").arg("777").arg(&generated).status();
    let _ = Command::new("chmod").arg("755").arg(folder.path()).status();
    server.make_certificate(&generated);
    std::fs::copy(generated.join("cert.pem"), &certificate).unwrap();
    let address = super::support::tls::in_front_of(&plain_url, &generated);
    server.url = format!("https://{address}/git");
    let job = Job::new(&server, &As::Anonymous).with(OptionName::SslCertFile, path(&certificate));
    assert_eq!(job.ensure("hermes").commit_sha, sha);
    let job = Job::new(&server, &As::Anonymous);
    job.ensure_err("hermes", Code::GiteaUnreachable, "TLS");
}
