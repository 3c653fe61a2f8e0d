//! Who can change a file or a folder: what another user of the machine could have put there is not used.
//!
//! The rules are those of sshd's `StrictModes`, with one difference: a parent folder may be writable by its group,
//! because many systems give every user a group of their own and a umask to match.
//!
//! The crate fs-mistrust has nearly the same rules. It refuses a parent folder of the overflow user, as it is in a
//! user namespace, and decides on groups by their names, for which it reads the user database.

use std::fs::{self, File, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::error::{Code, Error, Result};

const WRITABLE_BY_OTHERS: u32 = 0o022;
const WRITABLE_BY_ALL: u32 = 0o002;

/// In a folder with this bit (`/tmp`), only a file's owner can rename or remove it.
const STICKY: u32 = 0o1000;

/// The owner (`nobody`) that a user namespace shows for files of users that it does not map, such as the machine's
/// root (user_namespaces(7)).
pub(crate) const OVERFLOW_UID: u32 = 65534;

const OWN_CACHE: &str = "set MOLECULE_LOCAL_BUILD_CACHE to a folder of your own";

/// Checks that `folder` belongs to this user, that no other user can write to it, and that no other user can replace
/// it, through a parent folder or a link in its path. What does not exist passes.
///
/// # Errors
///
/// [`Code::Cache`], naming the folder and what is wrong with it.
pub(crate) fn check(folder: &Path) -> Result<()> {
    check_parents(folder, false)?;
    match fs::metadata(folder) {
        Ok(found) => check_own(folder, &found),
        // What does not exist passes: the caller checks it again once it exists.
        Err(_) => Ok(()),
    }
}

fn check_own(folder: &Path, found: &Metadata) -> Result<()> {
    let (folder, me) = (folder.display(), me());
    if found.uid() != me {
        return Err(Error::new(
            Code::Cache,
            format!(
                "the cache folder {folder} belongs to another user (uid {}, this process is {me})",
                found.uid()
            ),
        )
        .hint(OWN_CACHE));
    }
    if found.mode() & WRITABLE_BY_OTHERS != 0 {
        return Err(Error::new(
            Code::Cache,
            format!("the cache folder {folder} can be written by other users"),
        )
        .hint(format!("run chmod go-w on it, or {OWN_CACHE}")));
    }
    Ok(())
}

/// Checks every folder and every link in `path`, from the root on: also its last component, if `whole` is set.
fn check_parents(path: &Path, whole: bool) -> Result<()> {
    let mut places: Vec<&Path> = path.ancestors().collect();
    places.reverse();
    for place in places {
        let found = match fs::symlink_metadata(place) {
            Ok(found) => found,
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                return Err(refused(place, &error.to_string()));
            }
            // It will be created later. If it cannot be, that is an error then.
            Err(_) => return Ok(()),
        };
        let uid = found.uid();
        let trusted = [0, OVERFLOW_UID, me()].contains(&uid);
        if found.is_symlink() {
            if !trusted {
                let what = format!("is a link of another user (uid {uid})");
                return Err(refused(place, &what));
            }
            // Fails for a loop of links too.
            let end = fs::canonicalize(place);
            end.map_err(|error| refused(place, &format!("cannot be resolved: {error}")))?;
            let target =
                fs::read_link(place).map_err(|error| refused(place, &error.to_string()))?;
            let target = place.parent().unwrap_or(place).join(target);
            // What a link in the middle of the path leads to is a parent folder.
            check_parents(&target, whole || place != path)?;
        } else if whole || place != path {
            if !trusted {
                let what = format!("belongs to another user (uid {uid})");
                return Err(refused(place, &what));
            }
            if found.mode() & (WRITABLE_BY_ALL | STICKY) == WRITABLE_BY_ALL {
                return Err(refused(place, "can be written by every user"));
            }
        }
    }
    Ok(())
}

fn refused(place: &Path, what: &str) -> Error {
    Error::new(
        Code::Cache,
        format!(
            "the path of the cache folder is not safe: {} {what}",
            place.display()
        ),
    )
    .hint(format!(
        "{OWN_CACHE}, below folders that other users cannot change"
    ))
}

/// Checks that this process may create files in `folder`, or in its nearest parent that exists.
pub(crate) fn may_write(folder: &Path) -> std::io::Result<()> {
    let existing = folder.ancestors().find(|place| place.exists());
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    Ok(rustix::fs::access(existing.unwrap_or(folder), access)?)
}

/// Whether it is a regular file of this user, with no other hard link.
pub(crate) fn is_own_file(file: &File) -> bool {
    file.metadata()
        .is_ok_and(|found| found.is_file() && found.uid() == me() && found.nlink() <= 1)
}

/// Whether there is a folder of this user, and not a link to one.
pub(crate) fn is_own_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir() && found.uid() == me())
}

fn me() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_link_above_the_cache_to_an_unsafe_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let mode = |path: &Path, mode| {
            fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        };
        let target = at("target");
        fs::create_dir_all(target.join("cache")).unwrap();
        mode(&target.join("cache"), 0o700);
        symlink("target", at("link")).unwrap();
        symlink("link", at("chain")).unwrap();
        symlink("link/cache", at("last")).unwrap();
        for cache in ["link/cache", "chain/cache", "chain/new", "last"] {
            for (bits, safe) in [(0o755, true), (0o777, false), (0o1777, true)] {
                mode(&target, bits);
                let checked = check(&at(cache));
                assert_eq!(checked.is_ok(), safe, "{cache} {bits:o} {checked:?}");
                if let Err(error) = checked {
                    let said = format!("{} can be written by every user", target.display());
                    assert!(error.message().contains(&said), "{cache} {error:?}");
                }
            }
        }
    }
}
