//! A registry, public or with a login: the one of the distribution project, on loopback, where engines use plain HTTP
//! by default.

use std::path::{Path, PathBuf};

use bollard::auth::DockerCredentials;
use bollard::models::ContainerConfig;
use bollard::query_parameters::{
    CommitContainerOptionsBuilder, PushImageOptionsBuilder, UploadToContainerOptionsBuilder,
};
use futures_util::TryStreamExt;

use super::daemon::Daemon;
use super::engine::{BUSYBOX, Engine};
use super::proxy::{Handling, Proxy};
use super::{block_on, unique};

pub const USER: &str = "libmol";
pub const PASSWORD: &str = "hunter2-of-the-registry";

/// `htpasswd -nbB -C 4 libmol hunter2-of-the-registry`
const HTPASSWD: &str = "libmol:$2b$04$libmolLibmolLibmolLibeCquR.qTVFDhntk2yT/W8sz80hByUO3e\n";

pub struct Registry {
    /// `127.0.0.1:PORT`
    pub host: String,
    /// Where it stores its data.
    data: PathBuf,
    _daemon: Daemon,
}

impl Registry {
    /// Starts a registry that requires a login, and stores its data in `folder`.
    pub fn start(folder: &Path) -> Self {
        let passwords = folder.join("htpasswd");
        std::fs::write(&passwords, HTPASSWD).unwrap();
        let passwords = passwords.display();
        let auth = format!("auth: {{ htpasswd: {{ realm: libmol, path: {passwords} }} }}\n");
        Self::with(folder, &auth)
    }

    /// Starts a registry without logins, and stores its data in `folder`.
    pub fn public(folder: &Path) -> Self {
        Self::with(folder, "")
    }

    fn with(folder: &Path, auth: &str) -> Self {
        let config = folder.join("registry.yml");
        let text = format!(
            "version: 0.1\n\
             storage: {{ filesystem: {{ rootdirectory: {} }} }}\n\
             http: {{ addr: '127.0.0.1:0' }}\n\
             {auth}",
            folder.join("registry").display()
        );
        std::fs::write(&config, text).unwrap();
        let daemon = Daemon::start(
            "/usr/bin/docker-registry",
            &["serve", config.to_str().unwrap()],
            &folder.join("registry.log"),
        );
        let host = daemon.wait_for("listening on ");
        Self {
            host,
            data: folder.join("registry/docker/registry/v2"),
            _daemon: daemon,
        }
    }

    /// A proxy that applies `handling` to downloads of the repository's layers and passes all other requests. Layers
    /// that the repository `except` has too are also passed.
    pub fn with_layers(&self, repository: &str, except: Option<&str>, handling: Handling) -> Proxy {
        let repositories = self.data.join("repositories");
        let passed = except.map(|name| repositories.join(name).join("_layers/sha256"));
        let blobs = self.data.join("blobs/sha256");
        let prefix = format!("GET /v2/{repository}/blobs/sha256:");
        Proxy::before_registry(&self.host, move |request| {
            let Some(rest) = request.strip_prefix(&prefix) else {
                return Handling::Pass;
            };
            let digest = &rest[..64];
            let blob = std::fs::read(blobs.join(&digest[..2]).join(digest).join("data"));
            let is_json = blob.is_ok_and(|data| data.starts_with(b"{"));
            let is_passed = (passed.as_ref()).is_some_and(|layers| layers.join(digest).exists());
            match is_json || is_passed {
                true => Handling::Pass,
                false => handling.clone(),
            }
        })
    }

    /// Puts an image into the registry, and only there: busybox with a unique word in the file `/base`.
    /// Returns the reference and the word.
    pub fn publish(&self, name: &str) -> (String, String) {
        self.publish_with(name, &[])
    }

    /// The same, with a second file `/noise` of these bytes.
    pub fn publish_with(&self, name: &str, noise: &[u8]) -> (String, String) {
        let (word, host) = (unique(), &self.host);
        let (repository, reference) = (format!("{host}/{name}"), format!("{host}/{name}:1"));
        let engine = Engine::of_the_tests();
        let docker = &engine.docker;
        let container = format!("libmol-test-{word}");
        engine.create_container(&container, BUSYBOX);
        block_on(async {
            let options = UploadToContainerOptionsBuilder::new().path("/");
            let file =
                bollard::body_full(archive(&[("base", word.as_bytes()), ("noise", noise)]).into());
            docker
                .upload_to_container(&container, Some(options.build()), file)
                .await
                .unwrap();
            let options = CommitContainerOptionsBuilder::new()
                .container(&container)
                .repo(&repository)
                .tag("1");
            docker
                .commit_container(options.build(), ContainerConfig::default())
                .await
                .unwrap();
            let login = DockerCredentials {
                username: Some(USER.to_owned()),
                password: Some(PASSWORD.to_owned()),
                ..Default::default()
            };
            let options = PushImageOptionsBuilder::new().tag("1").build();
            docker
                .push_image(&repository, Some(options), Some(login))
                .try_collect::<Vec<_>>()
                .await
                .expect("the registry must accept the image");
        });
        engine.remove_container(&container);
        engine.untag(&reference);
        assert!(engine.inspect(&reference).is_none());
        (reference, word)
    }
}

/// An archive with these files.
fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, path, *content).unwrap();
    }
    archive.into_inner().unwrap()
}
