//! Checks whether the engine can build for a platform that is not its own.
//!
//! Only BuildKit knows what its machine can run: it tests which emulations the kernel has. It reports them over
//! `/grpc`, also if another builder is used. Podman does not report them: there the first program of the build
//! fails.

use bollard_buildkit_proto::moby::buildkit::v1::{ListWorkersRequest, ListWorkersResponse};

use super::{BUILDKIT_API, Builder, CALL_TIMEOUT, Engine};
use crate::engine::connect::grpc::Grpc;
use crate::engine::connect::request::{post, upgrade};
use crate::error::{Code, Error, Result};
use crate::event::{Event, Sink};
use crate::names::platform::Platform;

impl Engine {
    /// Warns if the platform is emulated.
    ///
    /// # Errors
    ///
    /// [`Code::PlatformUnsupported`] if the engine cannot run it.
    pub(crate) async fn check_platform(&self, platform: &Platform, emit: &Sink) -> Result<()> {
        let native = self.native_platform().ok();
        let native = native.as_ref();
        if native.is_some_and(|native| native.os_arch() == platform.os_arch()) {
            return Ok(());
        }
        let Some(platforms) = self.platforms().await else {
            return Ok(());
        };
        let endpoint = &self.endpoint;
        let (os, arch) = platform.os_arch();
        let runs_on = native.map_or("an unknown platform", Platform::as_str);
        if !platforms.iter().any(|(o, a)| o == os && runs(a, arch)) {
            return Err(Error::new(
                Code::PlatformUnsupported,
                format!(
                    "the engine at {endpoint} runs {runs_on} and cannot run {platform}: there is no \
                     emulation for it"
                ),
            )
            .hint(unsupported_hint("engine", platform)));
        }
        if is_emulated(native, platform) {
            emit(Event::warning(
                format!(
                    "the engine at {endpoint} runs {runs_on} and emulates {platform}: this will be slow"
                ),
                "a first build can take ten minutes and more; MOLECULE_IMAGE_PLATFORM=native builds \
                 for the engine itself",
            ));
        }
        Ok(())
    }

    /// What the engine's machine can run, as pairs of operating system and architecture. `None` if unknown.
    async fn platforms(&self) -> Option<Vec<(String, String)>> {
        if self.api.version < BUILDKIT_API || self.builder == Builder::Buildah {
            return None;
        }
        let workers = tokio::time::timeout(CALL_TIMEOUT, self.list_workers());
        let workers = workers.await.ok()??;
        let platforms = workers
            .record
            .into_iter()
            .flat_map(|worker| worker.platforms);
        let pairs: Vec<_> = platforms.map(|p| (p.os, p.architecture)).collect();
        (!pairs.is_empty()).then_some(pairs)
    }

    /// A connection to the engine's own BuildKit. `None` on any error.
    pub(super) async fn grpc(&self) -> Option<Grpc> {
        let request = post(self.api.version, "/grpc");
        let connection = upgrade(&self.address, request).await.ok()?;
        Grpc::over(connection).await.ok()
    }

    /// `moby.buildkit.v1.Control/ListWorkers`. `None` on any error: the check is then skipped.
    async fn list_workers(&self) -> Option<ListWorkersResponse> {
        let grpc = self.grpc().await?;
        let mut client = grpc.control();
        let answer = client.list_workers(ListWorkersRequest::default()).await;
        Some(answer.ok()?.into_inner())
    }
}

/// The hint for a platform that the machine of the `engine` or `builder`, which is `noun`, cannot run. BuildKit's list
/// may be 20 seconds old (since 0.14, in Docker 27).
pub(super) fn unsupported_hint(noun: &str, platform: &Platform) -> String {
    match platform.os_arch() {
        ("linux", arch) => {
            let instead = match noun {
                "engine" => "set MOLECULE_IMAGE_PLATFORM=native".to_owned(),
                _ => format!("use a {noun} whose machine runs {platform}"),
            };
            format!(
                "register emulation on the {noun}'s machine (docker run --privileged --rm \
                 tonistiigi/binfmt --install {arch}, or the package qemu-user-static) and try again 20 seconds \
                 later, or {instead}"
            )
        }
        (os, _) => {
            format!(
                "use another {noun}, on a machine that runs {os} containers, or another MOLECULE_IMAGE_PLATFORM"
            )
        }
    }
}

/// Whether the machine is known to need emulation for a platform that it can run.
fn is_emulated(native: Option<&Platform>, platform: &Platform) -> bool {
    native.is_some_and(|native| !runs(native.os_arch().1, platform.os_arch().1))
}

/// Whether an architecture natively runs programs for another one: the same, or its 32-bit one. BuildKit may omit the
/// 32-bit one from its list (with the containerd image store), as containerd's `platforms.Only` implies it.
pub(super) fn runs(arch: &str, other: &str) -> bool {
    arch == other || matches!((arch, other), ("amd64", "386") | ("arm64", "arm"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_machine_is_not_said_to_emulate() {
        let platform = |text| Platform::parse(text).unwrap();
        let (amd64, arm64) = (platform("linux/amd64"), platform("linux/arm64"));
        assert!(is_emulated(Some(&amd64), &arm64));
        assert!(!is_emulated(Some(&amd64), &platform("linux/386")));
        assert!(!is_emulated(None, &arm64));
    }

    #[test]
    fn the_hint_names_the_machine_that_needs_emulation() {
        let platform = Platform::parse("linux/arm64").unwrap();
        let engine = unsupported_hint("engine", &platform);
        assert!(engine.contains("the engine's machine") && engine.contains("=native"));
        // `native` is the platform of the engine.
        let builder = unsupported_hint("builder", &platform);
        assert!(builder.contains("the builder's machine") && !builder.contains("native"));
    }

    #[test]
    fn an_architecture_runs_itself_and_its_32_bit_one() {
        for (arch, other) in [
            ("amd64", "amd64"),
            ("amd64", "386"),
            ("arm64", "arm"),
            ("riscv64", "riscv64"),
        ] {
            assert!(runs(arch, other), "{arch} {other}");
        }
        for (arch, other) in [
            ("386", "amd64"),
            ("arm", "arm64"),
            ("amd64", "arm"),
            ("arm64", "386"),
            ("ppc64le", "ppc64"),
        ] {
            assert!(!runs(arch, other), "{arch} {other}");
        }
    }
}
