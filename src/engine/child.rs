//! Programs that are started where there is no other way: credential helpers, and `ssh`.
//!
//! Through the standard library, because tokio's way installs a signal handler that Go cannot bear.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::options::OptionName;

/// A child process that does not outlive its handle, and with it those that it has started.
#[derive(Debug)]
pub(super) struct Reaped(pub(super) Child);

impl Reaped {
    /// Starts a program in a process group of its own. Helpers, and what stands in for `ssh`, are often
    /// shell scripts: ending the shell alone would leave the rest behind.
    ///
    /// It has the host's environment but for the token, which is none of its business: an ssh whose
    /// configuration says so (`SendEnv`) would carry it to another machine.
    pub(super) fn spawn(command: &mut Command) -> io::Result<Self> {
        let command = command.env_remove(OptionName::Token.env());
        command.process_group(0).spawn().map(Self)
    }
}

impl Drop for Reaped {
    fn drop(&mut self) {
        // Until it is waited for, no other process or group can have its id.
        if let Ok(None) = self.0.try_wait() {
            let _ = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
            let _ = self.0.wait();
        }
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

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn what_a_child_has_started_ends_with_it() {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "sleep 30 & echo $!; wait"])
            .stdout(Stdio::piped());
        let mut child = Reaped::spawn(&mut command).unwrap();
        let mut output = BufReader::new(child.0.stdout.take().unwrap());
        let mut grandchild = String::new();
        output.read_line(&mut grandchild).unwrap();
        assert!(is_there(&grandchild));

        let since = Instant::now();
        drop(child);
        // It holds the pipe until it has ended.
        assert_eq!(output.read_line(&mut String::new()).unwrap(), 0);
        assert!(since.elapsed() < Duration::from_secs(10));
    }

    fn is_there(pid: &str) -> bool {
        std::path::Path::new("/proc").join(pid.trim()).exists()
    }

    #[test]
    fn only_programs_in_folders_of_the_path_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, mode| {
            let path = dir.path().join(name);
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            path
        };
        let program = file("program", 0o755);
        file("text", 0o644);
        std::fs::create_dir(dir.path().join("folder")).unwrap();
        let path = format!("relative::/nowhere:{}", dir.path().display());
        assert_eq!(find("program", Some(&path)), Some(program));
        for name in ["text", "folder", "nothing", "", "../program", "/bin/sh"] {
            assert_eq!(find(name, Some(&path)), None, "{name}");
        }
        assert_eq!(find("program", None), None);
    }
}
