//! The allowlist: the only names that may become part of a URL, a path or an image reference.

use std::fmt;
use std::sync::Arc;

use crate::error::{Code, Error};

/// The default allowlist, sorted.
pub const DEFAULT_RUNTIMES: [&str; 9] = [
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

/// The maximum length of a name, in bytes.
pub(crate) const MAX_NAME: usize = 64;

/// A name from an allowlist. A value of this type is always checked.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Runtime(Arc<str>);

impl Runtime {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A sorted allowlist.
#[derive(Clone, Debug)]
pub struct Runtimes(Arc<[Runtime]>);

impl Runtimes {
    /// The names must satisfy [`is_valid_name`].
    pub(crate) fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut runtimes: Vec<Runtime> =
            names.into_iter().map(|name| Runtime(name.into())).collect();
        runtimes.sort();
        Self(runtimes.into())
    }

    /// Looks up `name`. The match is exact: no trimming, no case folding.
    pub fn find(&self, name: &str) -> Option<&Runtime> {
        self.iter().find(|known| known.as_str() == name)
    }

    /// All runtimes.
    pub fn iter(&self) -> impl Iterator<Item = &Runtime> {
        self.0.iter()
    }

    /// The error for a name that is not on the list: with the nearest known name and the whole list.
    pub(crate) fn unknown(&self, name: &str) -> Error {
        let known: Vec<&str> = self.iter().map(Runtime::as_str).collect();
        let list = format!("the known runtimes are {}", known.join(", "));
        let hint = match self.nearest(name) {
            Some(nearest) => format!("did you mean {nearest}? {list}"),
            None => list,
        };
        let mut error = Error::new(
            Code::UnknownRuntime,
            format!("unknown runtime {:?}", truncated(name)),
        )
        .hint(hint);
        error.runtime = truncated(name);
        error
    }

    /// The runtime that was probably meant. Ignores case and separators, and accepts a prefix of a name, a name with a
    /// suffix, and typing errors in up to a third of the letters.
    fn nearest(&self, name: &str) -> Option<&Runtime> {
        let asked = letters_and_digits(name);
        let distance = |known: &Runtime| {
            let known = letters_and_digits(known.as_str());
            let is_prefix = known.starts_with(&asked) || asked.starts_with(&known);
            if is_prefix && asked.len() >= 3 {
                return usize::from(known != asked);
            }
            strsim::osa_distance(&known, &asked)
        };
        self.iter()
            .map(|known| (distance(known), known))
            .filter(|(distance, _)| *distance <= asked.len() / 3)
            .min_by_key(|(distance, _)| *distance)
            .map(|(_, known)| known)
    }
}

impl Default for Runtimes {
    fn default() -> Self {
        Self::new(DEFAULT_RUNTIMES)
    }
}

/// Whether the text may be the name of a runtime: `[a-z0-9][a-z0-9-]*`, at most 64 bytes, no hyphen at the end. The name
/// ends the path of an image reference, which must not end with a hyphen (distribution specification, "Pulling
/// manifests").
pub(crate) fn is_valid_name(name: &str) -> bool {
    let letter_or_digit = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(|b| letter_or_digit(b) || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// Whether `name` is on the default allowlist. The match is exact.
pub fn is_known_runtime(name: &str) -> bool {
    DEFAULT_RUNTIMES.contains(&name)
}

fn letters_and_digits(name: &str) -> String {
    name.chars()
        .filter(char::is_ascii_alphanumeric)
        .take(MAX_NAME)
        .map(|c| c.to_ascii_lowercase())
        .collect()
}

/// A name for an error message: a very long one is truncated.
fn truncated(name: &str) -> String {
    match name.char_indices().nth(MAX_NAME) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

/// A runtime of the default allowlist, for tests.
#[cfg(any(test, feature = "internals"))]
pub(crate) fn known(name: &str) -> Runtime {
    let runtimes = Runtimes::default();
    runtimes.find(name).cloned().expect("a default runtime")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_allowlist_has_nine_names_in_order() {
        assert!(DEFAULT_RUNTIMES.is_sorted());
        for name in DEFAULT_RUNTIMES {
            assert_eq!(known(name).as_str(), name);
            assert!(is_known_runtime(name));
        }
        assert!(!is_known_runtime("herme"));
    }

    #[test]
    fn an_unknown_name_is_refused_and_quoted_safely() {
        let runtimes = Runtimes::default();
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
            assert!(runtimes.find(name).is_none(), "{name:?}");
            let error = runtimes.unknown(name);
            assert_eq!(error.code, Code::UnknownRuntime, "{name:?}");
            assert!(error.message().starts_with("unknown runtime \""), "{error}");
            assert!(!error.message().contains('\n'), "{name:?}");
            assert!(error.hint.contains("gemini-cli"), "{name:?}");
        }
        let long = "x".repeat(1 << 20);
        let error = runtimes.unknown(&long);
        assert!(error.message().len() < 200);
        assert_eq!(error.runtime, format!("{}…", "x".repeat(MAX_NAME)));
        assert_eq!(runtimes.unknown("cobol").runtime, "cobol");
    }

    #[test]
    fn the_hint_starts_with_the_nearest_known_name() {
        let vectors = include_str!("../../tests/vectors/unknown_runtimes.json");
        let vectors: serde_json::Value = serde_json::from_str(vectors).unwrap();
        for case in vectors["cases"].as_array().unwrap() {
            let hint = Runtimes::default()
                .unknown(case["runtime"].as_str().unwrap())
                .hint;
            let list = "the known runtimes are autogen, claude-code, ";
            let expected = match case["nearest"].as_str().unwrap() {
                "" => list.to_owned(),
                nearest => format!("did you mean {nearest}? {list}"),
            };
            assert!(hint.starts_with(&expected), "{case}: {hint}");
        }
    }

    #[test]
    fn a_custom_list_replaces_the_default() {
        let runtimes = Runtimes::new(["zeta", "google-adk"]);
        assert!(runtimes.find("google-adk").is_some());
        assert!(runtimes.find("hermes").is_none());
        let error = runtimes.unknown("hermes");
        assert_eq!(error.hint, "the known runtimes are google-adk, zeta");
        // The same letters are nearer than a prefix.
        let runtimes = Runtimes::new(["code", "code-x"]);
        assert_eq!(runtimes.nearest("CODE_X").unwrap().as_str(), "code-x");
    }

    #[test]
    fn valid_names_fit_into_urls_paths_and_image_references() {
        for name in ["a", "9", "google-adk", "a--b", &"a".repeat(64)] {
            assert!(is_valid_name(name), "{name}");
        }
        for name in [
            "",
            "-a",
            "a-",
            "A",
            "a_b",
            "a.b",
            "a/b",
            "a b",
            "ä",
            &"a".repeat(65),
        ] {
            assert!(!is_valid_name(name), "{name}");
        }
    }
}
