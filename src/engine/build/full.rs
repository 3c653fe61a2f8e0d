//! Detects that a build failed because the engine's disk is full.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokio_util::task::TaskTracker;

use crate::cache::disk;
use crate::engine::Engine;
use crate::engine::api::MAX_INFO;
use crate::engine::build::place::Place;
use crate::engine::connect::address::Address;
use crate::error::{Code, Result};
use crate::process::outside_file::within;

/// The texts of Go and of the C library for ENOSPC and EDQUOT, in lower case. The engine's API and the output of
/// programs have no error number.
const SHORTAGES: [&str; 2] = ["no space left on device", "disk quota exceeded"];

/// What to do about the engine's full disk.
pub(super) const HINT_FULL_DISK: &str = "free some space there and try again: docker system df shows the disk usage, \
    docker builder prune and docker image prune free space";

/// A disk that is full.
#[derive(Debug)]
pub(super) enum FullDisk {
    /// The engine's: its folder, and the little that is free there.
    Engine { folder: PathBuf, free: disk::Free },
    /// Perhaps the engine's: only a text says so.
    Unknown,
}

impl Place<'_> {
    /// Checks whether a build failed because of a full disk. `reason` is the builder's error, `log_tail` the output of
    /// the template's programs. Both can contain text from a Dockerfile, a registry or a server, so the engine's disk
    /// is blamed only if its free space is low. Otherwise the result is `Unknown`.
    pub(super) async fn full_disk(&self, reason: &str, log_tail: &str) -> Option<FullDisk> {
        if !mentions_shortage(reason) && !mentions_shortage(log_tail) {
            return None;
        }
        // A builder does not say where its data is.
        if self.worker.is_some() {
            return Some(FullDisk::Unknown);
        }
        let Ok(Some(folder)) = self.engine.data_folder().await else {
            return Some(FullDisk::Unknown);
        };
        let free = self.engine.free_at_if_low(&folder).await;
        Some(free.map_or(FullDisk::Unknown, |free| FullDisk::Engine { folder, free }))
    }
}

impl Engine {
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
    async fn free_at_if_low(&self, folder: &Path) -> Option<disk::Free> {
        const MUCH: u64 = 1 << 30;
        self.free_at(folder)
            .await
            .filter(|free| free.bytes < MUCH || free.out_of_inodes)
    }
}

/// Whether a text reports a full disk. A template can write the same text, so it is only a hint.
fn mentions_shortage(text: &str) -> bool {
    let text = text.to_lowercase();
    SHORTAGES.iter().any(|shortage| text.contains(shortage))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_is_found_anywhere_in_a_text() {
        for text in [
            "failed to copy files: copy file range failed: no space left on device",
            "write /x: disk quota exceeded",
            "failed to create shim task: mkdir /run/x: no space left on device: unknown\n",
            "cp: write error: No space left on device\nmake: *** [all] Error 1",
        ] {
            assert!(mentions_shortage(text), "{text}");
        }
        assert!(!mentions_shortage("there is some space left on the device"));
    }
}
