//! The builders that the tests start: BuildKit daemons that are isolated from each other, and leave nothing.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::support::builder::program;
use crate::support::child::{succeed, text};
use crate::support::engine::{busybox, is_running, wait_until_gone};
use crate::support::registry::Registry;
use crate::support::tls::{Certificates, Flaw};
use crate::support::{Builder, unique, wait_until};

/// The command that shows the platforms of a builder.
fn workers(builder: &Builder, certificates: Option<&Path>) -> Command {
    let mut command = Command::new(program("buildctl"));
    command.args(["--addr", &builder.address()]);
    if let Some(folder) = certificates {
        command.arg("--tlsdir").arg(folder);
    }
    command.args(["debug", "workers"]);
    command
}

/// The command that builds a Dockerfile, whose context contains `busybox`, into `image.tar` beside it.
fn build(builder: &Builder, folder: &Path, dockerfile: &str) -> Command {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("Dockerfile"), dockerfile).unwrap();
    let shell = folder.join("busybox");
    fs::write(&shell, busybox()).unwrap();
    fs::set_permissions(&shell, Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(program("buildctl"));
    command.args(["--addr", &builder.address(), "build", "--progress=plain"]);
    command.args(["--frontend=dockerfile.v0", "--output"]);
    let archive = folder.join("image.tar");
    command.arg(format!("type=docker,dest={}", archive.display()));
    for name in ["context", "dockerfile"] {
        command.args(["--local", &format!("{name}={}", folder.display())]);
    }
    command
}

/// A Dockerfile with one step, which runs this shell script.
fn step(script: &str) -> String {
    format!(
        "FROM scratch\n\
         COPY busybox /bin/busybox\n\
         RUN [\"/bin/busybox\", \"sh\", \"-c\", \"{script}\"]\n"
    )
}

fn fail(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(!output.status.success(), "{}", text(&output));
    output
}

/// The folders of a cgroup, in all hierarchies.
fn cgroups(name: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let below = fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    [root.to_owned()]
        .into_iter()
        .chain(below)
        .map(|folder| folder.join(name))
        .filter(|folder| folder.exists())
        .collect()
}

#[test]
fn builders_listen_on_a_socket_a_port_and_with_tls() {
    let parent = tempfile::tempdir().unwrap();
    let folder = |name: &str| parent.path().join(name);
    let certificates = Certificates::new(&folder("certificates"));
    let client = certificates.issue(Flaw::None);

    let unix = Builder::unix(&folder("unix"));
    assert!(unix.address().starts_with("unix:///"));
    succeed(&mut workers(&unix, None));
    let tcp = Builder::tcp(&folder("tcp"));
    assert!(tcp.address().starts_with("tcp://127.0.0.1:"));
    succeed(&mut workers(&tcp, None));
    let tls = Builder::tls(&folder("tls"), &certificates);
    succeed(&mut workers(&tls, Some(&client)));

    fail(&mut workers(&tls, None));
    let stranger = Certificates::new(&folder("other")).issue(Flaw::None);
    fs::copy(client.join("ca.pem"), stranger.join("ca.pem")).unwrap();
    fail(&mut workers(&tls, Some(&stranger)));
}

#[test]
fn each_certificate_flaw_makes_the_client_refuse_the_builder() {
    let parent = tempfile::tempdir().unwrap();
    let certificates = Certificates::new(&parent.path().join("certificates"));
    let client = certificates.issue(Flaw::None);
    for (flaw, reason) in [
        (Flaw::Expired, "certificate has expired"),
        (Flaw::OtherHost, "cannot validate certificate for 127.0.0.1"),
        (Flaw::OwnSignature, "unknown authority"),
        (Flaw::ClientOnly, "incompatible key usage"),
    ] {
        let folder = parent.path().join(format!("{flaw:?}"));
        let builder = Builder::flawed_tls(&folder, &certificates, flaw);
        let output = text(&fail(&mut workers(&builder, Some(&client))));
        assert!(output.contains(reason), "{flaw:?}: {output}");
    }
}

#[test]
fn a_killed_builder_keeps_its_cache() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("builder");
    let builder = Builder::tcp(&folder);
    let (address, word) = (builder.address(), unique());
    let short = parent.path().join("short");
    let short = || build(&builder, &short, &step("echo text > /file"));
    assert!(!text(&succeed(&mut short())).contains("CACHED"));

    let script = format!("busybox sleep 1000; echo {word}");
    let mut long = build(&builder, &parent.path().join("long"), &step(&script))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the step", || is_running(&word).then_some(()));
    builder.kill();
    wait_until_gone(&word);
    assert!(!long.wait().unwrap().success());
    fail(&mut workers(&builder, None));

    builder.restart();
    assert_eq!(builder.address(), address);
    assert!(text(&succeed(&mut short())).contains("CACHED"));
}

#[test]
fn a_stopped_builder_leaves_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("builder");
    let builder = Builder::small(&folder, 64);
    let cgroup = fs::read_to_string(folder.join("cgroup")).unwrap();
    let script = format!("busybox sleep 1000; echo {}", unique());
    let mut long = build(&builder, &parent.path().join("long"), &step(&script))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the step", || is_running(&script).then_some(()));
    assert!(!cgroups(cgroup.trim()).is_empty());
    drop(builder);
    assert!(!long.wait().unwrap().success());
    assert!(!is_running(&script));
    assert!(!is_running(folder.to_str().unwrap()));
    assert!(cgroups(cgroup.trim()).is_empty());
    assert!(!folder.exists());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(folder.to_str().unwrap()));
}

#[test]
fn a_small_builder_has_a_small_disk() {
    let parent = tempfile::tempdir().unwrap();
    let builder = Builder::small(&parent.path().join("builder"), 32);
    let script = "busybox dd if=/dev/zero of=/file bs=1M count=64";
    let mut build = build(&builder, &parent.path().join("context"), &step(script));
    let output = text(&fail(&mut build));
    assert!(output.contains("No space left on device"), "{output}");
}

#[test]
fn builders_pull_from_a_registry_on_loopback() {
    let parent = tempfile::tempdir().unwrap();
    let registry = Registry::public(parent.path());
    let (base, word) = registry.publish("base");
    let builder = Builder::unix(&parent.path().join("builder"));
    let dockerfile = format!("FROM {base}\nRUN cat /base\n");
    let mut build = build(&builder, &parent.path().join("context"), &dockerfile);
    let output = text(&succeed(&mut build));
    assert!(output.contains(&word), "{output}");
}
