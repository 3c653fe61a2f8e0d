//! Servers and other programs for one test.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;

use super::child::{source, succeed};
use super::{lock, wait_until};

/// A server program that ends with the test, also if the test is killed.
pub struct Daemon {
    process: Child,
    stdin: Option<ChildStdin>,
    log: PathBuf,
}

/// A shell script that kills the program as soon as the script's standard input is closed.
const KEEPER: &str = r#""$@" </dev/null & cat >/dev/null; kill $!; wait"#;

impl Daemon {
    /// Starts a program. Its output goes to the file `log`.
    pub fn start(program: &str, arguments: &[&str], log: &Path) -> Self {
        assert!(
            Path::new(program).exists(),
            "{program} is missing: run `make test`"
        );
        let output = File::create(log).unwrap();
        let mut process = Command::new("/bin/sh")
            .args(["-c", KEEPER, "keeper", program])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        Self {
            stdin: process.stdin.take(),
            process,
            log: log.to_owned(),
        }
    }

    /// The output so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap()).into_owned()
    }

    /// Waits until the output contains `before`, and returns the text after it up to the next white space or
    /// quote.
    pub fn wait_for(&self, before: &str) -> String {
        wait_until(&format!("{before:?} in {}", self.log.display()), || {
            let log = self.log();
            let (_, rest) = log.split_once(before)?;
            let end = rest.find(|c: char| c.is_whitespace() || c == '"')?;
            Some(rest[..end].to_owned())
        })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.process.wait();
    }
}

/// A Go program of this repository that answers each line with one line. Compiled once.
pub struct GoProcess {
    process: Child,
    questions: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl GoProcess {
    /// Starts a package of the module in the folder `module`.
    pub fn start(module: &str, package: &str) -> Self {
        static COMPILED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
        let path = Path::new(module).join(package);
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(path.file_name().unwrap());
        let mut compiled = lock(&COMPILED);
        if !compiled.contains(&program) {
            let mut build = Command::new("go");
            build.args(["build", "-o"]).arg(&program).arg(package);
            succeed(build.env("CGO_ENABLED", "0").current_dir(source(module)));
            compiled.insert(program.clone());
        }
        drop(compiled);
        let mut process = Command::new(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            questions: process.stdin.take(),
            answers: BufReader::new(process.stdout.take().unwrap()),
            process,
        }
    }

    pub fn ask(&mut self, line: &str) -> String {
        writeln!(self.questions.as_mut().unwrap(), "{line}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        answer
    }
}

impl Drop for GoProcess {
    fn drop(&mut self) {
        drop(self.questions.take());
        let _ = self.process.wait();
    }
}

/// Writes an executable shell script into a folder.
///
/// Another process writes it. If this process opened the file, a child that another test starts at the same
/// time could inherit the descriptor, and a file that is open for writing cannot be executed (ETXTBSY).
pub fn write_program(folder: &Path, name: &str, script: &str) -> PathBuf {
    std::fs::create_dir_all(folder).unwrap();
    let path = folder.join(name);
    let mut shell = Command::new("/bin/sh")
        .args(["-c", r#"cat >"$0" && chmod 755 "$0""#])
        .arg(&path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let text = format!("#!/bin/sh\n{script}\n");
    let mut stdin = shell.stdin.take().unwrap();
    stdin.write_all(text.as_bytes()).unwrap();
    drop(stdin);
    assert!(shell.wait().unwrap().success());
    path
}
