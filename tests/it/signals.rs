//! SIGPIPE: a peer that disconnects while the library writes does not kill the host, and the programs that
//! the library starts have the host's signal mask.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use mol::OptionName;
use serde_json::json;

use crate::support::child::{Link, command, program, text, under_strace};
use crate::support::daemon::write_program;
use crate::support::{
    End, Files, Handling, Proxy, TestEnv, file, noise, required_var, write_docker_context,
};

/// A template larger than the buffers of the pipes and sockets between host and engine.
fn large(env: &TestEnv) -> Files {
    let text = format!(
        "FROM scratch\nCOPY content /\nLABEL only={}\n",
        env.isolation
    );
    Files::from([
        ("Dockerfile".to_owned(), file(&text)),
        ("content".to_owned(), file(&noise(6 << 20))),
    ])
}

/// Options for an `ssh` that is this script, in which `$dial` is the command that connects to the engine.
fn ssh(env: &TestEnv, script: &str) -> Vec<(OptionName, String)> {
    let folder = env.scratch().join("programs");
    let (docker, engine) = (required_var("MOL_TEST_DOCKER"), &env.engine.url);
    let dial = format!("PATH=/usr/bin:/bin\ndial='{docker} --host {engine} system dial-stdio'\n");
    write_program(&folder, "ssh", &(dial + script));
    vec![
        (OptionName::DockerHost, "ssh://host".to_owned()),
        (OptionName::SearchPath, folder.to_str().unwrap().to_owned()),
    ]
}

/// Forwards at most 3 MB of the context without buffering, then kills itself and its children.
const DIES_LATER: &str = "(dd bs=64k count=46 2>/dev/null; kill -9 0) | $dial";

/// Options for a credential helper that is this script, for the registry of the template.
fn helper(env: &TestEnv, script: &str) -> Vec<(OptionName, String)> {
    let folder = env.scratch().join("programs");
    write_program(&folder, "docker-credential-test", script);
    let config = json!({ "credHelpers": { "127.0.0.1:1": "test" } });
    std::fs::write(env.scratch().join("config.json"), config.to_string()).unwrap();
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    vec![
        (OptionName::SearchPath, path(&folder)),
        (OptionName::DockerConfig, path(env.scratch())),
        // The classic builder gets the credentials first.
        (OptionName::DockerBuildkit, "0".to_owned()),
    ]
}

fn with_private_base() -> Files {
    Files::from([("Dockerfile".to_owned(), file("FROM 127.0.0.1:1/base\n"))])
}

/// A C host with this many callers in this many rounds.
fn host(env: &TestEnv, options: &[(OptionName, String)], callers: u32, rounds: u32) -> Command {
    let mut command = command(env, &program("crowd", Link::Static));
    for (name, value) in options {
        command.env(name.name(), value);
    }
    let numbers = [callers.to_string(), "30000".to_owned(), rounds.to_string()];
    command.args(numbers).arg("hermes");
    command
}

/// The number of calls by final status. The host itself must succeed.
fn ends(output: &Output) -> BTreeMap<String, usize> {
    assert!(
        output.status.success(),
        "{}\n{}",
        output.status,
        text(output)
    );
    let mut ends = BTreeMap::new();
    for line in text(output).lines() {
        if let Some(end) = line.strip_prefix("end ") {
            let status = end.split(' ').nth(2).unwrap().to_owned();
            *ends.entry(status).or_default() += 1;
        }
    }
    ends
}

/// Every call of the host ended with one of these statuses.
fn assert_ends(what: &str, mut host: Command, count: usize, with: &[&str]) {
    let output = host.output().unwrap();
    let ends = ends(&output);
    assert_eq!(ends.values().sum::<usize>(), count, "{what}: {ends:?}");
    let known = |end: &String| with.contains(&end.as_str());
    assert!(ends.keys().all(known), "{what}: {ends:?}");
}

/// The possible statuses after an interrupted upload: an engine that received only part of the context may report a
/// failed build.
const UPLOAD_CUT: [&str; 2] = ["engine_unreachable", "build_failed"];

#[test]
fn a_host_survives_an_ssh_that_dies_at_any_time() {
    let env = TestEnv::new();
    env.template("hermes", large(&env));
    for (script, buildkit, rounds) in [
        (DIES_LATER, "0", 6),
        (DIES_LATER, "1", 6),
        ("dd bs=100 count=1 >/dev/null 2>&1", "0", 20),
        ("exit 1", "0", 30),
        ("exec <&-; sleep 0.02", "0", 20),
        ("exec <&- >&-; sleep 0.02", "0", 20),
    ] {
        let mut options = ssh(&env, script);
        options.push((OptionName::DockerBuildkit, buildkit.to_owned()));
        let host = host(&env, &options, 2, rounds);
        assert_ends(script, host, 2 * rounds as usize, &UPLOAD_CUT);
    }
}

#[test]
fn a_host_survives_a_credential_helper_that_does_not_read() {
    let env = TestEnv::new();
    env.template("hermes", with_private_base());
    for script in ["exit 0", "exec <&-; exit 0", "exec <&-; sleep 0.02"] {
        let options = helper(&env, script);
        assert_ends(script, host(&env, &options, 1, 30), 30, &["build_failed"]);
    }
}

#[test]
fn a_host_survives_a_template_server_that_resets() {
    let env = TestEnv::new();
    env.template("hermes", large(&env));
    for path in ["/api/", "git-upload-pack HTTP"] {
        let proxy = Proxy::before(&env.server, move |line| match line.contains(path) {
            true => Handling::CutRequest(60, End::Reset),
            false => Handling::Pass,
        });
        let prefix = (OptionName::RepoPrefix, proxy.repo_prefix(&env.server));
        let host = host(&env, &[prefix], 20, 1);
        assert_ends(path, host, 20, &["gitea_unreachable", "fetch"]);
    }
}

#[test]
fn a_host_survives_an_engine_that_resets_during_the_upload() {
    let env = TestEnv::new();
    env.template("hermes", large(&env));
    for (number, end) in [End::Close, End::Reset].into_iter().enumerate() {
        for buildkit in ["0", "1"] {
            let rule = move |line: &str| match line.contains("/build?") || line.contains("/session")
            {
                true => Handling::CutRequest(1_000_000, end),
                false => Handling::Pass,
            };
            let folder = env.scratch().join(format!("{number}{buildkit}"));
            std::fs::create_dir(&folder).unwrap();
            let proxy = match end {
                End::Reset => Proxy::over_tcp(&env.engine, rule),
                _ => Proxy::start(&env.engine, &folder, rule),
            };
            let options = [
                (OptionName::DockerHost, proxy.url.clone()),
                (OptionName::DockerBuildkit, buildkit.to_owned()),
            ];
            let host = host(&env, &options, 2, 4);
            assert_ends(&proxy.url, host, 8, &UPLOAD_CUT);
        }
    }
}

#[test]
fn a_host_survives_its_file_size_limit() {
    let env = TestEnv::new();
    env.template("hermes", large(&env));
    let mut host = Command::new("prlimit");
    let limited = self::host(&env, &[], 1, 1);
    host.args(["--fsize=1048576", "--core=0"])
        .arg(limited.get_program())
        .args(limited.get_args())
        .env_clear()
        .current_dir(env.scratch());
    for (name, value) in env.values() {
        host.env(name.name(), value);
    }
    assert_ends("a limit of 1 MiB", host, 1, &["cache"]);
}

#[test]
fn a_child_process_has_the_signal_mask_of_the_host() {
    let env = TestEnv::new();
    env.template("hermes", large(&env));
    let log = env.scratch().join("log");
    let script = format!(
        "exec 9>>{}\ngrep SigBlk /proc/self/status >&9\n(yes; echo yes $? >&9) | head -n 1 >/dev/null",
        log.display()
    );
    let host = host(&env, &ssh(&env, &script), 1, 1);
    assert_ends("ssh", host, 1, &["engine_unreachable"]);
    let said = std::fs::read_to_string(log).unwrap();
    let mut lines = said.lines();
    let blocked = lines.next().unwrap().split_whitespace().last().unwrap();
    assert_eq!(u64::from_str_radix(blocked, 16), Ok(0), "{said}");
    // A shell reports 128 plus the number of the signal.
    assert_eq!(lines.next(), Some("yes 141"), "{said}");
}

/// What the threads of the host did, according to strace.
#[derive(Debug, Default)]
struct Seen {
    /// Writes to a pipe or socket that could have raised SIGPIPE.
    unsafe_writes: Vec<String>,
    /// Number of writes with SIGPIPE blocked or with MSG_NOSIGNAL.
    safe_writes: usize,
    /// Number of writes that failed with EPIPE.
    broken_pipes: usize,
    /// Number of SIGPIPEs delivered.
    delivered: usize,
}

#[test]
fn no_write_can_raise_sigpipe_in_the_host() {
    let env = TestEnv::new();
    env.template("hermes", large(&env));
    let mut options = ssh(&env, DIES_LATER);
    // The classic builder writes until EPIPE; BuildKit may notice the end earlier.
    options.push((OptionName::DockerBuildkit, "0".to_owned()));
    let mut seen = traced(&env, host(&env, &options, 2, 3));
    assert!(seen.unsafe_writes.is_empty(), "{:#?}", seen.unsafe_writes);
    assert!(seen.broken_pipes > 0 && seen.safe_writes > 20, "{seen:?}");
    assert_eq!(seen.delivered, 0);

    options[2].1 = "1".to_owned();
    seen = traced(&env, host(&env, &options, 2, 3));
    assert!(
        seen.unsafe_writes.is_empty() && seen.delivered == 0,
        "{seen:#?}"
    );

    options = ssh(&env, "exit 1");
    seen = traced(&env, host(&env, &options, 2, 10));
    assert!(
        seen.unsafe_writes.is_empty() && seen.delivered == 0,
        "{seen:#?}"
    );

    env.template("hermes", with_private_base());
    seen = traced(&env, host(&env, &helper(&env, "exec <&-; exit 0"), 1, 10));
    assert!(
        seen.unsafe_writes.is_empty() && seen.delivered == 0,
        "{seen:#?}"
    );
}

/// All system calls that write, change the signal mask, or create a thread or process.
const TRACED: &str = "write,writev,pwrite64,pwritev,pwritev2,sendto,sendmsg,sendmmsg,sendfile,splice,\
     vmsplice,tee,rt_sigprocmask,clone,clone3,fork,vfork";

fn traced(env: &TestEnv, host: Command) -> Seen {
    let options = ["-yy", "-s", "0", "-e", "signal=SIGPIPE"];
    let (output, trace) = under_strace(env, &host, TRACED, &options);
    ends(&output);
    read(&trace)
}

/// Follows the signal mask of each thread. Child processes of the host are other programs and are skipped.
fn read(trace: &str) -> Seen {
    let mut seen = Seen::default();
    let mut blocks: HashMap<&str, bool> = HashMap::new();
    let mut others: BTreeSet<&str> = BTreeSet::new();
    let mut unfinished: HashMap<&str, (String, bool)> = HashMap::new();
    for line in trace.lines() {
        let (thread, rest) = line.split_once(' ').unwrap();
        let rest = rest.trim_start();
        if others.contains(thread) {
            // Its own children appear in the trace only by their ids; they are skipped too.
            if let Some(child) = created(rest) {
                others.insert(child);
            }
            continue;
        }
        if rest.starts_with("--- SIGPIPE") {
            seen.delivered += 1;
            continue;
        }
        // strace splits a call in two when another thread interrupts it.
        let blocked = blocks.get(thread).copied().unwrap_or(false);
        if let Some(begun) = rest.strip_suffix(" <unfinished ...>") {
            unfinished.insert(thread, (begun.to_owned(), blocked));
            continue;
        }
        let (call, blocked) = match rest.split_once(" resumed>") {
            Some((_, end)) => {
                let (begun, blocked) = unfinished.remove(thread).unwrap();
                (begun + end, blocked)
            }
            None => (rest.to_owned(), blocked),
        };
        if call.starts_with("rt_sigprocmask(") {
            if let Some(now) = blocks_after(&call, blocked) {
                blocks.insert(thread, now);
            }
        } else if let Some(child) = created(rest) {
            match call.contains("CLONE_THREAD") {
                // Its first call may already be in the trace.
                true => drop(blocks.entry(child).or_insert(blocked)),
                false => drop(others.insert(child)),
            }
        } else if is_pipe_or_socket(&call) {
            seen.broken_pipes += usize::from(call.contains(" EPIPE "));
            match blocked || call.contains("MSG_NOSIGNAL") {
                true => seen.safe_writes += 1,
                false => seen.unsafe_writes.push(line.to_owned()),
            }
        }
    }
    seen
}

/// The id of the thread or process that a call created.
fn created(call: &str) -> Option<&str> {
    let calls = ["clone", "fork", "vfork"];
    let name = call.trim_start_matches("<... ");
    if !calls.iter().any(|call| name.starts_with(call)) {
        return None;
    }
    let (_, number) = call.rsplit_once(" = ")?;
    let number = number.split_whitespace().next()?;
    number.parse::<u32>().is_ok().then_some(number)
}

/// Whether SIGPIPE is blocked after `rt_sigprocmask(SIG_SETMASK, ~[RTMIN RT_1], NULL, 8) = 0`.
fn blocks_after(call: &str, blocked: bool) -> Option<bool> {
    let (how, rest) = call.split_once('(')?.1.split_once(", ")?;
    let (all_but, names) = match rest.strip_prefix("~[") {
        Some(names) => (true, names),
        None => (false, rest.strip_prefix('[')?),
    };
    let named = names
        .split(']')
        .next()?
        .split(' ')
        .any(|name| name == "PIPE");
    let has = named != all_but;
    Some(match how {
        "SIG_BLOCK" => blocked || has,
        "SIG_UNBLOCK" => blocked && !has,
        _ => has,
    })
}

/// Whether a call writes to a pipe or socket other than the host's standard output and error.
fn is_pipe_or_socket(call: &str) -> bool {
    let Some((descriptor, rest)) = call
        .split_once('(')
        .and_then(|(_, rest)| rest.split_once('<'))
    else {
        return false;
    };
    let kinds = ["pipe:", "UNIX", "TCP", "UDP", "socket:", "NETLINK"];
    !["1", "2"].contains(&descriptor) && kinds.iter().any(|kind| rest.starts_with(kind))
}

#[test]
fn the_strace_parser_classifies_each_write() {
    let trace = "\
10 rt_sigprocmask(SIG_BLOCK, ~[], [], 8) = 0
10 clone3({flags=CLONE_VM|CLONE_THREAD, x=0} => {parent_tid=[11]}, 88) = 11
10 rt_sigprocmask(SIG_SETMASK, [], NULL, 8) = 0
11 rt_sigprocmask(SIG_SETMASK, [], NULL, 8) = 0
11 write(5<pipe:[7]>, \"\"..., 4) = 4
11 rt_sigprocmask(SIG_BLOCK, [PIPE], NULL, 8) = 0
11 write(5<pipe:[7]>, \"\"..., 4 <unfinished ...>
10 sendto(6<UNIX-STREAM:[8->9]>, \"\"..., 4, MSG_NOSIGNAL, NULL, 0) = 4
11 <... write resumed>) = -1 EPIPE (Broken pipe)
11 vfork( <unfinished ...>
11 <... vfork resumed>) = 12
12 write(5<pipe:[7]>, \"\"..., 4) = -1 EPIPE (Broken pipe)
12 --- SIGPIPE {si_signo=SIGPIPE} ---
12 clone(child_stack=NULL, flags=SIGCHLD) = 13
13 write(5<pipe:[7]>, \"\"..., 4) = 4
10 write(1<pipe:[1]>, \"\"..., 4) = 4
10 write(7<TCP:[127.0.0.1:1->127.0.0.1:2]>, \"\"..., 4) = 4
10 write(8<anon_inode:[eventfd]>, \"\"..., 8) = 8
";
    let seen = read(trace);
    assert_eq!(
        (seen.safe_writes, seen.broken_pipes, seen.delivered),
        (2, 1, 0)
    );
    assert_eq!(seen.unsafe_writes.len(), 2, "{seen:?}");
    assert!(
        seen.unsafe_writes[0].starts_with("11 write(5") && seen.unsafe_writes[1].contains("TCP")
    );
}

/// Runs a program as a user without any other process on this machine, who can still read all files.
fn as_unused_user(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    let user = 3_000_000_000 + std::process::id() % 10_000_000 * 8 + next;
    command
        .arg(format!("--reuid={user}"))
        .arg("--clear-groups")
        .args([
            "--inh-caps=-all,+dac_override",
            "--ambient-caps=-all,+dac_override",
        ])
        .arg("--bounding-set=-all,+dac_override")
        .arg(program);
    command
}

/// Runs tests/c/limits.c, which limits a resource. Each of its calls must succeed or fail with this message and
/// hint. The template has every kind of file that a build reads, and the engine comes from a docker context.
fn with_limit(what: &str, message: &str, hint: &str) {
    let env = TestEnv::new();
    let text = format!("FROM scratch\nCOPY . /\nLABEL only={}\n", env.isolation);
    env.template(
        "hermes",
        Files::from([
            ("Dockerfile".to_owned(), file(&text)),
            (".dockerignore".to_owned(), file("ignored\n")),
            (".runtime-version".to_owned(), file("1.2.3\n")),
            (".gitattributes".to_owned(), file("*.txt eol=crlf\n")),
            ("a/b.txt".to_owned(), file("x\n")),
        ]),
    );
    let docker = tempfile::tempdir().unwrap();
    write_docker_context(docker.path(), "here", &env.engine.url);
    let config = r#"{"currentContext": "here"}"#;
    std::fs::write(docker.path().join("config.json"), config).unwrap();
    let program: PathBuf = program("limits", Link::Static);
    let mut command = as_unused_user(&program);
    command.env_clear().args([what, "hermes"]).current_dir("/");
    for (name, value) in env.values() {
        command.env(name.name(), value);
    }
    // The cache folder must belong to that user.
    let cache = tempfile::tempdir().unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
    std::fs::set_permissions(cache.path(), open).unwrap();
    command.env(OptionName::CacheDir.name(), cache.path().join("cache"));
    command.env(OptionName::DockerConfig.name(), docker.path());
    command.env(OptionName::RuntimeVersionPin.name(), "1");
    command.env_remove(OptionName::DockerHost.name());
    let output = command.output().unwrap();
    let said = crate::support::child::text(&output);
    assert!(output.status.success(), "{}\n{said}", output.status);
    let mut refused = 0;
    let mut lines = said.lines();
    while let Some(line) = lines.next() {
        let end = line.strip_prefix("end ").unwrap();
        let mut words = end.splitn(4, ' ').skip(2);
        match words.next().unwrap() {
            "ok" => continue,
            status => assert_eq!(status, "process_limit", "{said}"),
        }
        refused += 1;
        assert!(words.next().unwrap().contains(message), "{line}");
        assert!(lines.next().unwrap().contains(hint), "{said}");
    }
    assert!(refused > 2, "{said}");
    println!("{said}");
}

#[test]
fn without_threads_a_call_fails_and_the_client_is_freed() {
    with_limit(
        "threads",
        "cannot start more threads or programs",
        "ulimit -u",
    );
}

#[test]
fn without_file_descriptors_a_call_fails_and_the_client_is_freed() {
    with_limit("descriptors", "has no file descriptors left", "ulimit -n");
}
