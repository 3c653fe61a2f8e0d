//! Passes the version in the template's `.runtime-version` as a build argument, if `MOLECULE_LOCAL_RUNTIME_VERSION_PIN` is set.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use crate::error::Result;
use crate::event::{Event, Sink};
use crate::process::limits;
use crate::process::outside_file;

/// The name of the file, at the root of the template.
const FILE: &str = ".runtime-version";

/// Upper bound of the file's size. A version has a few bytes; some templates add a comment below it.
const MAX_FILE: usize = 64 << 10;

/// The build argument that a template's Dockerfile may declare.
const BUILD_ARG: &str = "RUNTIME_VERSION";

/// The content of the file.
#[derive(Debug, PartialEq, Eq)]
enum Pin {
    /// The file is missing or empty.
    None,
    Version(String),
    /// Not a valid version: it is ignored.
    Invalid,
    /// Cannot be read, for this reason: it is ignored.
    Unreadable(String),
}

/// The build arguments for the template at `tree`. A file that has no valid version or cannot be read is ignored with
/// a warning.
///
/// # Errors
///
/// [`Code::ProcessLimit`](crate::Code::ProcessLimit), so that a lack of file descriptors does not lead to an image
/// without the pin.
pub(crate) fn build_args(tree: &Path, emit: &Sink) -> Result<HashMap<String, String>> {
    let (message, hint) = match read(tree)? {
        Pin::None => return Ok(HashMap::new()),
        Pin::Version(version) => return Ok(HashMap::from([(BUILD_ARG.to_owned(), version)])),
        Pin::Invalid => (
            format!(
                "the first line of the template's {FILE} is not a valid version and is ignored"
            ),
            "put a version such as 1.2.3 on its first line",
        ),
        Pin::Unreadable(why) => (
            format!("the template's {FILE} cannot be read and is ignored: {why}"),
            "make it a small file with a version such as 1.2.3 on its first line",
        ),
    };
    emit(Event::warning(message, hint));
    Ok(HashMap::new())
}

/// Reads the pin of the template at `tree`. A symbolic link is not followed, because its target may be outside the
/// template.
fn read(tree: &Path) -> Result<Pin> {
    let path = tree.join(FILE);
    if !fs::symlink_metadata(&path).is_ok_and(|found| found.is_file()) {
        return Ok(Pin::None);
    }
    match outside_file::read(&path, MAX_FILE) {
        Ok(text) => Ok(parse(&String::from_utf8_lossy(&text))),
        Err(error) => {
            limits::reached(&error).map_or_else(|| Ok(Pin::Unreadable(error.to_string())), Err)
        }
    }
}

/// Takes the first line, and removes white space, everything up to the last `@` (as in `package@1.2`) and one leading
/// `v` or `V`. A file with only white space pins nothing.
fn parse(text: &str) -> Pin {
    if text.trim().is_empty() {
        return Pin::None;
    }
    let line: String = text
        .lines()
        .next()
        .unwrap_or_default()
        .chars()
        .filter(|c| !c.is_whitespace())
        .collect();
    let version = line.rsplit('@').next().unwrap_or_default();
    let version = version.strip_prefix(['v', 'V']).unwrap_or(version);
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b".+-_!".contains(&b);
    let ok = version.len() <= 64
        && version.bytes().next().is_some_and(|b| b.is_ascii_digit())
        && version.bytes().all(allowed);
    if ok {
        Pin::Version(version.to_owned())
    } else {
        Pin::Invalid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_stripped_of_package_and_prefix() {
        for text in [
            "1.2.3",
            "v1.2.3",
            "V1.2.3",
            " 1.2.3 \nmore",
            "pkg@1.2.3",
            "@scope/pkg@v1.2.3\r\n",
        ] {
            assert_eq!(parse(text), Pin::Version("1.2.3".to_owned()), "{text:?}");
        }
        assert_eq!(parse("1.0rc1+b!2"), Pin::Version("1.0rc1+b!2".to_owned()));
    }

    #[test]
    fn an_empty_file_pins_nothing() {
        for text in ["", "\n", " \t\r\n\n"] {
            assert_eq!(parse(text), Pin::None, "{text:?}");
        }
    }

    #[test]
    fn a_file_that_is_too_large_is_unreadable_and_not_invalid() {
        let tree = tempfile::tempdir().unwrap();
        for (size, pin) in [
            (MAX_FILE, Pin::Invalid),
            (
                MAX_FILE + 1,
                Pin::Unreadable("it is larger than 64.0 KiB".to_owned()),
            ),
        ] {
            fs::write(tree.path().join(FILE), vec![b'x'; size]).unwrap();
            assert_eq!(read(tree.path()).unwrap(), pin, "{size}");
        }
    }

    #[test]
    fn an_invalid_version_is_ignored() {
        let long = "1".repeat(65);
        for text in [
            "\n1.2", "latest", "1.2;rm", "$(id)", "1.2/3", "vv1", "vV1", "v", &long,
        ] {
            assert_eq!(parse(text), Pin::Invalid, "{text:?}");
        }
    }
}
