//! Whose a file or a folder is: what another user of the machine could have put there does not count.
//!
//! The rules are those of sshd's `StrictModes`, with one difference: a folder on the way may be writable
//! by its group, because many systems give every user a group of their own and a umask to match.

use std::fs::{self, File, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::error::{Code, Error, Result};

const WRITABLE_BY_OTHERS: u32 = 0o022;
const WRITABLE_BY_ALL: u32 = 0o002;

/// In a folder with this bit only its owner can rename or remove a file: `/tmp`.
const STICKY: u32 = 0o1000;

/// In a user namespace, what belongs to the machine's root shows as this user's (`nobody`).
const OVERFLOW_UID: u32 = 65534;

const OWN_CACHE: &str = "set MOLECULE_LOCAL_BUILD_CACHE to a folder of your own";

/// Checks, as far as they are there, that `folder` is this user's and nobody else can write to it, and
/// that nobody else can put another one in its place: not by a folder on the way to it, not by a link.
///
/// # Errors
///
/// [`Code::Cache`], naming the folder and what is wrong with it.
pub(crate) fn check(folder: &Path) -> Result<()> {
    check_way(folder)?;
    match fs::metadata(folder) {
        Ok(found) => check_own(folder, &found),
        // The way to it is in order, so whoever makes it now makes it there.
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

/// Checks every folder and every link that leads to `path`, from the top.
fn check_way(path: &Path) -> Result<()> {
    let mut places: Vec<&Path> = path.ancestors().collect();
    places.reverse();
    for place in places {
        let found = match fs::symlink_metadata(place) {
            Ok(found) => found,
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                return Err(refused(place, &error.to_string()));
            }
            // What is not there is made later, or cannot be, which is told then.
            Err(_) => return Ok(()),
        };
        let uid = found.uid();
        let trusted = [0, OVERFLOW_UID, me()].contains(&uid);
        if found.is_symlink() {
            if !trusted {
                let what = format!("is a link of another user (uid {uid})");
                return Err(refused(place, &what));
            }
            // Refuses a circle of links too.
            let end = fs::canonicalize(place);
            end.map_err(|error| refused(place, &format!("leads nowhere: {error}")))?;
            let target =
                fs::read_link(place).map_err(|error| refused(place, &error.to_string()))?;
            check_way(&place.parent().unwrap_or(place).join(target))?;
        } else if place != path {
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
        format!("on the way to the cache folder, {} {what}", place.display()),
    )
    .hint(format!(
        "{OWN_CACHE}, below folders that other users cannot change"
    ))
}

/// May this process make something in `folder`, or in the nearest one above it that is there?
pub(crate) fn may_write(folder: &Path) -> std::io::Result<()> {
    let there = folder.ancestors().find(|place| place.exists());
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    Ok(rustix::fs::access(there.unwrap_or(folder), access)?)
}

/// Is it a plain file of this user's, and not under another name too?
pub(crate) fn is_own_file(file: &File) -> bool {
    file.metadata()
        .is_ok_and(|found| found.is_file() && found.uid() == me() && found.nlink() <= 1)
}

/// Is there a folder of this user's? A link to one is none.
pub(crate) fn is_own_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir() && found.uid() == me())
}

fn me() -> u32 {
    rustix::process::geteuid().as_raw()
}
