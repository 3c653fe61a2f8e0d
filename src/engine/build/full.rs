//! Detects that a build failed because the engine's disk is full.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokio_util::task::TaskTracker;

use crate::cache::disk;
use crate::engine::Engine;
use crate::engine::connect::endpoint::Address;
use crate::error::{Code, Result};
use crate::process::outside_file::within;

/// The largest answer of `/info`, in bytes. With many plugins and registries it has some ten KiB.
pub(in crate::engine) const MAX_INFO: usize = 1 << 20;

/// The kernel's texts for ENOSPC and EDQUOT. The engine's API and the output of programs have no error number.
const SHORTAGES: [&str; 2] = ["no space left on device", "disk quota exceeded"];

/// A disk that is full.
#[derive(Debug)]
pub(super) enum FullDisk {
    /// The engine's. Its folder and what is free there, if they are known.
    Engine {
        folder: Option<PathBuf>,
        free: Option<disk::Free>,
    },
    /// Some disk: a program of the template reported it.
    Unknown,
}

impl Engine {
    /// Checks whether a build failed because of a full disk. `reason` is the builder's error. `log_tail` is the
    /// output of the template's programs, which can report a full disk of any kind: that counts only if the
    /// engine's disk has little space left.
    pub(super) async fn full_disk(&self, reason: &str, log_tail: &str) -> Option<FullDisk> {
        let by_engine = is_engine_shortage(reason);
        if !by_engine && !mentions_shortage(log_tail) {
            return None;
        }
        let folder = self.data_folder().await.ok().flatten();
        let free = match &folder {
            Some(folder) => self.little_free_at(folder).await,
            None => None,
        };
        Some(match by_engine || free.is_some() {
            true => FullDisk::Engine { folder, free },
            false => FullDisk::Unknown,
        })
    }

    /// The folder with the engine's images, if the engine reports it.
    pub(crate) async fn data_folder(&self) -> Result<Option<PathBuf>> {
        #[derive(Deserialize)]
        struct Info {
            #[serde(rename = "DockerRootDir")]
            folder: Option<String>,
        }
        let info = self.api.get::<Info>("/info", MAX_INFO);
        let folder = self.call(|| info).await?.folder;
        Ok(folder
            .filter(|folder| !folder.is_empty())
            .map(PathBuf::from))
    }

    /// The free space of the engine's folder, if that is on this machine.
    pub(crate) async fn free_at(&self, folder: &Path) -> Option<disk::Free> {
        if !matches!(self.address, Address::Unix(_)) {
            return None;
        }
        let (what, folder) = (folder.display().to_string(), folder.to_owned());
        let free = move || Ok(folder.is_dir().then(|| disk::free(&folder)).flatten());
        // The engine chose the folder, and its disk may hang.
        let tasks = TaskTracker::new();
        let free = within(&tasks, Code::EngineUnreachable, &what, free).await;
        free.ok().flatten()
    }

    /// Like [`Self::free_at`], but ignores a disk with over 1 GiB free: the engine then runs in a VM, and the
    /// path is another disk here.
    async fn little_free_at(&self, folder: &Path) -> Option<disk::Free> {
        const MUCH: u64 = 1 << 30;
        self.free_at(folder)
            .await
            .filter(|free| free.bytes < MUCH || free.out_of_inodes)
    }
}

/// Whether the builder's own error is a full disk. Only the text tells; the cause is at its end, where a failed
/// command has its exit code, so a template cannot write there. containerd appends the error class.
fn is_engine_shortage(reason: &str) -> bool {
    let reason = reason.trim_end().to_lowercase();
    let reason = reason.strip_suffix(": unknown").unwrap_or(&reason);
    SHORTAGES.iter().any(|text| {
        reason
            .strip_suffix(text)
            .is_some_and(|rest| rest.ends_with(": "))
    })
}

/// Whether a program reported a full disk. A template can write the same text, so it is only a hint.
fn mentions_shortage(output: &str) -> bool {
    let output = output.to_lowercase();
    SHORTAGES.iter().any(|text| output.contains(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engines_error_ends_with_the_shortage() {
        for text in [
            "failed to copy files: copy file range failed: no space left on device",
            "Error processing tar file(exit status 1): write /big: no space left on device",
            "write /x: disk quota exceeded",
            "failed to create shim task: mkdir /run/x: no space left on device: unknown\n",
        ] {
            assert!(is_engine_shortage(text), "{text}");
        }
        for text in [
            "process \"/bin/sh -c echo x: no space left on device\" did not complete successfully: exit code: 1",
            "failed to compute cache key: \"/no space left on device\" not found",
        ] {
            assert!(!is_engine_shortage(text), "{text}");
        }
    }

    #[test]
    fn a_shortage_is_found_anywhere_in_the_output_of_a_program() {
        assert!(mentions_shortage(
            "cp: write error: No space left on device\nmake: *** [all] Error 1"
        ));
        assert!(!mentions_shortage("there is some space left on the device"));
    }
}
