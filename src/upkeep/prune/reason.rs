//! Why an image or a tree is kept or removed.

use std::fmt;
use std::time::Duration;

/// Why an image or a tree is kept or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// The image does not have the labels of this library.
    NotLabelled,
    /// These containers use the image.
    Containers(Vec<String>),
    /// The moving tag points to the image.
    Latest,
    /// It is among this many newest of the runtime.
    Newest(u32, String),
    /// It was built or used within this time.
    Recent(Duration),
    /// A call holds the commit's lock.
    InUse,
    /// There are this many newer ones.
    Older(u32),
    /// The image has lost the name, because there are this many newer ones, but still has this other name.
    OtherName(u32, String),
    /// The image has lost the name, because there are this many newer ones, but another image is based on it.
    Parent(u32),
    /// It disappeared after it was listed.
    AlreadyRemoved,
    /// The tree was never completed.
    Incomplete,
    /// The engine refuses to remove the image, and gives this reason.
    Refused(String),
    /// It could not be checked or removed: the message of the error.
    Failed(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotLabelled => f.write_str("not built by libmol (its labels are missing)"),
            Self::Containers(names) => match names.as_slice() {
                [first, _, ..] => write!(
                    f,
                    "the container {first} and {} more use it",
                    names.len() - 1
                ),
                names => write!(f, "the container {} uses it", names.concat()),
            },
            Self::Latest => f.write_str("the tag latest points at it"),
            Self::Newest(1, runtime) => write!(f, "the newest of {runtime}"),
            Self::Newest(keep, runtime) => write!(f, "one of the newest {keep} of {runtime}"),
            Self::Recent(time) => write!(f, "used or built within the last {}", text_of(*time)),
            Self::InUse => f.write_str("in use by a running build"),
            Self::Older(0) => f.write_str("not in use, and the number to keep is 0"),
            Self::Older(1) => f.write_str("older than the newest"),
            Self::Older(keep) => write!(f, "older than the newest {keep}"),
            Self::OtherName(keep, other) => write!(
                f,
                "{}; the image stays because it also has the name {other}",
                Self::Older(*keep)
            ),
            Self::Parent(keep) => write!(
                f,
                "{}; the image stays because another image needs it",
                Self::Older(*keep)
            ),
            Self::AlreadyRemoved => f.write_str("already removed by another program"),
            Self::Incomplete => f.write_str("incomplete, left by a process that was stopped"),
            Self::Refused(why) => write!(f, "the engine says: {why}"),
            Self::Failed(message) => f.write_str(message),
        }
    }
}

/// In whole minutes if possible, else in seconds. Without the number for one: `minute`.
fn text_of(time: Duration) -> String {
    let (number, unit) = match time.as_secs() {
        seconds if seconds >= 60 && seconds.is_multiple_of(60) => (seconds / 60, "minute"),
        seconds => (seconds, "second"),
    };
    match number {
        1 => unit.to_owned(),
        _ => format!("{number} {unit}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_shown_in_minutes_if_it_is_a_whole_number_of_them() {
        for (seconds, shown) in [
            (1, "second"),
            (2, "2 seconds"),
            (60, "minute"),
            (90, "90 seconds"),
        ] {
            assert_eq!(text_of(Duration::from_secs(seconds)), shown);
        }
    }

    #[test]
    fn one_container_is_named_and_the_others_are_counted() {
        let reason = |names: &[&str]| {
            Reason::Containers(names.iter().map(|&name| name.to_owned()).collect()).to_string()
        };
        assert_eq!(reason(&["a"]), "the container a uses it");
        assert_eq!(reason(&["a", "b"]), "the container a and 1 more use it");
    }
}
