//! The allowlist: the only names that may become part of a URL, a path or an image reference.

use crate::error::{Code, Error, Result};

/// Every known runtime, alphabetical.
pub const KNOWN_RUNTIMES: [&str; 9] = [
    "autogen",
    "claude-code",
    "codex",
    "crewai",
    "deepagents",
    "gemini-cli",
    "hermes",
    "langgraph",
    "openclaw",
];

/// A name that is on the allowlist. Having one is the proof that it was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Runtime(&'static str);

impl Runtime {
    /// Looks `name` up. The match is exact: no trimming, no case folding.
    ///
    /// # Errors
    ///
    /// [`Code::UnknownRuntime`], with the known names.
    pub fn parse(name: &str) -> Result<Self> {
        KNOWN_RUNTIMES
            .iter()
            .find(|known| **known == name)
            .map(|known| Self(known))
            .ok_or_else(|| Self::unknown(name))
    }

    /// The error for a name that is none.
    pub(crate) fn unknown(name: &str) -> Error {
        let mut error = Error::new(
            Code::UnknownRuntime,
            format!("{} is not a known runtime", quote(name)),
        )
        .hint(format!("use one of {}", KNOWN_RUNTIMES.join(", ")));
        error.runtime = shorten(name);
        error
    }

    /// The name.
    pub const fn as_str(self) -> &'static str {
        self.0
    }
}

impl std::fmt::Display for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

/// Is `name` on the allowlist, to the letter?
pub fn is_known_runtime(name: &str) -> bool {
    KNOWN_RUNTIMES.contains(&name)
}

/// A name as it may be shown: whoever sent a megabyte does not get it back.
fn shorten(name: &str) -> String {
    const SHOWN: usize = 64;
    match name.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

fn quote(name: &str) -> String {
    format!("{:?}", shorten(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nine_are_known_and_in_order() {
        assert!(KNOWN_RUNTIMES.is_sorted());
        for name in KNOWN_RUNTIMES {
            assert_eq!(Runtime::parse(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn anything_else_is_refused_and_quoted_safely() {
        for name in [
            "",
            "unknown",
            "../../../etc/passwd",
            "langgraph;rm -rf /",
            "claude-code\n",
            " langgraph",
            "CLAUDE-CODE",
            "hermes\0",
        ] {
            let error = Runtime::parse(name).unwrap_err();
            assert_eq!(error.code, Code::UnknownRuntime, "{name:?}");
            assert!(!error.message.contains('\n'), "{name:?}");
            assert!(error.hint.contains("gemini-cli"), "{name:?}");
        }
        let long = "x".repeat(1 << 20);
        assert!(Runtime::parse(&long).unwrap_err().message.len() < 200);
    }
}
