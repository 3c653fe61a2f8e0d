//! An engine whose disk is full, told as such.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokio_util::task::TaskTracker;

use crate::cache::disk;
use crate::engine::Engine;
use crate::engine::connect::endpoint::Address;
use crate::error::{Code, Error, Result};
use crate::process::outside_file::within;

/// The largest answer about the engine. One with many plugins and registries sends some ten KiB.
pub(in crate::engine) const MAX_INFO: usize = 1 << 20;

/// What the kernel says (ENOSPC, EDQUOT), in the words that reach us through the engine and through programs.
const SHORTAGES: [&str; 2] = ["no space left on device", "disk quota exceeded"];

impl Engine {
    /// If a build has failed for want of room, says where, and how much there is. A program of the template may
    /// say so too, about any disk; that alone is worth no more than a hint.
    pub(super) async fn or_full(&self, mut error: Error, reason: &str) -> Error {
        let tail = error.build.as_ref().map_or("", |build| &build.log_tail);
        let (by_engine, by_program) = (is_engines_shortage(reason), mentions_shortage(tail));
        if error.code != Code::BuildFailed || !(by_engine || by_program) {
            return error;
        }
        let folder = self.data_folder().await.ok().flatten();
        let free = match &folder {
            Some(folder) => self.free(folder).await,
            None => None,
        };
        if !by_engine && free.is_none() {
            error.hint = format!(
                "{}; if the disk of the engine is full (docker system df), free some space there",
                error.hint
            )
            .into();
            return error;
        }
        let place = folder.map_or_else(String::new, |folder| {
            let free = free.map_or_else(String::new, |free| format!(" ({free})"));
            format!(", at {}{free}", folder.display())
        });
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

/// Is it the reason that the engine itself gives? The cause comes last; containerd adds its class.
fn is_engines_shortage(reason: &str) -> bool {
    let reason = reason.trim_end().to_lowercase();
    let reason = reason.strip_suffix(": unknown").unwrap_or(&reason);
    SHORTAGES.iter().any(|words| {
        reason
            .strip_suffix(words)
            .is_some_and(|rest| rest.ends_with(": "))
    })
}

fn mentions_shortage(output: &str) -> bool {
    let output = output.to_lowercase();
    SHORTAGES.iter().any(|words| output.contains(words))
}

#[cfg(test)]
mod tests {
    use crate::engine::build::full::{is_engines_shortage, mentions_shortage};

    #[test]
    fn the_engines_own_reason_ends_with_the_shortage() {
        for text in [
            "failed to copy files: copy file range failed: no space left on device",
            "Error processing tar file(exit status 1): write /big: no space left on device",
            "write /x: disk quota exceeded",
            "failed to create shim task: mkdir /run/x: no space left on device: unknown\n",
        ] {
            assert!(is_engines_shortage(text), "{text}");
        }
        for text in [
            "process \"/bin/sh -c echo x: no space left on device\" did not complete successfully: exit code: 1",
            "failed to compute cache key: \"/no space left on device\" not found",
        ] {
            assert!(!is_engines_shortage(text), "{text}");
        }
    }

    #[test]
    fn a_program_says_it_in_its_own_words() {
        assert!(mentions_shortage(
            "cp: write error: No space left on device\nmake: *** [all] Error 1"
        ));
        assert!(!mentions_shortage("there is some space left on the device"));
    }
}
