//! C programs, compiled as the author of a host program would, and run as separate processes.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use mol::OptionName;

use super::{TestEnv, lock, required_var};

/// How a program is linked with the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Link {
    Static,
    Shared,
}

pub const BOTH: [Link; 2] = [Link::Static, Link::Shared];

pub fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The Rust target triple of this machine.
pub fn host() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

/// This machine's platform in the names of files and packages.
pub fn platform() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "linux_amd64",
        _ => "linux_arm64",
    }
}

/// This machine's C or C++ compiler, or the one of `MOL_TEST_CC` for the programs of another target (tests/shipped).
pub fn compiler(cpp: bool) -> Command {
    if let [program, arguments @ ..] = &words("MOL_TEST_CC")[..] {
        let mut command = Command::new(program);
        command.args(arguments);
        return command;
    }
    let host = host();
    cc::Build::new()
        .cpp(cpp)
        .target(&host)
        .host(&host)
        .opt_level(0)
        .cargo_metadata(false)
        .get_compiler()
        .to_command()
}

/// The same compiler with this C or C++ standard, all warnings as errors, and include/mol.h.
pub fn strict_compiler(cpp: bool, standard: &str) -> Command {
    let mut command = compiler(cpp);
    command
        .arg(format!("-std={standard}"))
        .args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I"])
        .arg(source("include"));
    command
}

/// Runs a command that must succeed.
pub fn succeed(command: &mut Command) -> Output {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        text(&output)
    );
    output
}

/// The standard output and the standard error of a process.
pub fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    String::from_utf8_lossy(out).into_owned() + &String::from_utf8_lossy(err)
}

/// The program NAME.c of tests/c or examples/c, linked with the release library, compiled once.
pub fn program(name: &'static str, link: Link) -> PathBuf {
    compiled(name, link, "MOL_TEST_LIB_DIR")
}

/// The same, linked with the library with failpoints, which `FAILPOINTS` sets (src/testing/point.rs).
pub fn program_with_points(name: &'static str, link: Link) -> PathBuf {
    compiled(name, link, "MOL_TEST_FAILPOINTS_LIB_DIR")
}

fn compiled(name: &'static str, link: Link, libraries: &'static str) -> PathBuf {
    type Programs = HashMap<(&'static str, Link, &'static str), PathBuf>;
    static PROGRAMS: Mutex<Option<Programs>> = Mutex::new(None);
    lock(&PROGRAMS)
        .get_or_insert_default()
        .entry((name, link, libraries))
        .or_insert_with(|| compile(name, link, libraries))
        .clone()
}

fn compile(name: &str, link: Link, libraries: &str) -> PathBuf {
    let platform = std::env::var("MOL_TEST_PLATFORM").unwrap_or_default();
    let file = format!("{name}-{link:?}-{libraries}{platform}");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(file);
    let libraries = PathBuf::from(required_var(libraries));
    let mut command = strict_compiler(false, "c11");
    command
        .args(words("MOL_TEST_CFLAGS"))
        .arg(code_of(name))
        .arg("-o")
        .arg(&program);
    match link {
        // There is no shared library for musl.
        Link::Shared if !platform.starts_with("musl_") => {
            let installed = installed(&libraries, &program.with_extension("lib"));
            command
                .arg(libraries.join("libmol.so"))
                .arg(format!("-Wl,-rpath,{}", installed.display()))
        }
        Link::Shared | Link::Static => command
            .arg(libraries.join("libmol.a"))
            .args(native_libraries()),
    };
    succeed(&mut command);
    program
}

fn code_of(name: &str) -> PathBuf {
    let example = source(&format!("examples/c/{name}.c"));
    match example.exists() {
        true => example,
        false => source(&format!("tests/c/{name}.c")),
    }
}

/// Links the shared library of `libraries` into `folder` under its soname, as `make install` does.
pub fn installed(libraries: &Path, folder: &Path) -> PathBuf {
    let place = folder.join(soname());
    std::fs::create_dir_all(folder).unwrap();
    let _ = std::fs::remove_file(&place);
    symlink(libraries.join("libmol.so"), place).unwrap();
    folder.to_owned()
}

/// The soname of the shared library.
pub fn soname() -> String {
    let header = std::fs::read_to_string(source("include/mol.h")).unwrap();
    let version = header
        .lines()
        .find_map(|line| line.strip_prefix("#define MOL_ABI_VERSION "));
    format!("libmol.so.{}", version.unwrap())
}

/// The linker flags for libmol.a: the list that `make generate` took from the Rust compiler, for this machine or for
/// `MOL_TEST_PLATFORM`.
pub fn native_libraries() -> Vec<String> {
    let platform = std::env::var("MOL_TEST_PLATFORM").unwrap_or_else(|_| platform().to_owned());
    let file = format!("go/mol/link_{platform}.go");
    let text = std::fs::read_to_string(source(&file)).unwrap();
    let flags = text
        .lines()
        .find_map(|line| {
            line.split_once(".a ")?
                .0
                .contains("#cgo")
                .then_some(line.split_once(".a ")?.1)
        })
        .unwrap_or_else(|| panic!("{file} has no line of linker flags"));
    flags.split_whitespace().map(str::to_owned).collect()
}

/// The value in the output line that begins with this name.
pub fn field(output: &Output, name: &str) -> String {
    let text = text(output);
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value
        .unwrap_or_else(|| panic!("no {name} in:\n{text}"))
        .to_owned()
}

/// A shell script in a mount namespace where the cache is a separate disk: a tmpfs with these options, which
/// disappears with the process, however that ends. In the script `"$@"` is the program, and the working
/// directory is the cache.
pub fn with_a_disk(env: &TestEnv, options: &str, script: &str, program: &Path) -> Command {
    let mount = "mount -t tmpfs -o \"$0\" none \"$1\"";
    with_mount(env, mount, options.as_ref(), script, program)
}

/// Like [`with_a_disk`], for another disk: the script `mount` gets `disk` as `$0` and mounts it at `$1`.
pub fn with_mount(
    env: &TestEnv,
    mount: &str,
    disk: &OsStr,
    script: &str,
    program: &Path,
) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "--", "sh", "-ec"])
        .arg(format!(
            "mkdir -p \"$1\"; {mount}; cd \"$1\"; shift; {script}"
        ))
        .args([disk, env.cache().as_ref()])
        .arg(program)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default());
    for (name, value) in env.values() {
        command.env(name.name(), value);
    }
    command
}

/// The words of a variable of tests/memcheck or tests/shipped: the compiler, extra compiler flags, or a command prefix for
/// programs.
pub fn words(variable: &str) -> Vec<String> {
    let text = std::env::var(variable).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// A process with an empty environment.
pub fn process(program: &Path) -> Command {
    let mut words = words("MOL_TEST_UNDER").into_iter();
    let mut command = match words.next() {
        Some(tool) => {
            let mut command = Command::new(tool);
            command.args(words).arg(program);
            command
        }
        None => Command::new(program),
    };
    command.env_clear();
    for variable in ["ASAN_OPTIONS", "LSAN_OPTIONS"] {
        command.envs(std::env::var_os(variable).map(|value| (variable, value)));
    }
    command
}

/// A process whose environment contains only the options of the test environment.
pub fn command(env: &TestEnv, program: &Path) -> Command {
    let mut command = process(program);
    command.current_dir(env.scratch());
    for (name, value) in env.values() {
        command.env(name.name(), value);
    }
    command
}

/// Runs a program under strace. Returns its output, and the trace of these system calls of all its threads
/// and children.
pub fn under_strace(
    env: &TestEnv,
    program: &Command,
    calls: &str,
    how: &[&str],
) -> (Output, String) {
    let log = env.scratch().join("trace");
    let output = Command::new("/usr/bin/strace")
        .args(["-f", "--seccomp-bpf"])
        .args(how)
        .args(["-e", &format!("trace={calls}"), "-o"])
        .arg(&log)
        .arg(program.get_program())
        .args(program.get_args())
        .env_clear()
        .envs(
            program
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        .current_dir(env.scratch())
        .output()
        .expect("strace is missing: run `make test`");
    (output, std::fs::read_to_string(log).unwrap())
}

/// The resources that one call used in a separate process.
#[derive(Debug)]
pub struct Peak {
    pub status: String,
    pub message: String,
    /// The growth of the peak memory, in MiB.
    pub growth_mib: u64,
    /// The sockets, and the files in the cache, that are still open after the client is closed.
    pub sockets: u32,
    pub files: u32,
}

/// Builds the image of `hermes` in a separate process and measures it.
pub fn peak(env: &TestEnv, more: &[(OptionName, &str)], timeout: Option<Duration>) -> Peak {
    let mut command = command(env, &program("peak", Link::Shared));
    for (name, value) in more {
        command.env(name.name(), value);
    }
    let timeout = timeout.map(|timeout| timeout.as_millis().to_string());
    let output = succeed(command.arg("hermes").args(timeout));
    let number = |name: &str| field(&output, name).parse().unwrap();
    Peak {
        status: field(&output, "status"),
        message: field(&output, "message"),
        growth_mib: u64::from(number("growth")) / 1024,
        sockets: number("sockets"),
        files: number("files"),
    }
}
