//! No secret leaks (promise P6). The token is put into every input, every step is made to fail, and
//! all output is searched for every spelling of the token.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use mol::event::Kind;
use mol::{Client, Code, Error, OptionName};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use crate::support::child::{self, Link, command, program};
use crate::support::daemon::write_program;
use crate::support::engine::BUSYBOX;
use crate::support::server::{GIT, PLAIN, dockerfile};
use crate::support::{Files, Handling, Proxy, TestClient, TestEnv, file, script};

/// Has characters that each encoding changes.
const TOKEN: &str = "tk_7f3c/0b5e+9d2a~4f61=88c1&e0b7";

/// A second secret, which is recognised only as the password in a URL.
const PASSWORD: &str = "hunter2";

/// Every encoding in which a program may print the token.
fn spellings() -> Vec<String> {
    let percent = utf8_percent_encode(TOKEN, NON_ALPHANUMERIC).to_string();
    let every: String = TOKEN.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let mut all = vec![
        TOKEN.to_owned(),
        percent.to_lowercase(),
        percent,
        every,
        TOKEN.replace('/', "%2F"),
        // As BuildKit prints an unknown instruction, and as a host name is normalised.
        TOKEN.to_uppercase(),
        TOKEN.to_lowercase(),
    ];
    for user in ["", "git:", "x-access-token:", "ab:", TOKEN] {
        let text = format!("{user}{TOKEN}");
        all.push(STANDARD_NO_PAD.encode(&text));
        all.push(URL_SAFE_NO_PAD.encode(&text));
    }
    all
}

/// All spellings, and parts of the token, plain and in base64: half a token is a leak too.
fn forbidden() -> Vec<String> {
    let mut all = spellings();
    all.push("7f3c/0b5e".to_owned());
    all.push("7F3C/0B5E".to_owned());
    all.push("88c1&e0b7".to_owned());
    for shift in 0..3 {
        let text = format!("{}{TOKEN}", "x".repeat(shift));
        let encoded = STANDARD_NO_PAD.encode(text);
        all.push(encoded[8..encoded.len() - 4].to_owned());
    }
    all
}

fn assert_clean(what: &str, text: &str) {
    for spelling in forbidden() {
        assert!(
            !text.contains(&spelling),
            "{what} shows {spelling}:\n{text}"
        );
    }
    assert!(!text.contains(PASSWORD), "{what} shows a password:\n{text}");
}

/// Everything that a call showed to its caller.
fn shown(client: &TestClient, error: &Error) -> String {
    let mut text = format!("{error}\n{error:?}\n{error:#?}\n");
    if let Some(build) = &error.build {
        text += &format!("{}\n{}\n{}\n", build.step, build.log_tail, build.excerpt);
    }
    for event in client.events() {
        text += &serde_json::to_string(&event).unwrap();
        text += &format!("\n{event:?}\n");
    }
    text
}

fn client(env: &TestEnv, more: &[(OptionName, &str)]) -> TestClient {
    let mut all = vec![(OptionName::Token, TOKEN)];
    all.extend_from_slice(more);
    env.client_with(&all)
}

/// The call fails with this code, shows no token, and masked something, which proves that the token
/// reached the output.
fn assert_masked(env: &TestEnv, what: &str, client: &TestClient, code: Code) {
    let error = client.ensure_err("hermes");
    let text = shown(client, &error);
    assert_eq!(error.code, code, "{what}: {text}");
    assert_clean(what, &text);
    assert!(
        text.contains("***"),
        "{what}: nothing was masked in\n{text}"
    );
    for path in env.cached_paths() {
        assert_clean("the name of a file in the cache", &path);
    }
}

/// Like [`assert_masked`], but the output need not contain the token at all.
fn assert_hidden(what: &str, client: &TestClient, code: Code) {
    let error = client.ensure_err("hermes");
    let text = shown(client, &error);
    assert_eq!(error.code, code, "{what}: {text}");
    assert_clean(what, &text);
}

#[test]
fn the_leak_check_finds_every_spelling() {
    for spelling in spellings() {
        let found = forbidden()
            .iter()
            .any(|part| format!("before {spelling} after").contains(part));
        assert!(found, "{spelling}");
    }
}

#[test]
fn a_token_in_an_api_response_is_masked() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile("FROM scratch\n"));
    let all = spellings().join(" ");
    let url = format!("http://me:{PASSWORD}@127.0.0.1:1/{TOKEN}");
    for (status, code) in [
        (401, Code::Auth),
        (403, Code::Auth),
        (418, Code::BadResponse),
        (500, Code::GiteaUnreachable),
        (503, Code::GiteaUnreachable),
    ] {
        env.server.faults(json!([{
            "match": "/api/", "status": status, "body": all,
            "headers": { "X-Echo": all, "Retry-After": "3600", "WWW-Authenticate": format!("Basic realm=\"{TOKEN}\"") },
        }]));
        assert_hidden(&format!("a {status}"), &client(&env, &[]), code);
    }
    for body in [
        json!(TOKEN),
        json!({ "commit": TOKEN }),
        json!({ "commit": { "id": TOKEN } }),
        json!({ "commit": { "id": [TOKEN] } }),
        json!({ TOKEN: TOKEN }),
    ] {
        env.server
            .faults(json!([{ "match": "/api/", "status": 200, "body": body.to_string() }]));
        assert_hidden(&body.to_string(), &client(&env, &[]), Code::BadResponse);
    }
    env.server
        .faults(json!([{ "match": "/api/", "status": 302, "headers": { "Location": url } }]));
    assert_hidden("a redirect", &client(&env, &[]), Code::GiteaUnreachable);

    env.server.faults(json!([
        { "match": "/branches/", "status": 404 },
        { "match": "/api/", "status": 200, "body": json!({ "default_branch": TOKEN, "empty": false }).to_string() },
    ]));
    assert_masked(
        &env,
        "a default branch",
        &client(&env, &[]),
        Code::RepoNotFound,
    );
}

#[test]
fn a_token_in_a_git_response_is_masked() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile("FROM scratch\n"));
    let all = spellings().join(" ");
    let line = |text: &str| format!("{:04x}{text}", text.len() + 4);
    for (part, kind) in GIT {
        let git = json!({ "Content-Type": kind });
        for (answer, code) in [
            (json!({ "status": 401, "body": all }), Code::Auth),
            (json!({ "status": 500, "body": all }), Code::Fetch),
            (json!({ "status": 200, "body": all }), Code::Fetch),
            (
                json!({ "status": 200, "body": all, "headers": git }),
                Code::Fetch,
            ),
            (
                json!({ "status": 200, "headers": { "Content-Type": TOKEN }, "body": line(TOKEN) }),
                Code::Fetch,
            ),
        ] {
            let mut fault = answer;
            fault["match"] = json!(part);
            env.server.faults(json!([fault]));
            assert_hidden(&format!("git: {fault}"), &client(&env, &[]), code);
        }
        // An error packet of git. Its text is shown only for the fetch of the objects.
        let said = line(&format!("ERR {TOKEN} {all}"));
        let (begin, check): (_, fn(&TestEnv, &str, &TestClient, Code)) = match part {
            "/info/refs" => (
                "001e# service=git-upload-pack\n0000",
                |_, what, client, code| {
                    assert_hidden(what, client, code);
                },
            ),
            _ => ("", assert_masked),
        };
        env.server
            .faults(json!([{ "match": part, "body": format!("{begin}{said}"), "headers": git }]));
        check(&env, part, &client(&env, &[]), Code::Fetch);
    }
}

#[test]
fn a_token_in_build_output_is_masked() {
    for buildkit in ["1", "0"] {
        let env = TestEnv::new();
        let quoted: Vec<String> = spellings()
            .iter()
            .map(|spelling| format!("'{spelling}'"))
            .collect();
        for text in [
            format!(
                "FROM {BUSYBOX}\nRUN for t in {}; do echo \"says $t\"; done; exit 3\n",
                quoted.join(" ")
            ),
            format!("FROM {BUSYBOX}\nRUN echo 'https://me:{PASSWORD}@host/ {TOKEN}'; exit 3\n"),
            format!("FROM {BUSYBOX}\nRUN false '{TOKEN}'\n"),
            format!("FROM {BUSYBOX}\nCOPY \"/no/{TOKEN}\" /\n"),
            format!("FROM scratch\n{TOKEN} is no instruction\n"),
        ] {
            env.template("hermes", dockerfile(&text));
            let client = client(&env, &[(OptionName::DockerBuildkit, buildkit)]);
            assert_masked(&env, &text, &client, Code::BuildFailed);
        }
    }
}

#[test]
fn a_truncated_line_shows_no_part_of_the_token() {
    let env = TestEnv::new();
    let mut text = format!("FROM {BUSYBOX}\nRUN ");
    // At each length limit, one of these tokens lies across the cut.
    for before in (60..70).chain(4070..4100).chain(1000..1030) {
        text += &format!("head -c {before} /dev/zero | tr '\\0' x; echo '{TOKEN}'; ");
    }
    text += "exit 3\n";
    env.template("hermes", dockerfile(&text));
    assert_masked(&env, "a long line", &client(&env, &[]), Code::BuildFailed);
}

#[test]
fn a_token_printed_by_a_template_script_is_masked() {
    let env = TestEnv::new();
    let mut lines = String::from("#!/bin/sh\n");
    for spelling in spellings() {
        lines += &format!("echo 'says {spelling}' >&2\n");
    }
    env.template(
        "hermes",
        Files::from([
            (
                "Dockerfile".to_owned(),
                file(&format!(
                    "FROM {BUSYBOX}\nCOPY . /t\nRUN sh /t/talk; echo {}; exit 1\n",
                    env.isolation
                )),
            ),
            ("talk".to_owned(), script(&lines)),
        ]),
    );
    let client = client(&env, &[]);
    assert_masked(&env, "a script", &client, Code::BuildFailed);
    let said = client.of_kind(Kind::Log);
    assert_eq!(
        said.iter()
            .filter(|event| event
                .line
                .as_deref()
                .is_some_and(|line| line.starts_with("says")))
            .count(),
        spellings().len()
    );
}

#[test]
fn a_token_in_the_runtime_version_file_is_masked() {
    let env = TestEnv::new();
    env.template(
        "hermes",
        Files::from([
            ("Dockerfile".to_owned(), file("FROM nothing/at:all AS\n")),
            (
                ".runtime-version".to_owned(),
                file(&format!("latest {TOKEN}\n")),
            ),
        ]),
    );
    let client = client(&env, &[(OptionName::RuntimeVersionPin, "1")]);
    assert_hidden("a pin", &client, Code::BuildFailed);
    let warning = client.wait_for(Kind::Warning, |_| true);
    assert!(warning.message.contains(".runtime-version"), "{warning:?}");
}

#[test]
fn a_token_in_an_option_is_masked() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    let file = env.scratch().join("file");
    std::fs::write(&file, "").unwrap();
    let below_a_file = format!("{}/{TOKEN}", file.display());
    let with_a_password = format!("tcp://me:{PASSWORD}@127.0.0.1:1");
    let proxy = format!("http://me:{PASSWORD}@127.0.0.1:1");
    for (options, code) in [
        (
            vec![(OptionName::CacheDir, below_a_file.as_str())],
            Code::Cache,
        ),
        (
            vec![(OptionName::DockerHost, &format!("unix:///{TOKEN}/s"))],
            Code::EngineUnreachable,
        ),
        (
            vec![(OptionName::DockerHost, &with_a_password)],
            Code::EngineUnreachable,
        ),
        (
            vec![
                (OptionName::DockerHost, ""),
                (OptionName::DockerContext, TOKEN),
            ],
            Code::InvalidOption,
        ),
        (
            vec![
                (OptionName::HttpProxy, &proxy),
                (OptionName::RepoPrefix, "http://gitea.invalid/o/t-"),
            ],
            Code::GiteaUnreachable,
        ),
    ] {
        assert_hidden(&format!("{options:?}"), &client(&env, &options), code);
    }

    // Error messages show parts of the address, in which a truncated token would not be recognised.
    let mut options = env.options();
    options.set(OptionName::Token, TOKEN);
    options.set(OptionName::DockerHost, TOKEN);
    let error = Client::new(&options, None).unwrap_err();
    assert_eq!(error.code, Code::InvalidOption, "{error:?}");
    assert!(error.message().contains("contains the token"), "{error:?}");

    // TOKEN has characters that a branch name cannot have, so another token is used.
    let plain = "tk-0123456789abcdef";
    let client = env.client_with(&[(OptionName::Token, plain), (OptionName::Branch, plain)]);
    let error = client.ensure_err("hermes");
    assert_eq!(error.code, Code::RepoNotFound);
    assert!(!shown(&client, &error).contains(plain), "{error:?}");

    // Every error and every image names the repository, so its URL must not contain the token.
    for token in [TOKEN, plain] {
        let mut options = env.options();
        options.set(OptionName::Token, token);
        let prefix = format!("{}/{token}/t-", env.server.url);
        options.set(OptionName::RepoPrefix, &prefix);
        let error = Client::new(&options, None).unwrap_err();
        assert_eq!(error.code, Code::InvalidOption);
        assert!(error.message().contains("contains the token"), "{error:?}");
        assert!(!format!("{error:?}").contains(token), "{error:?}");
    }

    let error = self::client(&env, &[])
        .inner()
        .ensure_local_image(TOKEN)
        .start(None, |_, _| {})
        .unwrap_err();
    assert_clean("a runtime", &format!("{error:?}"));
}

#[test]
fn an_invalid_option_error_does_not_show_the_token() {
    let env = TestEnv::new();
    for (name, value) in [
        (OptionName::Platform, TOKEN.to_owned()),
        (OptionName::Isolation, TOKEN.to_owned()),
        (OptionName::Offline, TOKEN.to_owned()),
        (OptionName::StallGrace, TOKEN.to_owned()),
        (OptionName::Ceiling, TOKEN.to_owned()),
        (OptionName::Branch, format!("{TOKEN} {TOKEN}")),
        (OptionName::RepoPrefix, format!("https://{TOKEN}@host/o/t-")),
        (
            OptionName::RepoPrefix,
            format!("https://me:{PASSWORD}@host/o/t-"),
        ),
        (
            OptionName::HttpProxy,
            format!("nonsense://me:{PASSWORD}@:x"),
        ),
        (OptionName::SslCertFile, format!("/{TOKEN}")),
    ] {
        let mut options = env.options();
        options.set(OptionName::Token, TOKEN);
        options.set(name, &value);
        let error = Client::new(&options, None).expect_err(&value);
        assert_eq!(error.code, Code::InvalidOption, "{error:?}");
        assert_clean(name.name(), &format!("{error:?} {error}"));
    }
}

#[test]
fn a_token_invalid_in_a_header_is_refused_without_showing_it() {
    let env = TestEnv::new();
    let mut options = env.options();
    options.set(OptionName::Token, &format!("{TOKEN} {PASSWORD}\n"));
    let error = Client::new(&options, None).unwrap_err();
    assert_eq!(error.code, Code::InvalidOption);
    assert_clean("the error", &format!("{error:?}"));
}

#[test]
fn image_engine_and_cache_never_receive_the_token() {
    for buildkit in ["1", "0"] {
        let env = TestEnv::with(&["--token", TOKEN]);
        env.template("hermes", dockerfile(PLAIN));
        let proxy = Proxy::start(&env.engine, env.scratch(), |_| Handling::Pass);
        let client = client(
            &env,
            &[
                (OptionName::DockerHost, &proxy.url),
                (OptionName::DockerBuildkit, buildkit),
            ],
        );
        let images = env.engine.keep_images();
        let image = client.ensure("hermes").unwrap();
        drop(images);

        let sent = proxy.sent();
        assert!(sent.contains("/build"), "the proxy records the requests");
        assert_clean("a request to the engine", &sent);
        assert_clean("the image", &format!("{image:?}"));
        assert_clean(
            "the image's configuration",
            &format!("{:?}", env.engine.inspect(&image.reference)),
        );
        assert_clean("the image's history", &env.engine.history(&image.reference));
        for event in client.events() {
            assert_clean("an event", &serde_json::to_string(&event).unwrap());
        }
        for path in env.cached_paths() {
            assert_clean("a name in the cache", &path);
            if let Ok(content) = std::fs::read(env.cache().join(&path)) {
                assert_clean("a file in the cache", &String::from_utf8_lossy(&content));
            }
        }
    }
}

#[test]
fn a_c_program_does_not_print_the_token() {
    let env = TestEnv::with(&["--token", TOKEN]);
    let text =
        format!("FROM {BUSYBOX}\nRUN echo 'says {TOKEN}'; cat /proc/*/cmdline; env; exit 3\n");
    env.template("hermes", dockerfile(&text));
    for name in ["ensure", "events"] {
        let output = command(&env, &program(name, Link::Static))
            .env("MOLECULE_GITEA_TOKEN", TOKEN)
            .arg("hermes")
            .output()
            .unwrap();
        assert_eq!(
            output.status.code(),
            Some(Code::BuildFailed as i32),
            "{}",
            child::text(&output)
        );
        let text = child::text(&output);
        assert_clean(name, &text);
        assert!(text.contains("says ***"), "{text}");
    }
}

#[test]
fn child_processes_do_not_receive_the_token() {
    let env = TestEnv::with(&["--token", TOKEN]);
    env.template("hermes", dockerfile("FROM registry.invalid/base\n"));
    let (programs, config) = (env.scratch().join("programs"), env.scratch().join("docker"));
    let seen = |program: &str| env.scratch().join(format!("seen-by-{program}"));
    for program in ["ssh", "docker-credential-of-the-test"] {
        let script = format!(
            "{{ env; echo arguments: \"$@\"; }} > {}; exit 1",
            seen(program).display()
        );
        write_program(&programs, program, &script);
    }
    std::fs::create_dir(&config).unwrap();
    let text = json!({ "credHelpers": { "registry.invalid": "of-the-test" } });
    std::fs::write(config.join("config.json"), text.to_string()).unwrap();

    let remote = ("DOCKER_HOST", "ssh://nowhere.invalid");
    let local = ("DOCKER_HOST", env.engine.url.as_str());
    for (started, host) in [("ssh", remote), ("docker-credential-of-the-test", local)] {
        let output = command(&env, &program("ensure", Link::Static))
            .env("MOLECULE_GITEA_TOKEN", TOKEN)
            .env("DOCKER_CONFIG", &config)
            .env("PATH", format!("{}:/usr/bin:/bin", programs.display()))
            // The classic builder gets all credentials in advance.
            .env("DOCKER_BUILDKIT", "0")
            .env("OF_THE_HOST", "as it is")
            .envs([host])
            .arg("hermes")
            .output()
            .unwrap();
        assert!(!output.status.success(), "{}", child::text(&output));
        let seen = std::fs::read_to_string(seen(started));
        let seen = seen.unwrap_or_else(|_| panic!("{}", child::text(&output)));
        assert_clean(started, &seen);
        assert!(!seen.contains("MOLECULE_GITEA_TOKEN"), "{seen}");
        assert!(seen.contains("OF_THE_HOST=as it is"), "{seen}");
        assert!(seen.contains("arguments: "), "{seen}");
    }
}

/// Servers and proxies log URLs.
#[test]
fn the_token_is_never_in_a_url() {
    let env = TestEnv::with(&["--token", TOKEN]);
    env.template("hermes", dockerfile(PLAIN));
    client(&env, &[]).ensure("hermes").unwrap();
    let requests = env.server.requests();
    assert!(requests.len() >= 3, "one lookup and a fetch: {requests:?}");
    for request in requests {
        let seen: Value = json!([
            request.method,
            request.path,
            request.query,
            request.user_agent
        ]);
        assert_clean("a URL", &seen.to_string());
    }
}
