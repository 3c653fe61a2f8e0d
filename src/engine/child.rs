//! Child processes: credential helpers and `ssh`.
//!
//! They are started with the standard library. `tokio::process` would install a SIGCHLD handler without SA_ONSTACK,
//! which a Go host does not survive.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::sync::Mutex;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitOptions, kill_process_group, waitid, waitpid,
};
use tokio_util::task::TaskTracker;

use crate::options::OptionName;
use crate::process;
use crate::process::{executor, limits};

/// A child process in its own group. Dropping it kills the group: the process and those that it has started, also if
/// the process itself has ended.
#[derive(Debug)]
pub(super) struct ChildProcess {
    pub(super) child: Child,
    /// Tracks the thread that waits for the process after it is killed.
    tasks: TaskTracker,
}

impl ChildProcess {
    /// Starts a program in its own process group. Helpers and wrappers of `ssh` are often shell scripts: killing
    /// only the shell would leave its children running.
    ///
    /// The program gets the host's environment without the token: an ssh that is configured to (`SendEnv`) would
    /// send it to another machine.
    ///
    /// Call it on a blocking thread: the program may be on a disk that hangs.
    pub(super) fn spawn(command: &mut Command, tasks: &TaskTracker) -> io::Result<Self> {
        reap_late();
        let command = command
            .env_remove(OptionName::Token.name())
            .process_group(0);
        let child = executor::with_host_signals(|| command.spawn().map_err(limits::starting))?;
        Ok(Self {
            child,
            tasks: tasks.clone(),
        })
    }

    /// The exit status, if the process has ended. The process is reaped only on drop: until then its id is not reused,
    /// so its group can be killed.
    pub(super) fn exit_status(&self) -> io::Result<Option<ExitStatus>> {
        let child = WaitId::Pid(Pid::from_child(&self.child));
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let ended = waitid(child, options)?;
        // The encoding of wait(2).
        Ok(ended.map(|ended| {
            ExitStatus::from_raw(match ended.exit_status() {
                Some(code) => (code & 0xff) << 8, // macOS gives all bits
                None => ended.terminating_signal().unwrap_or_default(),
            })
        }))
    }
}

/// A pair of sockets: one to write to, and one as the child's standard input. A write to a socket raises no SIGPIPE
/// when the child has exited (MSG_NOSIGNAL, which the standard library sets).
pub(super) fn stdin_socket() -> io::Result<(UnixStream, std::process::Stdio)> {
    let (ours, theirs) = UnixStream::pair()?;
    Ok((ours, std::os::fd::OwnedFd::from(theirs).into()))
}

/// Whether a write failed because the child has exited or closed its input (a reset, if it left data unread).
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        // An error means that something else has reaped the process, so the id may be in use again.
        if self.exit_status().is_ok() {
            let child = Pid::from_child(&self.child);
            let _ = kill_process_group(child, Signal::KILL);
            if !has_ended(child) {
                reap(child, &self.tasks);
            }
        }
    }
}

/// Killed children that could not be waited for, because no thread could be started.
static LATE: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// How long the current thread waits if no other thread can be started. A killed process normally ends within a
/// millisecond.
const WAIT_LIMIT: Duration = Duration::from_millis(50);

/// Waits for a killed child on another thread: if it is blocked on a disk, it ends only when the disk responds.
fn reap(child: Pid, tasks: &TaskTracker) {
    let counted = tasks.token();
    let wait = move || {
        while matches!(waitpid(Some(child), WaitOptions::empty()), Err(Errno::INTR)) {}
        drop(counted);
    };
    if executor::detach(Box::new(wait)).is_ok() {
        return;
    }
    let begun = std::time::Instant::now();
    while begun.elapsed() < WAIT_LIMIT {
        if has_ended(child) {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut late = process::lock(&LATE);
    late.push(child);
}

/// Reaps the children of [`LATE`] that have ended.
fn reap_late() {
    let mut late = process::lock(&LATE);
    late.retain(|child| !has_ended(*child));
}

/// Whether a child has ended. If it has, it is reaped.
fn has_ended(child: Pid) -> bool {
    !matches!(
        waitpid(Some(child), WaitOptions::NOHANG),
        Ok(None) | Err(Errno::INTR)
    )
}

/// Finds a program in `path`, which comes from the options: the environment is not read here.
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
    fn dropping_a_child_kills_its_own_children() {
        for (script, ends) in [
            ("sleep 30 & echo $!; wait", false),
            ("sleep 30 & echo $!; exit 3", true),
        ] {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", script]).stdout(Stdio::piped());
            let tasks = TaskTracker::new();
            let mut child = ChildProcess::spawn(&mut command, &tasks).unwrap();
            let mut output = BufReader::new(child.child.stdout.take().unwrap());
            let mut grandchild = String::new();
            output.read_line(&mut grandchild).unwrap();
            while ends && child.exit_status().unwrap().is_none() {
                std::thread::sleep(Duration::from_millis(10));
            }
            let code = child.exit_status().unwrap().and_then(|end| end.code());
            assert_eq!(code, ends.then_some(3));
            assert!(is_running(&grandchild));

            let since = Instant::now();
            drop(child);
            // The pipe is open until the grandchild has ended.
            assert_eq!(output.read_line(&mut String::new()).unwrap(), 0);
            assert!(since.elapsed() < Duration::from_secs(10), "{script}");
        }
    }

    fn is_running(pid: &str) -> bool {
        std::path::Path::new("/proc").join(pid.trim()).exists()
    }

    #[test]
    fn only_executables_in_the_path_are_found() {
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
