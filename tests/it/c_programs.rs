//! The C interface: the programs of tests/c and examples/c, compiled without a warning, linked with both
//! libraries, and run as processes.

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

use mol::{Code, OptionName};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::support::child::{
    self, BOTH, Link, command, field, program, source, strict_compiler, succeed, text,
};
use crate::support::daemon::write_program;
use crate::support::engine::{BUSYBOX, assert_gone};
use crate::support::server::{PLAIN, dockerfile, fetches, of_service, script};
use crate::support::sshd::Sshd;
use crate::support::{Files, TestEnv, file, unique};

#[test]
fn a_c_program_gets_an_image_with_the_static_and_the_shared_library() {
    for link in BOTH {
        let env = TestEnv::new();
        let sha = env.template("hermes", dockerfile(PLAIN));
        let ensure = program("ensure", link);
        let first = succeed(command(&env, &ensure).arg("hermes"));
        assert_eq!(field(&first, "reference"), env.reference("hermes", &sha));
        assert_eq!(field(&first, "latest"), env.latest("hermes"));
        assert_eq!(field(&first, "commit"), sha);
        assert_eq!(field(&first, "platform"), "linux/amd64");
        assert_eq!(field(&first, "hit"), "0");
        assert_eq!(
            env.engine.id(&field(&first, "reference")),
            Some(field(&first, "id"))
        );
        let second = succeed(command(&env, &ensure).arg("hermes"));
        assert_eq!(field(&second, "hit"), "1");
        assert!(first.stderr.is_empty() && second.stderr.is_empty());
    }
}

#[test]
fn a_c_program_gets_errors_with_every_field() {
    let env = TestEnv::new();
    let text = format!("FROM {BUSYBOX}\nRUN echo says {}; exit 9\n", env.isolation);
    env.template("hermes", dockerfile(&text));
    for link in BOTH {
        let ensure = program("ensure", link);
        let output = command(&env, &ensure).arg("hermes").output().unwrap();
        assert_eq!(output.status.code(), Some(Code::BuildFailed as i32));
        assert_eq!(field(&output, "error"), "build_failed");
        assert!(field(&output, "step").contains("exit 9"));
        assert_eq!(field(&output, "line"), "2");
        assert_eq!(field(&output, "exit"), "9");
        let log = field(&output, "log");
        assert!(log.contains(&format!("says {}", env.isolation)), "{log}");
        assert!(!field(&output, "hint").is_empty());
        assert!(output.stdout.is_empty());

        let output = command(&env, &ensure).arg("codex").output().unwrap();
        assert_eq!(output.status.code(), Some(Code::RepoNotFound as i32));
        assert_eq!(
            field(&output, "url"),
            format!("{}codex", env.server.repo_prefix)
        );
        assert!(!child::text(&output).contains("step "), "there was no step");
    }
}

#[test]
fn a_timeout_from_c_is_a_deadline() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    env.server
        .faults(json!([{ "match": "/api/", "hang": true }]));
    let output = command(&env, &program("ensure", Link::Static))
        .args(["hermes", "300"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(Code::DeadlineExceeded as i32));
}

#[test]
fn a_c_program_takes_events_and_one_result() {
    for link in BOTH {
        let env = TestEnv::new();
        // BuildKit reports no steps for a build that joins a running one with the same files.
        let unique = format!("{PLAIN}# {}\n", env.isolation);
        let sha = env.template("hermes", dockerfile(&unique));
        let output = succeed(command(&env, &program("events", link)).arg("hermes"));
        assert_eq!(field(&output, "reference"), env.reference("hermes", &sha));
        let text = text(&output);
        let events: Vec<serde_json::Value> = text
            .lines()
            .filter_map(|line| line.strip_prefix("event "))
            .map(|json| serde_json::from_str(json).expect("each event is one JSON object"))
            .collect();
        let kinds: Vec<&str> = events
            .iter()
            .map(|event| event["kind"].as_str().unwrap())
            .collect();
        for kind in [
            "lookup_started",
            "lookup_done",
            "cache_miss",
            "fetch_done",
            "build_started",
            "step_done",
            "tagged",
        ] {
            assert!(kinds.contains(&kind), "{kind} in {kinds:?}");
        }
        for event in events {
            let event = event.as_object().unwrap();
            assert!(
                event
                    .values()
                    .all(|value| !value.is_object() && !value.is_array() && !value.is_null()),
                "flat: {event:?}"
            );
            assert!(
                event["message"].is_string()
                    && event["runtime"] == "hermes"
                    && event["call"].is_u64()
            );
        }
    }
}

#[test]
fn a_c_program_cancels_and_the_build_is_gone() {
    for link in BOTH {
        let env = TestEnv::new();
        let word = unique();
        let text = format!("FROM {BUSYBOX}\nRUN echo go $((1+1)) {word}; sleep 600; true\n");
        env.template("hermes", dockerfile(&text));
        let mut events = command(&env, &program("events", link))
            .args(["hermes", "go 2"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(events.stdout.take().unwrap()).lines();
        let mut lines = lines.map_while(Result::ok);
        // The program cancels the call at this line.
        assert!(lines.any(|line| line.starts_with("event ") && line.contains("go 2")));
        assert_gone(&word, Instant::now());
        let rest: Vec<String> = lines.collect();
        assert!(
            rest.iter().any(|line| line == "error canceled"),
            "{rest:#?}"
        );
        events.wait().unwrap();
    }
}

/// A running examples/c/progress.c.
struct Progress {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Progress {
    fn start(env: &TestEnv, link: Link) -> Self {
        let mut process = command(env, &program("progress", link))
            .arg("hermes")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, lines }
    }
}

#[test]
fn the_progress_example_prints_the_events_in_order_and_the_image() {
    for link in BOTH {
        let env = TestEnv::new();
        let sha = env.template("hermes", dockerfile(PLAIN));
        let output = succeed(command(&env, &program("progress", link)).arg("hermes"));
        assert!(output.stderr.is_empty());
        let text = text(&output);
        let mut lines = text.lines();
        for kind in [
            "lookup_started: looking up ",
            "lookup_done: main is at ",
            "cache_miss: ",
            "fetch_started: ",
            "fetch_done: ",
            "build_started: ",
            "step_done: ",
            "tagged: ",
        ] {
            let found = lines.any(|line| line.starts_with(kind));
            assert!(found, "{kind} is missing or out of order in:\n{text}");
        }
        let reference = env.reference("hermes", &sha);
        assert_eq!(lines.next_back(), Some(&*format!("image: {reference}")));
    }
}

#[test]
fn the_progress_example_prints_the_step_and_the_log_of_a_failure() {
    let env = TestEnv::new();
    let text = format!("FROM {BUSYBOX}\nRUN echo says {}; exit 9\n", env.isolation);
    env.template("hermes", dockerfile(&text));
    for link in BOTH {
        let output = command(&env, &program("progress", link))
            .arg("hermes")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(Code::BuildFailed as i32));
        let errors = String::from_utf8(output.stderr).unwrap();
        let lines: Vec<&str> = errors.lines().collect();
        assert!(lines[0].starts_with("build_failed: "), "{errors}");
        assert!(lines[1].contains("exit 9"), "{errors}");
        let log = lines[2..].join("\n");
        assert!(log.contains(&format!("says {}", env.isolation)), "{errors}");
    }
}

#[test]
fn the_progress_example_prints_the_error_of_a_call_that_cannot_start() {
    let env = TestEnv::new();
    for link in BOTH {
        let output = command(&env, &program("progress", link))
            .arg("hermse")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(Code::UnknownRuntime as i32));
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(errors.starts_with("unknown_runtime: "), "{errors}");
        assert!(errors.contains("hermes"), "{errors}");
    }
}

#[test]
fn ctrl_c_cancels_the_progress_example_and_its_build() {
    for link in BOTH {
        let env = TestEnv::new();
        let word = unique();
        let text = format!("FROM {BUSYBOX}\nRUN echo go $((1+1)) {word}; sleep 600; true\n");
        env.template("hermes", dockerfile(&text));
        let mut progress = Progress::start(&env, link);
        let mut lines = progress.lines.by_ref().map_while(Result::ok);
        assert!(lines.any(|line| line.starts_with("log: ") && line.contains("go 2")));
        let since = Instant::now();
        kill_process(Pid::from_child(&progress.process), Signal::INT).unwrap();
        let output = progress.process.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(Code::Canceled as i32));
        assert!(String::from_utf8_lossy(&output.stderr).starts_with("canceled: "));
        assert_gone(&word, since);
    }
}

#[test]
fn each_result_goes_to_one_of_the_threads_that_wait() {
    for link in BOTH {
        let env = TestEnv::new();
        env.server
            .faults(json!([{ "match": "/api/", "hang": true }]));
        let output = succeed(command(&env, &program("waits", link)).arg("hermes"));
        assert_eq!(text(&output), "waited\n");
    }
}

#[test]
fn the_descriptor_is_readable_while_a_result_or_event_is_queued() {
    for link in BOTH {
        let env = TestEnv::new();
        let output = succeed(&mut command(&env, &program("descriptor", link)));
        assert_eq!(text(&output), "polled\n");
    }
}

#[test]
fn every_parameter_rejects_invalid_values() {
    for link in BOTH {
        let env = TestEnv::new();
        let output = succeed(&mut command(&env, &program("refusals", link)));
        assert_eq!(text(&output), "all refused\n");
        assert!(env.server.requests().is_empty());
    }
}

#[test]
fn the_library_changes_no_signal_child_or_output_of_its_host() {
    for link in BOTH {
        let env = TestEnv::new();
        // The pause gives the program time for its checks.
        let text = format!("FROM {BUSYBOX}\nRUN echo {}; sleep 1\n", env.isolation);
        env.template("hermes", dockerfile(&text));
        let output = succeed(command(&env, &program("host", link)).arg("hermes"));
        assert_eq!(child::text(&output), "as it was\n");
    }
}

#[test]
fn a_host_forks_and_executes_during_a_build() {
    for link in BOTH {
        let env = TestEnv::new();
        let text = format!("FROM {BUSYBOX}\nRUN echo {}; sleep 1\n", env.isolation);
        env.template("hermes", dockerfile(&text));
        let host = program("host", link);
        let output = succeed(command(&env, &host).args(["after", "hermes"]));
        assert_eq!(child::text(&output), "as it was\n");
        let fetches = fetches(&env.server.requests());
        assert!(fetches > 0, "the first build must fetch the template");
    }
}

#[test]
fn freeing_a_client_wakes_every_thread_that_waits() {
    for link in BOTH {
        let env = TestEnv::new();
        env.server
            .faults(json!([{ "match": "/api/", "hang": true }]));
        let output = succeed(command(&env, &program("close", link)).arg("hermes"));
        assert_eq!(text(&output), "closed\n");
    }
}

#[test]
fn invalid_utf8_in_the_environment_is_an_error_that_names_it() {
    use std::os::unix::ffi::OsStrExt;
    let env = TestEnv::new();
    let output = command(&env, &program("ensure", Link::Static))
        .env(
            "MOLECULE_LOCAL_TEMPLATE_BRANCH",
            std::ffi::OsStr::from_bytes(b"\xff"),
        )
        .arg("hermes")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(Code::InvalidOption as i32));
    assert!(field(&output, "message").contains("MOLECULE_LOCAL_TEMPLATE_BRANCH"));
    assert!(env.server.requests().is_empty());
}

#[test]
fn an_image_is_built_with_an_empty_path() {
    for link in BOTH {
        let env = TestEnv::new();
        let sha = env.template("hermes", dockerfile(PLAIN));
        let output = succeed(
            command(&env, &program("ensure", link))
                .env("PATH", "")
                .arg("hermes"),
        );
        assert_eq!(field(&output, "reference"), env.reference("hermes", &sha));
    }
}

#[test]
fn calls_work_in_a_deleted_working_directory() {
    let env = TestEnv::new();
    let sshd = Sshd::start(env.scratch());
    // A credential helper. The classic builder runs it even if the engine has the base image.
    let base = format!("registry-{}.example/base:1", env.isolation);
    env.engine.tag(BUSYBOX, &base);
    let (docker, asked) = (env.scratch().join("docker"), env.scratch().join("asked"));
    std::fs::create_dir(&docker).unwrap();
    std::fs::write(
        docker.join("config.json"),
        r#"{"credsStore": "of-the-test"}"#,
    )
    .unwrap();
    let helper = format!("cat >> {}; echo '{{}}'", asked.display());
    let programs = env.scratch().join("programs");
    write_program(&programs, "docker-credential-of-the-test", &helper);
    let gone_script = r#"mkdir "$0" && cd "$0" && rmdir "$0" && exec "$@""#;
    let ssh = sshd.url();
    let engines = [
        (env.engine.url.as_str(), "1"),
        (&env.engine.url, "0"),
        (&ssh, "1"),
    ];
    for (number, (engine, buildkit)) in engines.into_iter().enumerate() {
        let files = Files::from([
            (
                "Dockerfile".to_owned(),
                file(&format!(
                    "FROM {base}\nCOPY . /files/\nRUN true # {number}\n"
                )),
            ),
            (
                ".gitattributes".to_owned(),
                file("*.txt eol=crlf\n*.w working-tree-encoding=UTF-16LE\n"),
            ),
            (".dockerignore".to_owned(), file("ignored\n")),
            ("a/b.txt".to_owned(), file("x\n")),
            ("a/b.w".to_owned(), file("x")),
            ("run".to_owned(), script("#!/bin/sh\n")),
        ]);
        let sha = env.template("hermes", files);
        let mut command = command(&env, Path::new("/bin/sh"));
        let gone = env.scratch().join("gone");
        command
            .args(["-c", gone_script])
            .arg(gone)
            .arg(program("ensure", Link::Static));
        let path = format!("{}:{}:/usr/bin:/bin", programs.display(), sshd.client());
        command
            .env("DOCKER_HOST", engine)
            .env("DOCKER_BUILDKIT", buildkit)
            .env("DOCKER_CONFIG", &docker)
            .env("PATH", path);
        let output = succeed(command.arg("hermes"));
        let reference = env.reference("hermes", &sha);
        assert_eq!(field(&output, "reference"), reference);
        assert_eq!(env.engine.read(&reference, "files/a/b.txt"), "x\r\n");
    }
    let asked = std::fs::read_to_string(asked).unwrap();
    assert!(asked.contains(base.split('/').next().unwrap()), "{asked}");
    env.engine.remove_all_of(&env.isolation);
    env.engine.untag(&base);
}

#[test]
fn no_program_on_the_path_is_started() {
    let env = TestEnv::new();
    env.template(
        "hermes",
        Files::from([
            ("Dockerfile".to_owned(), file(PLAIN)),
            ("page".to_owned(), file("text")),
            // A clone would start a filter program for this, if one is configured.
            (".gitattributes".to_owned(), file("page filter=trap\n")),
            ("run".to_owned(), script("#!/bin/sh\n")),
        ]),
    );
    let traps = env.scratch().join("bin");
    let sprung = env.scratch().join("sprung");
    for name in [
        "git",
        "docker",
        "docker-buildx",
        "docker-credential-trap",
        "sh",
        "trap",
        "ssh",
        "podman",
    ] {
        let script = format!("echo {name} \"$@\" >> {}", sprung.display());
        write_program(&traps, name, &script);
    }
    // Each trap works.
    succeed(Command::new(traps.join("git")).arg("control"));
    assert_eq!(std::fs::read_to_string(&sprung).unwrap(), "git control\n");
    std::fs::remove_file(&sprung).unwrap();
    // A helper is for private base images only, and this template has none.
    let login = r#"{"credsStore":"trap"}"#;
    std::fs::write(env.scratch().join("config.json"), login).unwrap();
    let config = "[filter \"trap\"]\n\tsmudge = trap\n\tclean = trap\n\tprocess = trap\n[core]\n\tfsmonitor = trap\n\tsshCommand = trap\n";
    std::fs::write(env.scratch().join(".gitconfig"), config).unwrap();
    succeed(
        command(&env, &program("ensure", Link::Static))
            .env("PATH", &traps)
            .env(OptionName::DockerConfig.name(), env.scratch())
            .arg("hermes"),
    );
    assert!(
        !sprung.exists(),
        "{}",
        std::fs::read_to_string(&sprung).unwrap()
    );
}

#[test]
fn the_users_git_configuration_has_no_effect() {
    let env = TestEnv::new();
    let sha = env.template("hermes", dockerfile(PLAIN));
    let nowhere = format!(
        "[url \"http://127.0.0.1:1/\"]\n\tinsteadOf = {}\n[core]\n\tautocrlf = true\n",
        env.server.url
    );
    std::fs::write(env.scratch().join(".gitconfig"), nowhere).unwrap();
    let output = succeed(command(&env, &program("ensure", Link::Static)).arg("hermes"));
    assert_eq!(field(&output, "commit"), sha);
    let image = env.engine.read(&field(&output, "reference"), "Dockerfile");
    assert_eq!(image, PLAIN);
    assert!(!of_service(&env.server.requests(), "git").is_empty());
}

/// Compiles code against the header, and returns the messages of the compiler if it rejects the code.
fn compile(code: &str, cpp: bool, standard: &str) -> Result<(), String> {
    let mut file = tempfile::Builder::new()
        .suffix(if cpp { ".cc" } else { ".c" })
        .tempfile()
        .unwrap();
    file.write_all(code.as_bytes()).unwrap();
    compile_file(file.path(), cpp, standard)
}

fn compile_file(file: &Path, cpp: bool, standard: &str) -> Result<(), String> {
    let output = strict_compiler(cpp, standard)
        .args(["-c", "-o", "/dev/null"])
        .arg(file)
        .output()
        .unwrap();
    match output.status.success() {
        true => Ok(()),
        false => Err(text(&output)),
    }
}

const C: [&str; 4] = ["c99", "c11", "c17", "c2x"];
const CPP: [&str; 4] = ["c++11", "c++14", "c++17", "c++20"];

#[test]
fn the_header_compiles_in_every_standard() {
    for standard in C {
        compile("#include <mol.h>\nint x;\n", false, standard).unwrap();
        for file in [
            "tests/c/header.c",
            "examples/c/ensure.c",
            "examples/c/progress.c",
        ] {
            compile_file(&source(file), false, standard).unwrap();
        }
    }
    for standard in CPP {
        compile_file(&source("tests/c/header.cc"), true, standard).unwrap();
    }
}

/// Compiles a statement in a function that has an object of each type.
fn compile_statement(statement: &str, cpp: bool, standard: &str) -> Result<(), String> {
    let code = format!(
        "#include \"mol.h\"\n\
         int f(mol_options options, mol_client client, mol_call call, mol_result *result);\n\
         int f(mol_options options, mol_client client, mol_call call, mol_result *result)\n\
         {{\n\
         (void)options, (void)client, (void)call, (void)result;\n\
         {statement}\n\
         return 0;\n\
         }}\n"
    );
    compile(&code, cpp, standard)
}

/// In every standard, `accepted` compiles, and `rejected` does not: the compiler's messages contain `words`.
fn accepts_and_rejects(accepted: &str, rejected: &str, words: &str) {
    let standards = C
        .map(|c| (false, c))
        .into_iter()
        .chain(CPP.map(|cpp| (true, cpp)));
    for (cpp, standard) in standards {
        compile_statement(accepted, cpp, standard).unwrap();
        let messages = compile_statement(rejected, cpp, standard);
        let messages = messages.expect_err(&format!("{rejected} compiles as {standard}"));
        assert!(messages.contains(words), "{standard}: {messages}");
    }
}

#[test]
fn an_id_of_another_type_does_not_compile() {
    // GCC and clang name the type that the function has, or the one that it was given.
    accepts_and_rejects(
        "mol_client_free(client);",
        "mol_client_free(options);",
        "mol_",
    );
    accepts_and_rejects(
        "mol_options_free(options);",
        "mol_options_free(client);",
        "mol_",
    );
    accepts_and_rejects(
        "return mol_call_wait(client, call, 0, &result, 0);",
        "return mol_call_wait(call, client, 0, &result, 0);",
        "mol_",
    );
    accepts_and_rejects("client.id = 1;", "client = 1;", "client");
}

#[test]
fn a_status_that_is_ignored_is_a_warning() {
    for call in [
        "mol_options_set(options, \"pins\", \"\", 0)",
        "mol_call_wait(client, call, 0, &result, 0)",
        "mol_ensure_local_image(client, \"hermes\", 0, 0, 0)",
    ] {
        accepts_and_rejects(
            &format!("return {call};"),
            &format!("{call};"),
            "[-Werror=unused-result]",
        );
    }
    for (cpp, standard) in [(false, "c11"), (true, "c++17")] {
        compile_statement("mol_call_cancel(client, call, 0);", cpp, standard).unwrap();
    }
}

#[test]
fn a_c_program_gets_the_registry_verbatim() {
    let env = TestEnv::new();
    let output = command(&env, &program("ensure", Link::Static))
        .env("MOLECULE_IMAGE_REGISTRY", " registry.example/x ")
        .arg("hermes")
        .output()
        .unwrap();
    assert_eq!(text(&output), "registry  registry.example/x \n");
    assert!(env.server.requests().is_empty());
}
