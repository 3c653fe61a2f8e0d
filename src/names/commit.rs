//! Commit ids, and the short forms of them.

use std::fmt;

/// A full commit id: 40 (SHA-1) or 64 (SHA-256) lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CommitSha(String);

impl CommitSha {
    /// Accepts exactly this form.
    pub fn parse(id: &str) -> Option<Self> {
        (matches!(id.len(), 40 | 64) && is_hex(id)).then(|| Self(id.to_owned()))
    }

    /// Accepts upper-case digits too, for an id that was typed or configured.
    pub fn given(id: &str) -> Option<Self> {
        Self::parse(&id.to_ascii_lowercase())
    }

    /// The whole id.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first twelve digits, as used in tags and in the names of cache folders.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

/// The commit id in a label; empty if it is not a valid one.
pub(crate) fn full_id(label: Option<&str>) -> String {
    label
        .and_then(CommitSha::parse)
        .map_or_else(String::new, |commit| commit.0)
}

impl fmt::Display for CommitSha {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether the text has the form of [`CommitSha::short`].
pub(crate) fn is_short(text: &str) -> bool {
    text.len() == 12 && is_hex(text)
}

/// Whether the text has only lower-case hexadecimal digits.
fn is_hex(text: &str) -> bool {
    text.bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_that_is_no_commit_is_empty() {
        let id = "a".repeat(40);
        assert_eq!(full_id(Some(&id)), id);
        assert_eq!(full_id(Some("abc")), "");
        assert_eq!(full_id(None), "");
    }

    #[test]
    fn commit_ids_are_full_and_lower_case() {
        assert!(CommitSha::parse(&"a".repeat(64)).is_some());
        for id in [
            "abc",
            &"A".repeat(40),
            &"g".repeat(40),
            &"a".repeat(41),
            &"a".repeat(12),
        ] {
            assert!(CommitSha::parse(id).is_none(), "{id}");
        }
    }
}
