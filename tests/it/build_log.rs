//! The log of the last build, kept in the cache: complete, bounded in size, with secrets masked.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use mol::upkeep::build_log::BuildLog;
use mol::{Code, OptionName};

use crate::support::engine::BUSYBOX;
use crate::support::server::{PLAIN, dockerfile};
use crate::support::{TestClient, TestEnv, block_on, unique, wait_until};

fn log(client: &TestClient) -> BuildLog {
    block_on(client.inner().build_log("hermes").wait(None)).unwrap()
}

#[test]
fn the_log_has_every_line_and_the_result_of_the_last_build() {
    let env = TestEnv::new();
    let client = env.client();
    let sha = env.template(
        "hermes",
        dockerfile(&format!(
            "FROM {BUSYBOX}\nRUN echo well-{}\n",
            env.isolation
        )),
    );
    client.ensure("hermes").unwrap();
    let first = log(&client);
    assert_eq!(first.runtime, "hermes");
    assert_eq!(
        first.path,
        env.cache().join("hermes/.build.log").to_str().unwrap()
    );
    let age = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() as i64 - first.ended_unix;
    assert!((0..300).contains(&age), "{age}");
    assert!(
        first.text.starts_with(&env.reference("hermes", &sha)),
        "{}",
        first.text
    );
    for part in [
        "fetched ",
        "building with ",
        &format!("| well-{}", env.isolation),
        " is ready",
        "s done\n",
    ] {
        assert!(first.text.contains(part), "{part} in {}", first.text);
    }
    let mode = fs::metadata(&first.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "{mode:o}");

    // A hit does not change the log.
    client.ensure("hermes").unwrap();
    assert_eq!(log(&client), first);

    env.template(
        "hermes",
        dockerfile(&format!(
            "FROM {BUSYBOX}\nRUN echo ill-{}; exit 3\n",
            env.isolation
        )),
    );
    client.ensure_err("hermes");
    let second = log(&client).text;
    assert!(
        second.contains(&format!("| ill-{}", env.isolation)),
        "{second}"
    );
    assert!(second.contains("failed (build_failed)"), "{second}");
    assert!(!second.contains("| well-"), "{second}");
}

#[test]
fn a_cancelled_build_has_a_log() {
    let env = TestEnv::new();
    let client = env.client();
    let word = unique();
    env.template(
        "hermes",
        dockerfile(&format!("FROM {BUSYBOX}\nRUN echo {word}; sleep 600\n")),
    );
    let call = client.begin("hermes");
    client.wait_for_line(&word);
    client.cancel(call);
    let text = wait_until("the log", || {
        let found = block_on(client.inner().build_log("hermes").wait(None));
        Some(found.ok()?.text)
    });
    assert!(
        text.contains(&word) && text.contains("stopped before the build ended"),
        "{text}"
    );
}

#[test]
fn a_long_log_keeps_its_beginning_and_end() {
    let env = TestEnv::new();
    // BuildKit itself limits the output of a step to 1 MiB.
    let client = env.client_with(&[(OptionName::DockerBuildkit, "0")]);
    let line = "a-line-that-is-not-very-long-but-long-enough-to-fill-something";
    env.template(
        "hermes",
        dockerfile(&format!("FROM {BUSYBOX}\nRUN echo first-{0}; seq 1 40000 | while read n; do echo $n-{line}; done; echo last-{0}\n", env.isolation)),
    );
    client.ensure("hermes").unwrap();
    let text = log(&client).text;
    assert!(text.len() < 1_100_000, "{}", text.len());
    for part in [
        &format!("| first-{}", env.isolation),
        &format!("| last-{}", env.isolation),
    ] {
        assert!(text.contains(part.as_str()), "{part}");
    }
    assert!(text.contains(" lines left out …"));
}

#[test]
fn secrets_printed_by_the_build_are_masked_in_the_log() {
    const TOKEN: &str = "t0ken-of-7-nobody";
    let env = TestEnv::with(&["--token", TOKEN]);
    let client = env.client_with(&[(OptionName::Token, TOKEN)]);
    env.template(
        "hermes",
        dockerfile(&format!(
            "FROM {BUSYBOX}\nRUN echo says {TOKEN} https://me:hunter2@host/; exit 3\n"
        )),
    );
    client.ensure_err("hermes");
    let found = log(&client);
    let file = fs::read_to_string(&found.path).unwrap();
    for text in [&found.text, &file] {
        assert!(text.contains("says *** https://***@host/"), "{text}");
        assert!(!text.contains(TOKEN) && !text.contains("hunter2"), "{text}");
    }
}

#[test]
fn a_missing_or_symlinked_log_is_reported_as_no_log() {
    let env = TestEnv::new();
    let client = env.client();
    let assert_no_log = |client: &TestClient| {
        let error = block_on(client.inner().build_log("hermes").wait(None)).unwrap_err();
        assert_eq!(error.code, Code::Cache, "{error:?}");
        assert!(
            error.message().contains("no log of a build of hermes"),
            "{error:?}"
        );
        assert!(error.hint.contains("mol ensure hermes"), "{error:?}");
    };
    assert_no_log(&client);
    assert!(!env.cache().exists(), "reading creates nothing");
    let folder = env.cache().join("hermes");
    fs::create_dir_all(&folder).unwrap();
    for folder in [&env.cache(), &folder] {
        fs::set_permissions(folder, PermissionsExt::from_mode(0o700)).unwrap();
    }
    let secret = env.scratch().join("secret");
    fs::write(&secret, "precious").unwrap();
    std::os::unix::fs::symlink(&secret, folder.join(".build.log")).unwrap();
    assert_no_log(&client);
    // A build does not follow the link either.
    env.template("hermes", dockerfile(PLAIN));
    client.ensure("hermes").unwrap();
    assert_eq!(fs::read_to_string(&secret).unwrap(), "precious");
    assert!(log(&client).text.contains("done"));
    let error = block_on(client.inner().build_log("cobol").wait(None)).unwrap_err();
    assert_eq!(error.code, Code::UnknownRuntime);
}
