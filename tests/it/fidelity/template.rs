//! A template of the corpus: its tree in git, and the expected outcome of its builds.

use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};

use super::Builder;
use crate::support::engine::BUSYBOX;

/// The time of the corpus' commits, in seconds since 1970. No other file on the machine has it.
pub const COMMIT_TIME: u64 = 1_000_000_000;

/// The expected outcome of a build.
#[derive(Clone, Copy, Debug)]
pub enum Outcome {
    Builds,
    /// Fails in libmol and in the reference, with this text in both error messages.
    Fails(&'static str),
    /// Same as the reference, whatever that is: only newer versions of the builder support the feature.
    VersionDependent,
    /// Differs from the reference; docs/fidelity.md gives the reason.
    Differs,
    /// [Differs](Outcome::Differs) with versions of the builder below this one, otherwise the same.
    DiffersBefore([u32; 3]),
}

pub struct Template {
    entries: Vec<Entry>,
    outcomes: [Outcome; 4],
}

struct Entry {
    path: Vec<u8>,
    mode: &'static str,
    content: Content,
}

enum Content {
    /// A line unique to the run is appended, so that no builder finds an earlier copy in its cache, with
    /// the times of that copy.
    Text(String),
    Bytes(Vec<u8>),
    /// This many zeros, and a word unique to the run at the end.
    Large(usize),
    Submodule,
}

/// A template with this Dockerfile, which every builder can build.
pub fn template(dockerfile: &str) -> Template {
    Template {
        entries: Vec::new(),
        outcomes: [Outcome::Builds; 4],
    }
    .file("Dockerfile", dockerfile)
}

impl Template {
    pub fn file(self, path: impl AsRef<[u8]>, text: &str) -> Self {
        self.entry(path, "100644", Content::Text(text.to_owned()))
    }

    pub fn script(self, path: impl AsRef<[u8]>, text: &str) -> Self {
        self.entry(path, "100755", Content::Text(text.to_owned()))
    }

    /// A file with exactly this content.
    pub fn bytes(self, path: impl AsRef<[u8]>, bytes: impl AsRef<[u8]>) -> Self {
        self.entry(path, "100644", Content::Bytes(bytes.as_ref().to_owned()))
    }

    /// Several files, with their own path as their content.
    pub fn files<const N: usize>(self, paths: [&str; N]) -> Self {
        paths.iter().fold(self, |all, path| all.file(path, path))
    }

    /// A file of `size` zeros, with a word unique to the run at the end.
    pub fn large_file(self, path: &str, size: usize) -> Self {
        self.entry(path, "100644", Content::Large(size))
    }

    pub fn link(self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.entry(path, "120000", Content::Bytes(target.as_ref().to_owned()))
    }

    /// The entry that `git submodule add` makes: a commit of another repository.
    pub fn submodule(self, path: &str) -> Self {
        self.entry(path, "160000", Content::Submodule)
    }

    fn entry(mut self, path: impl AsRef<[u8]>, mode: &'static str, content: Content) -> Self {
        self.entries.push(Entry {
            path: path.as_ref().to_owned(),
            mode,
            content,
        });
        self
    }

    /// Moves the entry at one path to another.
    pub fn rename(&mut self, from: &str, to: &str) {
        for entry in &mut self.entries {
            if entry.path == from.as_bytes() {
                entry.path = to.as_bytes().to_owned();
            }
        }
    }

    pub fn fails_on(self, builder: Builder, says: &'static str) -> Self {
        self.on(builder, Outcome::Fails(says))
    }

    pub fn on(mut self, builder: Builder, outcome: Outcome) -> Self {
        self.outcomes[builder as usize] = outcome;
        self
    }

    /// Whether a file of the template names the base image that only the engines have.
    pub fn needs_an_engine(&self) -> bool {
        let names_it = |entry: &Entry| match &entry.content {
            Content::Text(text) => text.contains(BUSYBOX),
            _ => false,
        };
        self.entries.iter().any(names_it)
    }

    pub fn outcome(&self, builder: Builder) -> Outcome {
        match (builder, self.outcomes[builder as usize]) {
            // It is a BuildKit too.
            (Builder::Daemon, Outcome::Builds) => self.outcomes[Builder::BuildKit as usize],
            (_, outcome) => outcome,
        }
    }

    /// Commits the template as the head of the repository's branch `main`. `word` is unique to the run.
    pub fn commit(&self, repository: &Path, word: &str) {
        let mut git = Command::new("git")
            .args(["-c", "core.bigFileThreshold=1m"])
            .args(["fast-import", "--quiet", "--force", "--done"])
            .current_dir(repository)
            .stdin(Stdio::piped())
            .spawn()
            .expect("git must be installed");
        let written = self.write(BufWriter::new(git.stdin.take().unwrap()), word);
        assert!(git.wait().unwrap().success(), "git fast-import failed");
        written.unwrap();
    }

    fn write(&self, mut out: BufWriter<ChildStdin>, word: &str) -> std::io::Result<()> {
        writeln!(out, "commit refs/heads/main")?;
        writeln!(
            out,
            "committer Author <author@example.com> {COMMIT_TIME} +0000"
        )?;
        writeln!(out, "data 0")?;
        writeln!(out, "deleteall")?;
        for entry in &self.entries {
            let kind = match entry.content {
                Content::Submodule => "0123456789abcdef0123456789abcdef01234567",
                _ => "inline",
            };
            write!(out, "M {} {kind} ", entry.mode)?;
            out.write_all(&quoted(&entry.path))?;
            writeln!(out)?;
            match &entry.content {
                Content::Text(text) => {
                    let text = format!("{}\n# {word}\n", text.trim_end());
                    write!(out, "data {}\n{text}", text.len())?;
                }
                Content::Bytes(bytes) => {
                    writeln!(out, "data {}", bytes.len())?;
                    out.write_all(bytes)?;
                }
                Content::Large(size) => {
                    writeln!(out, "data {}", size + word.len())?;
                    std::io::copy(
                        &mut std::io::Read::take(std::io::repeat(0), *size as u64),
                        &mut out,
                    )?;
                    write!(out, "{word}")?;
                }
                Content::Submodule => continue,
            }
            writeln!(out)?;
        }
        writeln!(out, "done")?;
        out.flush()
    }
}

/// A path quoted for git fast-import. It may contain any bytes.
fn quoted(path: &[u8]) -> Vec<u8> {
    let mut quoted = vec![b'"'];
    for byte in path {
        match byte {
            b'"' | b'\\' => quoted.extend([b'\\', *byte]),
            b'\n' => quoted.extend(b"\\n"),
            other => quoted.push(*other),
        }
    }
    quoted.push(b'"');
    quoted
}
