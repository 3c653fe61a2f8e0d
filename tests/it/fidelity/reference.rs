//! The reference image: git's own checkout, built with the builder's own CLI.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use super::Builder;
use crate::support::builder::program;
use crate::support::child::{source, succeed};
use crate::support::{required_var, unique};

/// The time of every file in the checkout, in seconds since 1970. No other file on the machine has it.
pub const CHECKOUT_TIME: u64 = 1_100_000_000;

/// A clean checkout, as `git clone` makes it with umask 022 and without configuration files. Without the
/// `.git` folder.
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

/// Builds a checkout, without the builder's cache, which contains the results of libmol's build.
pub fn build(
    builder: Builder,
    engine: &str,
    daemon: &str,
    context: &Path,
    image: &str,
    home: &Path,
) -> Output {
    let mut command = match builder {
        Builder::BuildKit | Builder::Classic => {
            let mut docker = Command::new(required_var("MOL_TEST_DOCKER"));
            let buildkit = builder == Builder::BuildKit;
            docker.args(["--host", engine, "build"]);
            docker.env("DOCKER_BUILDKIT", if buildkit { "1" } else { "0" });
            docker
        }
        // Podman's own CLI. The Dockerfile has the name that docker looks for. The image has the docker
        // format, as through Podman's docker API: the OCI format has no HEALTHCHECK, SHELL and ONBUILD.
        Builder::Podman => {
            let mut podman = Command::new(source("scripts/podman"));
            let folder = engine.strip_prefix("unix://").unwrap();
            podman.arg("run").arg(Path::new(folder).parent().unwrap());
            podman.args(["build", "--format=docker", "--file"]);
            podman.arg(context.join("Dockerfile"));
            podman
        }
        Builder::Daemon => {
            let name = unique();
            let buildx = || {
                let mut buildx = Command::new(program("buildx"));
                buildx.env("HOME", home).env("DOCKER_HOST", engine);
                buildx
            };
            succeed(buildx().args(["create", "--name", &name, "--driver", "remote", daemon]));
            let mut buildx = buildx();
            buildx.args(["build", "--builder", &name, "--load", "--provenance=false"]);
            buildx
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
