//! C programs, compiled as a host's author would compile them, and run as processes of their own.

use std::collections::HashMap;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use mol::OptionName;

use super::{Bed, given, lock};

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

/// The C or C++ compiler of this machine.
pub fn compiler(cpp: bool) -> Command {
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    cc::Build::new()
        .cpp(cpp)
        .target(&host)
        .host(&host)
        .opt_level(0)
        .cargo_metadata(false)
        .get_compiler()
        .to_command()
}

/// Runs a command that must work.
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

/// What a process wrote, to both of its outputs.
pub fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    String::from_utf8_lossy(out).into_owned() + &String::from_utf8_lossy(err)
}

/// The program tests/c/NAME.c, with the library as it ships, compiled once.
pub fn program(name: &'static str, link: Link) -> PathBuf {
    made(name, link, "MOL_TEST_LIB_DIR")
}

/// The same, with the library that stops where `FAILPOINTS` says (src/testing/point.rs).
pub fn program_with_points(name: &'static str, link: Link) -> PathBuf {
    made(name, link, "MOL_TEST_FAILPOINTS_LIB_DIR")
}

fn made(name: &'static str, link: Link, libraries: &'static str) -> PathBuf {
    type Made = HashMap<(&'static str, Link, &'static str), PathBuf>;
    static MADE: Mutex<Option<Made>> = Mutex::new(None);
    lock(&MADE)
        .get_or_insert_default()
        .entry((name, link, libraries))
        .or_insert_with(|| compile(name, link, libraries))
        .clone()
}

fn compile(name: &str, link: Link, libraries: &str) -> PathBuf {
    let program =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{link:?}-{libraries}"));
    let libraries = PathBuf::from(given(libraries));
    let mut command = compiler(false);
    command
        .args(["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror"])
        .args(words("MOL_TEST_CFLAGS"))
        .arg("-I")
        .arg(source("include"))
        .arg(source(&format!("tests/c/{name}.c")))
        .arg("-o")
        .arg(&program);
    match link {
        Link::Static => command
            .arg(libraries.join("libmol.a"))
            .args(native_libraries()),
        Link::Shared => {
            let installed = installed(&libraries, &program.with_extension("lib"));
            command
                .arg(libraries.join("libmol.so"))
                .arg(format!("-Wl,-rpath,{}", installed.display()))
        }
    };
    succeed(&mut command);
    program
}

/// The shared library of `libraries` in `folder`, under the name that programs ask for, as `make install`
/// puts it.
pub fn installed(libraries: &Path, folder: &Path) -> PathBuf {
    let place = folder.join(soname());
    std::fs::create_dir_all(folder).unwrap();
    let _ = std::fs::remove_file(&place);
    symlink(libraries.join("libmol.so"), place).unwrap();
    folder.to_owned()
}

/// The name under which programs look for the shared library.
pub fn soname() -> String {
    let header = std::fs::read_to_string(source("include/mol.h")).unwrap();
    let version = header
        .lines()
        .find_map(|line| line.strip_prefix("#define MOL_ABI_VERSION "));
    format!("libmol.so.{}", version.unwrap())
}

/// What libmol.a needs: the list that `make generate` took from the Rust compiler.
fn native_libraries() -> Vec<String> {
    let file = match std::env::consts::ARCH {
        "x86_64" => "go/mol/link_linux_amd64.go",
        _ => "go/mol/link_linux_arm64.go",
    };
    let text = std::fs::read_to_string(source(file)).unwrap();
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

/// The value in the line of a program's output that begins with this name.
pub fn field(output: &Output, name: &str) -> String {
    let text = text(output);
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value
        .unwrap_or_else(|| panic!("no {name} in:\n{text}"))
        .to_owned()
}

/// A shell script in whose world, and in no other, the cache is a disk of its own: a tmpfs with these
/// options, which is gone with the process, however that ends. In the script `"$@"` is the program,
/// and the working directory is the cache.
pub fn with_a_disk(bed: &Bed, options: &str, script: &str, program: &Path) -> Command {
    let mount = "mkdir -p \"$1\"; mount -t tmpfs -o \"$0\" none \"$1\"; cd \"$1\"; shift";
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "--", "sh", "-ec"])
        .args([&format!("{mount}; {script}"), options])
        .arg(bed.cache())
        .arg(program)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default());
    for (name, value) in bed.values() {
        command.env(name.name(), value);
    }
    command
}

/// What tests/memcheck adds to the flags of the compiler, or puts in front of a program.
fn words(variable: &str) -> Vec<String> {
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

/// A process that finds its surroundings in the environment, and nothing else there.
pub fn command(bed: &Bed, program: &Path) -> Command {
    let mut command = process(program);
    command.current_dir(bed.scratch());
    for (name, value) in bed.values() {
        command.env(name.name(), value);
    }
    command
}

/// Runs a program, and gives what strace tells of these calls of all its threads and children.
pub fn under_strace(bed: &Bed, program: &Command, calls: &str, how: &[&str]) -> (Output, String) {
    let log = bed.scratch().join("trace");
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
        .current_dir(bed.scratch())
        .output()
        .expect("there is no strace: run `make test`");
    (output, std::fs::read_to_string(log).unwrap())
}

/// What one call has cost a process of its own.
#[derive(Debug)]
pub struct Peak {
    pub status: String,
    pub message: String,
    /// By how much the peak of its memory grew.
    pub growth_mib: u64,
    /// What is still open when the client is gone: connections, and files in the cache.
    pub sockets: u32,
    pub files: u32,
}

/// Makes the image of `hermes` in a process of its own.
pub fn peak(bed: &Bed, more: &[(OptionName, &str)], timeout: Option<Duration>) -> Peak {
    let mut command = command(bed, &program("peak", Link::Shared));
    for (name, value) in more {
        command.env(name.name(), value);
    }
    let timeout = timeout.map(|timeout| timeout.as_millis().to_string());
    let output = succeed(command.arg("hermes").args(timeout));
    let text = text(&output);
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in:\n{text}"))
            .trim()
            .to_owned()
    };
    let number = |name: &str| field(name).parse().unwrap();
    Peak {
        status: field("status"),
        message: field("message"),
        growth_mib: u64::from(number("growth")) / 1024,
        sockets: number("sockets"),
        files: number("files"),
    }
}
