//! An engine whose disk is full, told as such.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokio_util::task::TaskTracker;

use super::Engine;
use super::endpoint::Address;
use crate::disk;
use crate::error::{Code, Error, Result};
use crate::outside_file::within;

/// The largest answer about the engine. One with many plugins and registries sends some ten KiB.
pub(super) const MAX_INFO: usize = 1 << 20;

/// What the kernel says (ENOSPC, EDQUOT), in the words that reach us through the engine.
const SHORTAGES: [&str; 2] = ["no space left on device", "disk quota exceeded"];

impl Engine {
    /// If a build has failed for want of room, says where, and how much there is.
    pub(super) async fn or_full(&self, mut error: Error) -> Error {
        let tail = error.build.as_ref().map_or("", |build| &build.log_tail);
        let full = [&error.message, tail].into_iter().any(is_shortage);
        if error.code != Code::BuildFailed || !full {
            return error;
        }
        let folder = self.data_folder().await.ok().flatten();
        let place = match folder {
            None => String::new(),
            Some(folder) => {
                let free = self.free(&folder).await;
                let free = free.map_or_else(String::new, |free| format!(" ({free})"));
                format!(", at {}{free}", folder.display())
            }
        };
        let endpoint = &self.endpoint;
        error.message = format!(
            "{}; there is no room left on the disk of the engine at {endpoint}{place}",
            error.message
        );
        error.hint = "free some space there and try again: docker system df shows what takes it, \
                      docker builder prune and docker image prune give it back"
            .into();
        error
    }

    /// Where the engine keeps its images, if it says.
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

    /// What is free in the engine's folder, if that is on this machine.
    pub(crate) async fn free_at(&self, folder: &Path) -> Option<disk::Free> {
        if !matches!(self.address, Address::Unix(_)) {
            return None;
        }
        let (what, folder) = (folder.display().to_string(), folder.to_owned());
        let free = move || Ok(folder.is_dir().then(|| disk::free(&folder)).flatten());
        // The folder is the engine's word: its disk may hang.
        let tasks = TaskTracker::new();
        let free = within(&tasks, Code::EngineUnreachable, &what, free).await;
        free.ok().flatten()
    }

    /// The same. A disk with much room is not the one that ran full: an engine in a virtual machine has
    /// its folder there.
    async fn free(&self, folder: &Path) -> Option<disk::Free> {
        const MUCH: u64 = 1 << 30;
        self.free_at(folder)
            .await
            .filter(|free| free.bytes < MUCH || free.out_of_inodes)
    }
}

fn is_shortage(text: &str) -> bool {
    let text = text.to_lowercase();
    SHORTAGES.iter().any(|words| text.contains(words))
}

#[cfg(test)]
mod tests {
    use super::is_shortage;

    #[test]
    fn a_shortage_is_known_in_every_builders_words() {
        for text in [
            "failed to copy files: copy file range failed: no space left on device",
            "Error processing tar file(exit status 1): write /big: no space left on device",
            "cp: write error: No space left on device",
            "write /x: disk quota exceeded",
        ] {
            assert!(is_shortage(text), "{text}");
        }
        assert!(!is_shortage("there is some space left on the device"));
    }
}
