//! The Go package's pure functions (go/mol/internal/vectororacle), which must return the same as the core.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::json;

use super::child::{source, succeed};

pub struct GoOracle {
    process: Child,
    questions: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl GoOracle {
    pub fn start() -> Self {
        static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
        let program = PROGRAM.get_or_init(|| {
            let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("vectororacle");
            let mut build = Command::new("go");
            build.args(["build", "-o"]).arg(&program);
            build.arg("./internal/vectororacle").env("CGO_ENABLED", "0");
            succeed(build.current_dir(source("go/mol")));
            program
        });
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

    /// The result of `GiteaBranchAPIURL`, or the name of its error.
    pub fn branch_url(
        &mut self,
        prefix: &str,
        runtime: &str,
        branch: &str,
    ) -> Result<String, String> {
        self.ask(&json!({ "prefix": prefix, "runtime": runtime, "branch": branch }))
    }

    /// The result of `ParseGiteaBranchHeadSha`, or the name of its error.
    pub fn head_sha(&mut self, body: &[u8]) -> Result<String, String> {
        self.ask(&json!({ "body": STANDARD.encode(body) }))
    }

    fn ask(&mut self, question: &serde_json::Value) -> Result<String, String> {
        #[derive(Deserialize)]
        struct Answer {
            value: String,
            #[serde(default)]
            error: String,
        }
        let questions = self.questions.as_mut().unwrap();
        writeln!(questions, "{question}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        match serde_json::from_str(&line).unwrap() {
            Answer { value, error } if error.is_empty() => Ok(value),
            Answer { error, .. } => Err(error),
        }
    }
}

impl Drop for GoOracle {
    fn drop(&mut self) {
        self.questions = None;
        let _ = self.process.wait();
    }
}
