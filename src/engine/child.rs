//! Programs that are started where there is no other way: credential helpers, and `ssh`.
//!
//! Through the standard library, because tokio's way installs a signal handler that Go cannot bear.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Child;

/// A child process that does not outlive its handle.
#[derive(Debug)]
pub(super) struct Reaped(pub(super) Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        // Both fail if it has ended and was waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Finds a program. The path is the one among the options: the environment is not read here.
pub(super) fn find(name: &str, path: Option<&str>) -> Option<PathBuf> {
    if name.contains('/') {
        return None;
    }
    let is_program = |file: &PathBuf| {
        std::fs::metadata(file)
            .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    std::env::split_paths(path?)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(name))
        .find(is_program)
}
