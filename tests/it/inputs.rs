//! Invalid input from every source gives a clear error and has no other effect.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use mol::{Client, Code, OptionName, Options};

use crate::support::child::{self, Link};
use crate::support::server::{PLAIN, dockerfile};
use crate::support::{TestEnv, unique};

#[test]
fn an_unknown_runtime_is_refused_before_any_io() {
    let env = TestEnv::new();
    // A missing socket: contacting the engine would give another error code.
    let client = env.client_with(&[(OptionName::DockerHost, "unix:///nowhere/docker.sock")]);
    for name in [
        "",
        "unknown",
        "../../../etc/passwd",
        "langgraph;rm -rf /",
        "claude-code\n",
        " langgraph",
        "CLAUDE-CODE",
        "hermes\0",
        "hermes/../../x",
        "größe",
    ] {
        let error = client
            .inner()
            .ensure_local_image(name)
            .start(None, |_, _| panic!("the call was never started"))
            .unwrap_err();
        assert_eq!(error.code, Code::UnknownRuntime, "{name:?}");
        assert!(
            !error.message().contains('\n') && !error.message().contains('\0'),
            "{error:?}"
        );
        assert!(error.hint.contains("claude-code"), "{error:?}");
    }
    assert!(env.server.requests().is_empty());
    assert!(client.events().is_empty());
    assert!(!env.cache().exists());
}

fn refused(env: &TestEnv, name: OptionName, value: &str) -> mol::Error {
    let mut options = env.options();
    options.set(name, value);
    let error = Client::new(&options, None).expect_err(value);
    assert_eq!(error.code, Code::InvalidOption, "{value}: {error:?}");
    assert!(
        error.message().contains(name.name()),
        "the variable is missing: {error:?}"
    );
    assert!(!error.hint.is_empty(), "no hint: {error:?}");
    error
}

#[test]
fn an_invalid_option_is_refused_by_name_at_client_creation() {
    let env = TestEnv::new();
    for (name, values) in [
        (
            OptionName::RepoPrefix,
            &[
                "https://host/",
                "https://host/tpl-",
                "org/tpl-",
                "ftp://host/org/tpl-",
                "https://host/o/t-?q=",
                "https://host/ o/t-",
            ][..],
        ),
        (
            OptionName::Branch,
            &["a..b", "/x", "x/", "a b", "x~1", "-x", "a\nb"],
        ),
        (
            OptionName::Token,
            &["two words", "line\nbreak", "größe", "seven77"],
        ),
        (OptionName::Runtimes, &["hermes,", "hermes,hermes", "../x"]),
        (OptionName::TagArch, &["Always", " "]),
        (OptionName::Pins, &["hermes", "hermes=main", "x=y"]),
        (
            OptionName::Platform,
            &[
                "amd64",
                "linux/",
                "linux/amd",
                "Linux/amd64",
                "a/b/c/d",
                "linux/amd64,linux/arm64",
                "../../x",
            ],
        ),
        (
            OptionName::Isolation,
            &["-a", "A", "a b", "größe", "a/b", "a:b", "a\nb"],
        ),
        (OptionName::Offline, &["yes", "2", "on"]),
        (OptionName::RuntimeVersionPin, &["yes", "2"]),
        (
            OptionName::StallGrace,
            &["0", "-1", "soon", "1.5", "99999999999999999999"],
        ),
        (
            OptionName::Ceiling,
            &["0", "-1", "soon", "1 h", "1d", "-4m"],
        ),
    ] {
        for value in values {
            refused(&env, name, value);
        }
    }
    refused(&env, OptionName::Isolation, &"a".repeat(49));
    assert!(env.server.requests().is_empty() && !env.cache().exists());
}

#[test]
fn a_prefix_with_a_password_is_refused_without_showing_it() {
    let env = TestEnv::new();
    for prefix in [
        "https://me:hunter2@host/org/tpl-",
        "https://hunter2@host/org/tpl-",
    ] {
        let error = refused(&env, OptionName::RepoPrefix, prefix);
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        assert!(error.hint.contains("MOLECULE_GITEA_TOKEN"), "{error:?}");
    }
}

#[test]
fn an_invalid_docker_host_is_refused_before_the_fetch() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    for host in [
        "unix://relative",
        "tcp://host:port",
        "ssh://host",
        "fd://",
        "nonsense://host",
        "ftp://host",
    ] {
        let error = env
            .client_with(&[(OptionName::DockerHost, host)])
            .ensure_err("hermes");
        assert_eq!(error.code, Code::InvalidOption, "{host}: {error:?}");
        assert!(
            error.message().contains("DOCKER_HOST") && !error.hint.is_empty(),
            "{error:?}"
        );
    }
    assert!(!env.cache().exists());
}

#[test]
fn a_cache_folder_that_cannot_be_created_is_named() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    let blocked = env.scratch().join("a-file");
    std::fs::write(&blocked, "").unwrap();
    for folder in [
        blocked.join("below"),
        blocked.clone(),
        "/proc/nowhere".into(),
    ] {
        let folder = folder.to_str().unwrap();
        let error = env
            .client_with(&[(OptionName::CacheDir, folder)])
            .ensure_err("hermes");
        assert_eq!(error.code, Code::Cache, "{error:?}");
        assert!(error.message().contains(folder), "{error:?}");
        assert!(
            error.hint.contains("MOLECULE_LOCAL_BUILD_CACHE"),
            "{error:?}"
        );
    }
    assert!(env.engine.references_of(&env.isolation).is_empty());
}

#[test]
fn a_read_only_cache_folder_is_named() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    // Not even root can write to a read-only mount.
    let ensure = child::program("ensure", Link::Static);
    let output = child::with_a_disk(&env, "ro,mode=700", "exec \"$@\"", &ensure)
        .arg("hermes")
        .output()
        .unwrap();
    let text = child::text(&output);
    assert_eq!(output.status.code(), Some(Code::Cache as i32), "{text}");
    assert!(text.contains(env.cache().to_str().unwrap()), "{text}");
    assert!(text.contains("ead-only"), "{text}");
    assert!(text.contains("MOLECULE_LOCAL_BUILD_CACHE"), "{text}");
    assert!(env.engine.references_of(&env.isolation).is_empty());
}

fn environment(env: &TestEnv) -> Vec<String> {
    let values = env.values();
    values
        .iter()
        .map(|(name, value)| format!("{}={value}", name.name()))
        .collect()
}

#[test]
fn a_cache_folder_that_others_can_write_to_is_refused() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    std::fs::create_dir(env.cache()).unwrap();
    std::fs::set_permissions(env.cache(), PermissionsExt::from_mode(0o777)).unwrap();
    let error = env.client().ensure_err("hermes");
    assert_eq!(error.code, Code::Cache, "{error:?}");
    assert!(
        error.message().contains("other users") && error.hint.contains("chmod"),
        "{error:?}"
    );
    assert!(
        error.message().contains(env.cache().to_str().unwrap()),
        "{error:?}"
    );
}

#[test]
fn a_cache_folder_of_another_user_is_refused() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    std::fs::create_dir(env.cache()).unwrap();
    std::os::unix::fs::chown(env.cache(), Some(12345), None)
        .expect("the tests run as root, as the engine does");
    let error = env.client().ensure_err("hermes");
    assert_eq!(error.code, Code::Cache, "{error:?}");
    for part in [env.cache().to_str().unwrap(), "another user", "12345"] {
        assert!(error.message().contains(part), "{part} in {error:?}");
    }
    assert!(
        error.hint.contains("MOLECULE_LOCAL_BUILD_CACHE"),
        "{error:?}"
    );
    // Nothing was written to it, so it can be used when it is given back.
    std::os::unix::fs::chown(env.cache(), Some(0), None).unwrap();
    env.client().ensure("hermes").unwrap();
}

#[test]
fn an_unreachable_engine_is_reported_with_the_reason() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    let missing = format!("unix://{}/no.sock", env.scratch().display());
    let dead = env.scratch().join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    let dead = format!("unix://{}", dead.display());
    for (host, reason) in [
        (missing.as_str(), "No such file"),
        (&dead, "refused"),
        ("tcp://127.0.0.1:1", "refused"),
    ] {
        let error = env
            .client_with(&[(OptionName::DockerHost, host)])
            .ensure_err("hermes");
        assert_eq!(error.code, Code::EngineUnreachable, "{error:?}");
        for part in [host, "DOCKER_HOST", reason] {
            assert!(error.message().contains(part), "{part} in {error:?}");
        }
        assert!(error.hint.contains("start Docker"), "{error:?}");
    }
    assert!(
        !env.cache().exists(),
        "nothing is fetched without an engine to build with"
    );
}

#[test]
fn without_an_engine_all_tried_sockets_are_listed() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    // /run is hidden so that this machine's engine is neither found nor used.
    let home = env.scratch().join("home");
    let run = env.scratch().join("run");
    let output = Command::new("unshare")
        .args(["--mount", "--", "sh", "-ec", "mount -t tmpfs none /run; [ -L /var/run ] || mount -t tmpfs none /var/run; exec \"$@\"", "sh"])
        .args(["env", "-u", "DOCKER_CONTEXT", "-u", "DOCKER_CONFIG"])
        .args(environment(&env))
        .arg("DOCKER_HOST=")
        .arg(format!("HOME={}", home.display()))
        .arg(format!("XDG_RUNTIME_DIR={}", run.display()))
        .arg(child::program("ensure", Link::Static))
        .arg("hermes")
        .output()
        .unwrap();
    let text = child::text(&output);
    assert_eq!(
        output.status.code(),
        Some(Code::EngineUnreachable as i32),
        "{text}"
    );
    let (home, run) = (home.display(), run.display());
    for socket in [
        "/var/run/docker.sock".to_owned(),
        format!("{run}/docker.sock"),
        format!("{home}/.docker/run/docker.sock"),
        format!("{home}/.docker/desktop/docker.sock"),
        format!("{home}/.colima/default/docker.sock"),
        format!("{home}/.orbstack/run/docker.sock"),
        format!("{home}/.rd/docker.sock"),
        format!("{home}/.local/share/containers/podman/machine/podman.sock"),
        format!("{run}/podman/podman.sock"),
        "/run/podman/podman.sock".to_owned(),
    ] {
        assert!(
            text.contains(&format!("unix://{socket}")),
            "{socket} in {text}"
        );
    }
    assert!(text.contains("no socket was found at unix:///"), "{text}");
    // Docker or Podman may be installed on this machine.
    assert!(text.contains("hint start "), "{text}");
    assert!(
        !text.contains("workspace-template-hermes"),
        "the template is not the cause: {text}"
    );
}

#[test]
fn a_denied_socket_is_reported_with_the_command_that_grants_access() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    let socket = env.scratch().join("engine.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let host = format!("unix://{}", socket.display());
    // In a container the names of groups are not those of the engine's machine.
    let in_container = ["/.dockerenv", "/run/.containerenv"]
        .iter()
        .any(|file| std::path::Path::new(file).exists());
    // On Debian and its like, mail has this id.
    let mail = match in_container {
        true => ("the group 8 may open it", "--group-add 8"),
        false => ("the group mail may open it", "sudo usermod -aG mail nobody"),
    };
    for (mode, group, message, hint) in [
        (0o660, 8, mail.0, mail.1),
        (
            0o660,
            54_321,
            "the group 54321 may open it",
            "--group-add 54321",
        ),
        (
            0o600,
            8,
            "only root may open it",
            "rootless Docker or Podman",
        ),
    ] {
        std::os::unix::fs::chown(&socket, Some(0), Some(group)).unwrap();
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(mode)).unwrap();
        let output = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "env"])
            .args(environment(&env))
            .arg(format!("DOCKER_HOST={host}"))
            .arg(child::program("ensure", Link::Static))
            .arg("hermes")
            .output()
            .unwrap();
        let text = child::text(&output);
        assert_eq!(
            output.status.code(),
            Some(Code::EngineUnreachable as i32),
            "{text}"
        );
        for part in [host.as_str(), "denied", message, hint] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}

#[test]
fn an_engine_started_later_is_found_by_the_next_call() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    let socket = env.scratch().join("late.sock");
    let host = format!("unix://{}", socket.display());
    let client = env.client_with(&[(OptionName::DockerHost, &host)]);
    assert_eq!(client.ensure_err("hermes").code, Code::EngineUnreachable);
    let real = env.engine.url.strip_prefix("unix://").unwrap().to_owned();
    std::os::unix::fs::symlink(real, socket).unwrap();
    client.ensure("hermes").unwrap();
}

#[test]
fn set_all_from_reads_each_option_from_the_given_lookup() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    let values = env.values();
    let mark = unique();
    let mut options = Options::default();
    options.set_all_from(|variable| match variable {
        "MOLECULE_LOCAL_TEMPLATE_BRANCH" => Some(mark.clone()),
        _ => values
            .iter()
            .find(|(name, _)| name.name() == variable)
            .map(|(_, value)| value.clone()),
    });
    let error = crate::support::TestClient::new(&options).ensure_err("hermes");
    assert_eq!(error.code, Code::RepoNotFound);
    assert!(error.message().contains(&mark), "{error:?}");
}
