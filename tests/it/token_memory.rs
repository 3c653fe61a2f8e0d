//! The token in process memory. The library wipes every copy that it made itself when it no longer needs
//! it (promise P6; the limits are in docs/security.md).

use std::collections::HashSet;
use std::io::Write;
use std::process::Stdio;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mol::OptionName;

use crate::support::TestEnv;
use crate::support::child::{Link, command, program, text};
use crate::support::server::{PLAIN, dockerfile};

/// Does not occur in memory by chance, and has upper and lower case letters.
const TOKEN: &str = "Tk7f3c0b5e9d2A4f6188c1e0b7a6d5943210fedQ";

/// A spelling of the token, and its number of copies in memory before and after the client was freed.
#[derive(Debug)]
struct Found {
    spelling: String,
    before_free: u32,
    after_free: u32,
}

/// Runs a program that creates a client, runs a job, frees the client and searches its own memory.
fn search(env: &TestEnv, more: &[(OptionName, &str)]) -> (String, Vec<Found>) {
    // The part of the base64 in the git header that depends only on the token.
    let basic = STANDARD.encode(format!("x-access-token:{TOKEN}"));
    let spellings = [
        TOKEN.to_owned(),
        TOKEN.to_ascii_uppercase(),
        TOKEN.to_ascii_lowercase(),
        basic[20..].trim_end_matches('=').to_owned(),
        // A part of the token must not remain either.
        TOKEN[8..].to_owned(),
    ];
    let mut input = format!("{TOKEN}\n");
    for spelling in &spellings {
        input.extend(spelling.bytes().map(|byte| format!("{:02x}", byte ^ 0x5a)));
        input.push('\n');
    }
    let mut command = command(env, &program("wiped", Link::Shared));
    for (name, value) in more {
        command.env(name.name(), value);
    }
    let mut child = command
        .arg("hermes")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    let status = text.lines().find_map(|line| line.strip_prefix("status "));
    let numbers = text.lines().filter_map(|line| line.strip_prefix("found "));
    let found = numbers.zip(spellings).map(|(line, spelling)| {
        let numbers: Vec<u32> = line.split(' ').map(|word| word.parse().unwrap()).collect();
        Found {
            spelling,
            before_free: numbers[1],
            after_free: numbers[2],
        }
    });
    (status.unwrap().to_owned(), found.collect())
}

#[test]
fn a_freed_client_wipes_the_token_from_memory() {
    let env = TestEnv::new();
    // The client builds every header but cannot send it.
    let no_listener = "http://127.0.0.1:1/o/workspace-template-";
    let (status, found) = search(&env, &[(OptionName::RepoPrefix, no_listener)]);
    assert_eq!(status, "gitea_unreachable");
    assert!(
        found[0].before_free > 0,
        "the search must find the token before the client is freed: {found:?}"
    );
    for found in found {
        assert_eq!(found.after_free, 0, "{} is still in memory", found.spelling);
    }
}

#[test]
fn after_a_job_at_most_one_buffer_per_connection_holds_the_token() {
    let env = TestEnv::with(&["--token", TOKEN]);
    env.template("hermes", dockerfile(PLAIN));
    let (status, found) = search(&env, &[]);
    assert_eq!(status, "ok");
    // The headers of the last request of a connection, which the HTTP stack frees without wiping. A request opens a
    // second connection if the first is not back in the pool yet.
    let connections: HashSet<String> = env
        .server
        .requests()
        .into_iter()
        .map(|it| it.peer)
        .collect();
    let left: u32 = found[..4].iter().map(|found| found.after_free).sum();
    assert!(
        left as usize <= connections.len(),
        "{connections:?} {found:?}"
    );
}
