//! The other way to the same image: git's own checkout, and the builder's own program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use super::Builder;
use crate::support::child::{source, succeed};
use crate::support::given;

/// The time of every file in the checkout, in seconds since 1970: nothing else on the machine is of
/// that time.
pub const CHECKOUT_TIME: u64 = 1_100_000_000;

/// A clean checkout, as `git clone` makes it for somebody with the usual umask and no settings of
/// their own, without the repository itself.
pub fn check_out(repository: &Path, folder: &Path) {
    succeed(
        Command::new("sh")
            .args([
                "-c",
                "umask 022 && exec git clone --quiet \"file://$1\" \"$2\"",
                "sh",
            ])
            .arg(repository)
            .arg(folder)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null"),
    );
    fs::remove_dir_all(folder.join(".git")).unwrap();
    set_times(folder.to_owned());
}

fn set_times(path: PathBuf) {
    if path.symlink_metadata().unwrap().is_dir() {
        for entry in fs::read_dir(&path).unwrap() {
            set_times(entry.unwrap().path());
        }
    }
    let time = Timespec {
        tv_sec: CHECKOUT_TIME as i64,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Builds a checkout. Nothing comes from the builder's cache: it has what libmol made just before.
pub fn build(builder: Builder, engine: &str, context: &Path, image: &str, home: &Path) -> Output {
    let mut command = match builder {
        Builder::BuildKit | Builder::Classic => {
            let mut docker = Command::new(given("MOL_TEST_DOCKER"));
            let buildkit = builder == Builder::BuildKit;
            docker.args(["--host", engine, "build"]);
            docker.env("DOCKER_BUILDKIT", if buildkit { "1" } else { "0" });
            docker
        }
        // Podman as its own users have it. The file has the name that docker would look for, and the
        // image the form that Podman gives it when docker asks: its other form has no place for
        // HEALTHCHECK, SHELL and ONBUILD.
        Builder::Podman => {
            let mut podman = Command::new(source("tests/podman"));
            let folder = engine.strip_prefix("unix://").unwrap();
            podman.arg("run").arg(Path::new(folder).parent().unwrap());
            podman.args(["build", "--format=docker", "--file"]);
            podman.arg(context.join("Dockerfile"));
            podman
        }
    };
    command
        .args(["--platform=linux/amd64", "--no-cache", "--tag", image])
        .arg(context)
        .env("HOME", home)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"))
}
