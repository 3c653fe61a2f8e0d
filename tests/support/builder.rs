//! BuildKit daemons for one test.

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

use super::child::{source, succeed};
use super::engine::busybox;
use super::required_var;
use super::server::{Files, file};
use super::tls::{Certificates, Flaw};

/// A template that needs no base image: it brings its own shell. `steps` are the lines after that.
pub fn template(steps: &str) -> Files {
    let text = format!(
        "FROM scratch\nCOPY --chmod=755 busybox /bin/busybox\nSHELL [\"/bin/busybox\", \"sh\", \"-c\"]\n{steps}\n"
    );
    Files::from([
        ("Dockerfile".to_owned(), file(&text)),
        (
            "busybox".to_owned(),
            json!({ "base64": BASE64_STANDARD.encode(busybox()), "mode": "100755" }),
        ),
    ])
}

/// One of the programs that `scripts/buildkit build` builds: `buildkitd`, `buildctl` or `buildx`.
pub fn program(name: &str) -> PathBuf {
    Path::new(&required_var("MOL_TEST_BUILDKIT")).join(name)
}

/// A BuildKit daemon. It stops when it is dropped.
pub struct Builder {
    folder: PathBuf,
    address: String,
}

impl Builder {
    /// A daemon at a unix socket in `folder`, which is created. The path must not be longer than 90 bytes.
    pub fn unix(folder: &Path) -> Self {
        Self::start(folder, &[])
    }

    /// The same, with a data disk of only this many MiB. `kill` removes the data.
    pub fn small(folder: &Path, mib: u32) -> Self {
        Self::start(folder, &["--size", &mib.to_string()])
    }

    /// A daemon at a port of the loopback address, without TLS.
    pub fn tcp(folder: &Path) -> Self {
        Self::start(folder, &["--tcp"])
    }

    /// The same, with TLS. It requires client certificates of this authority.
    pub fn tls(folder: &Path, certificates: &Certificates) -> Self {
        Self::flawed_tls(folder, certificates, Flaw::None)
    }

    /// The same. The daemon's own certificate has this flaw.
    pub fn flawed_tls(folder: &Path, certificates: &Certificates, flaw: Flaw) -> Self {
        let issued = certificates.issue(flaw);
        Self::start(folder, &["--tls", issued.to_str().unwrap()])
    }

    fn start(folder: &Path, options: &[&str]) -> Self {
        required_var("MOL_TEST_BUILDKIT");
        let output = succeed(Self::command("start", folder).args(options));
        // The socket's address, and after it that of the port, if there is one.
        let addresses = String::from_utf8(output.stdout).unwrap();
        Self {
            folder: folder.to_owned(),
            address: addresses.lines().next_back().unwrap().to_owned(),
        }
    }

    fn command(what: &str, folder: &Path) -> Command {
        let mut command = Command::new(source("scripts/buildkit"));
        command.arg(what).arg(folder);
        command
    }

    /// `unix:///…/buildkitd.sock` or `tcp://127.0.0.1:PORT`
    pub fn address(&self) -> String {
        self.address.clone()
    }

    /// Kills the daemon and its build steps, as a power failure would.
    pub fn kill(&self) {
        succeed(&mut Self::command("kill", &self.folder));
    }

    /// Asks the daemon to stop (SIGTERM), as a service manager does.
    pub fn terminate(&self) {
        let pid = std::fs::read_to_string(self.folder.join("pid")).unwrap();
        succeed(Command::new("kill").args(["-TERM", pid.trim()]));
    }

    /// Starts the daemon again, at the same address and with the same data. Kills it first, if it is running.
    pub fn restart(&self) {
        succeed(&mut Self::command("restart", &self.folder));
    }
}

impl Drop for Builder {
    fn drop(&mut self) {
        let _ = Self::command("stop", &self.folder).output();
    }
}
