//! Direct access to the engine, without the library, to check what it did.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use bollard::Docker;
use bollard::models::{ContainerCreateBody, ImageInspect, ImageSummary};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, CreateImageOptionsBuilder, ImportImageOptionsBuilder,
    ListImagesOptionsBuilder, RemoveImageOptionsBuilder, TagImageOptionsBuilder,
};
use futures_util::{StreamExt, TryStreamExt};
use serde_json::json;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::child::{source, succeed};
use super::git::hex;
use super::{CANCEL_LIMIT, block_on, required_var, unique, wait_until};

/// An image with a shell and the usual small programs, for templates with a RUN instruction.
pub const BUSYBOX: &str = "libmol-test/busybox:latest";

#[derive(Clone)]
pub struct Engine {
    pub url: String,
    pub(super) docker: Docker,
    /// Podman, and Docker's classic builder for `FROM scratch`, search all images for a cached parent, and
    /// fail if one disappears meanwhile. A test holds the read lock during such a build, and the removal of an image
    /// takes the write lock.
    images: Arc<RwLock<()>>,
}

/// Each builder: its name in events, its engine, and the value of `DOCKER_BUILDKIT`.
pub fn builders() -> [(&'static str, Engine, &'static str); 3] {
    [
        ("buildkit", Engine::of_the_tests(), "1"),
        ("classic", Engine::of_the_tests(), "0"),
        ("buildah", Engine::podman_of_the_tests(), "1"),
    ]
}

/// A file or link in an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub mode: u32,
    pub content: String,
    /// Where a symbolic link leads.
    pub link: Option<String>,
}

impl Engine {
    /// The private engine of the tests. Contains a busybox image.
    pub fn of_the_tests() -> Self {
        static ENGINE: LazyLock<Engine> = LazyLock::new(|| Engine::at("MOL_TEST_ENGINE"));
        ENGINE.clone()
    }

    /// The private Podman of the tests, through its Docker-compatible socket. Contains the same image.
    pub fn podman_of_the_tests() -> Self {
        static PODMAN: LazyLock<Engine> = LazyLock::new(|| Engine::at("MOL_TEST_PODMAN"));
        PODMAN.clone()
    }

    fn at(variable: &str) -> Self {
        Self::of(required_var(variable))
    }

    fn of(url: String) -> Self {
        let docker = Docker::connect_with_unix(&url, 120, bollard::API_DEFAULT_VERSION)
            .unwrap_or_else(|error| panic!("the tests' engine at {url}: {error}; run `make test`"));
        let docker = block_on(docker.negotiate_version()).unwrap();
        let engine = Self {
            url,
            docker,
            images: Arc::default(),
        };
        if engine.inspect(BUSYBOX).is_none() {
            engine.import_busybox();
        }
        engine
    }

    /// Imports a base image made of the machine's own busybox, because no registry is reachable.
    pub fn import_busybox(&self) {
        let mut archive = tar::Builder::new(Vec::new());
        let new_header = |kind, mode| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header
        };
        let mut add = |path: &str, kind, mode, data: &[u8]| {
            let mut header = new_header(kind, mode);
            header.set_size(data.len() as u64);
            archive.append_data(&mut header, path, data).unwrap();
        };
        for folder in ["bin/", "tmp/", "etc/"] {
            add(folder, tar::EntryType::Directory, 0o755, b"");
        }
        add("bin/busybox", tar::EntryType::Regular, 0o755, &busybox());
        for program in [
            "sh", "cat", "chmod", "chown", "echo", "env", "false", "head", "id", "ln", "ls",
            "mkdir", "mkfifo", "rm", "seq", "sleep", "tr", "true", "yes",
        ] {
            let mut header = new_header(tar::EntryType::Symlink, 0o777);
            header.set_size(0);
            archive
                .append_link(&mut header, format!("bin/{program}"), "busybox")
                .unwrap();
        }
        let body = bollard::body_full(archive.into_inner().unwrap().into());
        let (repo, tag) = BUSYBOX.split_once(':').unwrap();
        let options = CreateImageOptionsBuilder::new()
            .from_src("-")
            .repo(repo)
            .tag(tag)
            .changes(vec!["ENV PATH=/bin".to_owned()])
            .platform("linux/amd64")
            .build();
        block_on(
            self.docker
                .create_image(Some(options), Some(body), None)
                .try_collect::<Vec<_>>(),
        )
        .expect("the engine must import the busybox image");
    }

    /// Loads an image with one empty folder, whose configuration declares this architecture.
    pub fn load_image_for(&self, architecture: &str, reference: &str) {
        let archive = |files: &[(&str, &[u8])]| {
            let mut archive = tar::Builder::new(Vec::new());
            for (path, data) in files {
                let mut header = tar::Header::new_gnu();
                header.set_entry_type(match path.ends_with('/') {
                    true => tar::EntryType::Directory,
                    false => tar::EntryType::Regular,
                });
                header.set_mode(0o755);
                header.set_size(data.len() as u64);
                archive.append_data(&mut header, path, *data).unwrap();
            }
            archive.into_inner().unwrap()
        };
        let layer = archive(&[("empty/", b"")]);
        let id = hex(&Sha256::digest(&layer));
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": {},
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{id}")] },
        });
        let manifest = json!([{
            "Config": "config.json", "RepoTags": [reference], "Layers": ["layer.tar"],
        }]);
        let image = archive(&[
            ("config.json", config.to_string().as_bytes()),
            ("layer.tar", &layer),
            ("manifest.json", manifest.to_string().as_bytes()),
        ]);
        let options = ImportImageOptionsBuilder::new().build();
        let load = self
            .docker
            .import_image(options, bollard::body_full(image.into()), None);
        block_on(load.try_collect::<Vec<_>>()).expect("the engine must load the image");
    }

    /// Whether the engine uses the containerd image store, which behaves differently in some cases.
    pub fn has_containerd_store(&self) -> bool {
        let status = block_on(self.docker.info()).unwrap().driver_status;
        let mut words = status.into_iter().flatten().flatten();
        words.any(|word| word.starts_with("io.containerd.snapshotter"))
    }

    /// The engine's information about an image; `None` if there is no such image.
    pub fn inspect(&self, reference: &str) -> Option<ImageInspect> {
        match block_on(self.docker.inspect_image(reference)) {
            Ok(image) => Some(image),
            Err(bollard::errors::Error::DockerResponseServerError {
                status_code: 404, ..
            }) => None,
            Err(error) => panic!("{reference}: {error}"),
        }
    }

    /// The three numbers of the engine's version, without a distribution's suffix (`28.5.2+dfsg4`).
    pub fn version(&self) -> [u32; 3] {
        let version = block_on(self.docker.version()).unwrap().version.unwrap();
        let mut numbers = version.split(|c: char| !c.is_ascii_digit());
        [(); 3].map(|()| numbers.next().unwrap().parse().unwrap())
    }

    pub fn id(&self, reference: &str) -> Option<String> {
        self.inspect(reference)?.id
    }

    pub fn labels(&self, reference: &str) -> HashMap<String, String> {
        self.inspect(reference)
            .and_then(|image| image.config?.labels)
            .unwrap_or_default()
    }

    /// The history of an image, as text.
    pub fn history(&self, reference: &str) -> String {
        format!(
            "{:?}",
            block_on(self.docker.image_history(reference)).unwrap()
        )
    }

    pub fn tag(&self, image: &str, reference: &str) {
        let (repo, tag) = reference.rsplit_once(':').unwrap();
        let options = TagImageOptionsBuilder::new().repo(repo).tag(tag).build();
        block_on(self.docker.tag_image(image, Some(options))).unwrap();
    }

    /// While this lock is held, no test removes an image from this engine.
    pub fn keep_images(&self) -> RwLockReadGuard<'_, ()> {
        self.images.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// While this lock is held, no test makes a build that fails if images are removed. For tests that
    /// remove images.
    pub fn alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.images.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn create_container(&self, name: &str, image: &str) {
        let options = CreateContainerOptionsBuilder::new().name(name).build();
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            cmd: Some(vec!["never-started".to_owned()]),
            ..Default::default()
        };
        block_on(self.docker.create_container(Some(options), body)).unwrap();
    }

    pub fn remove_container(&self, name: &str) {
        block_on(self.docker.remove_container(name, None)).unwrap();
    }

    pub fn untag(&self, reference: &str) {
        self.untag_all(&[reference.to_owned()]);
    }

    /// Waits only once for the builds of other tests.
    pub fn untag_all(&self, references: &[String]) {
        let _alone = (!references.is_empty()).then(|| self.alone());
        self.untag_at_once(references);
    }

    /// For a test that holds the lock of [`Self::alone`].
    pub fn untag_at_once(&self, references: &[String]) {
        for reference in references {
            let options = RemoveImageOptionsBuilder::new().force(true).build();
            let _ = block_on(self.docker.remove_image(reference, Some(options), None));
        }
    }

    /// All references that end with a test's isolation suffix.
    pub fn references_of(&self, isolation: &str) -> Vec<String> {
        let mut references: Vec<String> = (self.images().into_iter())
            .flat_map(|image| image.repo_tags)
            .filter(|reference| reference.ends_with(&format!("--{isolation}")))
            .collect();
        references.sort();
        references
    }

    /// The images' digests in a repository of a registry.
    pub fn digests_of(&self, repository: &str) -> Vec<String> {
        (self.images().into_iter())
            .flat_map(|image| image.repo_digests)
            .filter(|digest| digest.starts_with(&format!("{repository}@")))
            .collect()
    }

    fn images(&self) -> Vec<ImageSummary> {
        let _images = self.keep_images();
        // An engine that removes an image meanwhile may fail: Podman with 500, Docker's containerd store with 404.
        let list = || {
            let options = ListImagesOptionsBuilder::new().build();
            block_on(self.docker.list_images(Some(options)))
        };
        let images = (0..10).find_map(|_| list().ok());
        images.unwrap_or_else(|| list().unwrap())
    }

    pub fn remove_all_of(&self, isolation: &str) {
        self.untag_all(&self.references_of(isolation));
    }

    /// Writes an image to an archive, as `docker save` does.
    pub fn save(&self, reference: &str, archive: &Path) {
        let mut file = File::create(archive).unwrap();
        block_on(async {
            let mut chunks = std::pin::pin!(self.docker.export_image(reference));
            while let Some(chunk) = chunks.next().await {
                file.write_all(&chunk.unwrap()).unwrap();
            }
        });
    }

    /// The files and links in an image, without those that the engine adds to every container.
    pub fn files(&self, reference: &str) -> BTreeMap<String, Entry> {
        let name = format!("libmol-test-{}", unique());
        self.create_container(&name, reference);
        let chunks: Vec<_> = block_on(self.docker.export_container(&name).collect());
        self.remove_container(&name);
        let bytes: Vec<u8> = chunks.into_iter().flat_map(Result::unwrap).collect();
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(&*bytes).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_str().unwrap().to_owned();
            let added = [
                "dev/",
                "proc/",
                "sys/",
                "etc/hostname",
                "etc/hosts",
                "etc/mtab",
                "etc/resolv.conf",
                ".dockerenv",
            ];
            if entry.header().entry_type().is_dir()
                || added.iter().any(|added| path.starts_with(added))
            {
                continue;
            }
            let link = entry
                .link_name()
                .unwrap()
                .map(|to| to.to_str().unwrap().to_owned());
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(
                path,
                Entry {
                    mode: entry.header().mode().unwrap() & 0o7777,
                    content: String::from_utf8_lossy(&content).into_owned(),
                    link,
                },
            );
        }
        files
    }

    /// The text of one file in an image.
    pub fn read(&self, reference: &str, path: &str) -> String {
        self.files(reference)
            .remove(path)
            .unwrap_or_else(|| panic!("{reference} has no file {path}"))
            .content
    }
}

/// An engine for one test. It stops when it is dropped.
pub struct OwnEngine {
    pub engine: Engine,
    folder: PathBuf,
    _parent: TempDir,
}

impl OwnEngine {
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// An engine whose data disk has only this many MiB.
    pub fn small(mib: u32) -> Self {
        Self::with(&[&mib.to_string()])
    }

    fn with(arguments: &[&str]) -> Self {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("engine");
        let output = succeed(Self::command("start", &folder).args(arguments));
        let url = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        Self {
            engine: Engine::of(url),
            folder,
            _parent: parent,
        }
    }

    /// Kills the engine, as a power failure would.
    pub fn stop(&self) {
        succeed(&mut Self::command("stop", &self.folder));
    }

    /// Starts the engine again after `stop`, at the same address, without its data.
    pub fn start_again(&self) {
        succeed(&mut Self::command("start", &self.folder));
    }

    fn command(what: &str, folder: &Path) -> Command {
        let mut command = Command::new(source("scripts/engine"));
        command.arg(what).arg(folder);
        command
    }

    /// The engine's data folder, on a disk that only the engine sees.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// A program that sees the engine's disk, like a program on the machine of an ordinary engine.
    pub fn beside(&self, program: &Path) -> Command {
        let pid = std::fs::read_to_string(self.folder.join("pid")).unwrap();
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--target", pid.trim()]);
        // The engine of another distribution runs in that distribution's root (scripts/enter).
        if std::env::var_os("MOL_TEST_ENGINE_ROOT").is_some() {
            command.args(["chroot", "/mnt"]);
        }
        command.arg(program);
        command
    }
}

impl Drop for OwnEngine {
    fn drop(&mut self) {
        let _ = Self::command("stop", &self.folder).status();
    }
}

/// The machine's own busybox, a static program.
pub fn busybox() -> Vec<u8> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .find_map(|folder| std::fs::read(folder.join("busybox")).ok())
        .expect("there is no busybox: install busybox-static, or run `make test`")
}

/// A process of this machine.
pub(super) struct Process {
    pub(super) id: u32,
    pub(super) parent: u32,
    /// Its arguments, each with a NUL at its end.
    pub(super) command: String,
    /// The text of `/proc/PID/status`.
    pub(super) status: String,
}

pub(super) fn processes() -> impl Iterator<Item = Process> {
    let folders = std::fs::read_dir("/proc").unwrap().flatten();
    folders.filter_map(|folder| {
        let id = folder.file_name().to_str()?.parse().ok()?;
        let command = std::fs::read(folder.path().join("cmdline")).ok()?;
        let status = std::fs::read_to_string(folder.path().join("status")).ok()?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
        let parent = parent.trim().parse().ok()?;
        Some(Process {
            id,
            parent,
            command: String::from_utf8_lossy(&command).into_owned(),
            status,
        })
    })
}

/// Whether a process is running whose command contains this word, on this machine or in a container of an engine: the
/// PID namespaces of the engines are children of this one.
pub fn is_running(word: &str) -> bool {
    processes().any(|process| process.command.contains(word))
}

/// Waits until no such process is running.
pub fn wait_until_gone(word: &str) {
    wait_until(&format!("the end of the processes of {word}"), || {
        (!is_running(word)).then_some(())
    });
}

/// Waits until no such process is running, and checks that this took no longer since `since` than the end of a
/// cancelled call may take.
pub fn assert_gone(word: &str, since: Instant) {
    wait_until_gone(word);
    let took = since.elapsed();
    assert!(took < CANCEL_LIMIT, "it took {took:?}");
}

/// Ends the `sleep 600` of the RUN step whose command contains this word, so that the step goes on with its next
/// command. A step that must still run when a test looks sleeps for longer than any test takes.
pub fn end_sleep_of(word: &str) {
    let sleep = wait_until(&format!("the sleep of {word}"), || {
        let shells = processes().filter(|process| process.command.contains(word));
        let shells: Vec<u32> = shells.map(|process| process.id).collect();
        processes().find(|process| {
            shells.contains(&process.parent) && process.command == "sleep\x00600\x00"
        })
    });
    succeed(Command::new("kill").arg(sleep.id.to_string()));
}
