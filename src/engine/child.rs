//! Programs that are started where there is no other way: credential helpers, and `ssh`.
//!
//! Through the standard library, because tokio's way installs a signal handler that Go cannot bear.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, waitpid};
use tokio_util::task::TaskTracker;

use crate::options::OptionName;
use crate::process::{executor, limits};

/// A child process that does not outlive its handle, and with it those that it has started.
#[derive(Debug)]
pub(super) struct Reaped {
    pub(super) child: Child,
    /// Counts it until its end.
    tasks: TaskTracker,
}

impl Reaped {
    /// Starts a program in a process group of its own. Helpers, and what stands in for `ssh`, are often
    /// shell scripts: ending the shell alone would leave the rest behind.
    ///
    /// It has the host's environment but for the token, which is none of its business: an ssh whose
    /// configuration says so (`SendEnv`) would carry it to another machine.
    ///
    /// Do it where it may block: a program may lie on a disk that does not answer.
    pub(super) fn spawn(command: &mut Command, tasks: &TaskTracker) -> io::Result<Self> {
        collect_late();
        let command = command
            .env_remove(OptionName::Token.name())
            .process_group(0);
        let child = executor::as_host(|| command.spawn().map_err(limits::starting))?;
        Ok(Self {
            child,
            tasks: tasks.clone(),
        })
    }
}

/// What a child reads, and the end of it that is written to. It is a socket, because that can be
/// written to without a signal when the child has gone (MSG_NOSIGNAL, which the standard library sets).
pub(super) fn input() -> io::Result<(UnixStream, std::process::Stdio)> {
    let (ours, theirs) = UnixStream::pair()?;
    Ok((ours, std::os::fd::OwnedFd::from(theirs).into()))
}

/// The child has gone, or has closed its input. With unread data there it is a reset.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

impl Drop for Reaped {
    fn drop(&mut self) {
        // Until it is waited for, no other process or group can have its id.
        if let Ok(None) = self.child.try_wait() {
            let child = Pid::from_child(&self.child);
            let _ = kill_process_group(child, Signal::KILL);
            collect(child, &self.tasks);
        }
    }
}

/// Children that were ended when no thread could be had to wait for them.
static LATE: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// How long a thread that should not wait does so all the same, where no other can be had. A killed
/// process ends within a millisecond, unless the kernel holds it.
const PATIENCE: Duration = Duration::from_millis(50);

/// Waits for a child that was killed, and not here: one that waits for a disk ends when that answers.
fn collect(child: Pid, tasks: &TaskTracker) {
    let counted = tasks.token();
    let wait = move || {
        while matches!(waitpid(Some(child), WaitOptions::empty()), Err(Errno::INTR)) {}
        drop(counted);
    };
    if executor::detach(wait).is_ok() {
        return;
    }
    let begun = std::time::Instant::now();
    while begun.elapsed() < PATIENCE {
        if has_ended(child) {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut late = LATE.lock().unwrap_or_else(PoisonError::into_inner);
    late.push(child);
}

fn collect_late() {
    let mut late = LATE.lock().unwrap_or_else(PoisonError::into_inner);
    late.retain(|child| !has_ended(*child));
}

/// It has ended, and is collected with that.
fn has_ended(child: Pid) -> bool {
    !matches!(
        waitpid(Some(child), WaitOptions::NOHANG),
        Ok(None) | Err(Errno::INTR)
    )
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
        let tasks = TaskTracker::new();
        let mut child = Reaped::spawn(&mut command, &tasks).unwrap();
        let mut output = BufReader::new(child.child.stdout.take().unwrap());
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
