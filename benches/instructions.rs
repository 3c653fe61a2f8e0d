//! Instruction counts of the hot pure functions, measured with callgrind. scripts/instructions compares the
//! counts with the committed ones.
//!
//! The program runs the benchmark named by its argument, with an input of realistic size. Only the work within
//! [`measured`] is counted. It uses no benchmark library, whose features would be enabled in every test too.

use std::hint::black_box;

use mol::names::registry::resolve;
use mol::names::runtimes::is_known_runtime;
use mol::redact::{Masker, Secret};
use mol::testing::internals::{self, Ignores};

const TOKEN: &str = "3f9a0c5be1d24876a9b8c7d6e5f40312a1b2c3d4";

const PREFIX: &str = "https://git.moleculesai.app/molecule-ai/molecule-ai-workspace-template-";

/// A branch response of Gitea.
const RESPONSE: &[u8] = br#"{"name":"main","commit":{"id":"0f1e2d3c4b5a69788796a5b4c3d2e1f001234567","message":"Add the workspace\n","url":"https://git.moleculesai.app/molecule-ai/molecule-ai-workspace-template-claude-code/commit/0f1e2d3c4b5a69788796a5b4c3d2e1f001234567","author":{"name":"Template Author","email":"templates@example.com","username":"template-author"},"committer":{"name":"Template Author","email":"templates@example.com","username":"template-author"},"verification":{"verified":false,"reason":"gpg.error.not_signed_commit","signature":"","signer":null,"payload":""},"timestamp":"2026-01-05T09:01:00Z","added":null,"removed":null,"modified":null},"protected":false,"required_approvals":0,"enable_status_check":false,"status_check_contexts":[],"user_can_push":false,"user_can_merge":false,"effective_branch_protection_name":""}"#;

/// The benchmarks, by their names in benches/instructions.txt.
const ALL: [(&str, fn()); 10] = [
    ("branch_url", branch_url),
    ("dockerignore_ignored", || {
        dockerignore("src/agent/tools/search.pyc")
    }),
    ("dockerignore_kept", || {
        dockerignore("src/agent/tools/search.py")
    }),
    ("json_answer", json_answer),
    ("known_runtime_no", || known_runtime("no-such-runtime")),
    ("known_runtime_yes", || known_runtime("openclaw")),
    ("mask_line_with_token", || mask_line(TOKEN)),
    ("mask_line_without", || mask_line("nothing")),
    ("masker", masker),
    ("resolve", || {
        measured(|| resolve(black_box(Some("registry.example.com/workspaces"))))
    }),
];

fn main() {
    // cargo adds the argument --bench.
    let mut names = std::env::args()
        .skip(1)
        .filter(|name| !name.starts_with("--"));
    match names.next() {
        None => ALL.iter().for_each(|(name, _)| println!("{name}")),
        Some(name) => match ALL.iter().find(|(known, _)| *known == name) {
            Some((_, run)) => run(),
            None => panic!("no benchmark {name}"),
        },
    }
}

/// Runs the work twice and counts only the second run, which excludes one-time initialisation.
fn measured<T>(mut work: impl FnMut() -> T) {
    black_box(work());
    counted(&mut || {
        black_box(work());
    });
}

/// callgrind counts the instructions within this function, which it finds by its name.
#[inline(never)]
fn counted(work: &mut dyn FnMut()) {
    work();
    black_box(());
}

/// One line of build output with a secret in it.
fn mask_line(secret: &str) {
    let masker = Masker::new(&Secret::new(TOKEN));
    let line = format!(
        "#12 4.183 Collecting uvicorn[standard]==0.30.6 from https://git:{secret}@git.example.com/org/repo"
    );
    measured(|| masker.text(black_box(&line)).into_owned());
}

fn masker() {
    measured(|| Masker::new(&Secret::new(black_box(TOKEN))));
}

fn known_runtime(name: &str) {
    measured(|| is_known_runtime(black_box(name)));
}

fn branch_url() {
    measured(|| internals::branch_url(black_box(PREFIX), "claude-code", "release/1.0").is_ok());
}

fn json_answer() {
    measured(|| internals::head_sha(black_box(RESPONSE)).is_ok());
}

fn dockerignore(path: &str) {
    let text = "# what is not sent\n.git\nnode_modules\n**/*.pyc\n**/__pycache__/\n/dist/*.tar.gz\n\
                docs/**\n!docs/README.md\n*.log\n";
    let ignores = Ignores::parse(text).expect("a valid .dockerignore");
    measured(|| ignores.ignores(black_box(path)));
}
