//! Where engines listen, and how each is started: what is tried if no engine is named.
//!
//! The sources are the documents of each engine. Docker Desktop, Colima, OrbStack and Rancher Desktop also create a
//! docker context; these sockets are tried when that context is not the current one. Nothing below `TMPDIR` is tried,
//! where another user could listen.

use std::path::{Path, PathBuf};

use crate::options::EngineSettings;

/// The default socket of the docker CLI.
pub(in crate::engine) const DEFAULT_SOCKET: &str = "/var/run/docker.sock";

/// A socket of an engine.
#[derive(Clone, Debug)]
pub(in crate::engine) struct KnownSocket {
    pub(in crate::engine) socket: PathBuf,
    pub(in crate::engine) engine: &'static str,
    /// The command that starts the engine.
    pub(in crate::engine) start: &'static str,
    /// A path that exists if the engine is set up.
    set_up_path: SetUpPath,
}

#[derive(Clone, Debug)]
struct SetUpPath {
    path: PathBuf,
    /// Below the home folder: the engine of this user.
    is_own: bool,
}

/// Whether an engine is set up, although it may not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SetUp {
    ForThisUser,
    OnThisMachine,
    No,
}

impl KnownSocket {
    /// Looks at the disk.
    pub(super) fn set_up(&self) -> SetUp {
        match self.set_up_path.path.exists() {
            true if self.set_up_path.is_own => SetUp::ForThisUser,
            true => SetUp::OnThisMachine,
            false => SetUp::No,
        }
    }
}

/// The folder that a socket is below.
enum Below {
    Root,
    RuntimeDir,
    Home,
}
use Below::{Home, Root, RuntimeDir};

/// In the order in which they are tried: the socket, the engine, what starts it, and what shows that it is set up (a
/// relative path is below the home folder).
#[rustfmt::skip] // a table
const PLACES: [(Below, &str, &str, &str, &str); 12] = [
    (Root, DEFAULT_SOCKET, "Docker", "sudo systemctl start docker", "/lib/systemd/system/docker.service"),
    (RuntimeDir, "docker.sock", "rootless Docker", "systemctl --user start docker", ".config/systemd/user/docker.service"),
    (Home, ".docker/run/docker.sock", "Docker Desktop", "open -a Docker", "/Applications/Docker.app"),
    (Home, ".docker/desktop/docker.sock", "Docker Desktop", "systemctl --user start docker-desktop", "/opt/docker-desktop"),
    (Home, ".colima/default/docker.sock", "Colima", "colima start", ".colima/default"),
    (Home, ".config/colima/default/docker.sock", "Colima", "colima start", ".config/colima/default"),
    (Home, ".orbstack/run/docker.sock", "OrbStack", "orb start", ".orbstack"),
    (Home, ".rd/docker.sock", "Rancher Desktop", "rdctl start", ".rd"),
    (Home, ".local/share/containers/podman/machine/podman.sock", "Podman Machine", "podman machine start", ".config/containers/podman/machine"),
    // Podman 4.
    (Home, ".local/share/containers/podman/machine/qemu/podman.sock", "Podman Machine", "podman machine start", ".config/containers/podman/machine/qemu"),
    (RuntimeDir, "podman/podman.sock", "rootless Podman", "systemctl --user start podman.socket", "/lib/systemd/user/podman.socket"),
    // Only root can look into this folder, or use the socket.
    (Root, "/run/podman/podman.sock", "Podman", "sudo systemctl start podman.socket", "/run/podman/."),
];

/// All places for these settings, in the order in which they are tried.
pub(super) fn all(settings: &EngineSettings) -> Vec<KnownSocket> {
    let home = settings.home.as_deref();
    let place = |(below, socket, engine, start, set_up_path): (_, _, _, _, &str)| {
        let folder = match below {
            Root => Path::new("/"),
            RuntimeDir => settings.runtime_dir.as_deref()?,
            Home => home?,
        };
        Some(KnownSocket {
            socket: folder.join(socket),
            engine,
            start,
            set_up_path: SetUpPath {
                // Joining an absolute path returns it.
                path: home.unwrap_or(Path::new("/")).join(set_up_path),
                is_own: !set_up_path.starts_with('/'),
            },
        })
    };
    PLACES.into_iter().filter_map(place).collect()
}

/// The place with this socket: for an engine that is named by it, in a docker context for example.
pub(super) fn at(settings: &EngineSettings, socket: &Path) -> Option<KnownSocket> {
    all(settings)
        .into_iter()
        .find(|place| place.socket == socket)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::UnixListener;

    use super::*;

    /// The sockets of each engine in a home folder, as its documents have them.
    const IN_HOME: [(&str, &str); 8] = [
        (".docker/run/docker.sock", "Docker Desktop"),
        (".docker/desktop/docker.sock", "Docker Desktop"),
        (".colima/default/docker.sock", "Colima"),
        (".config/colima/default/docker.sock", "Colima"),
        (".orbstack/run/docker.sock", "OrbStack"),
        (".rd/docker.sock", "Rancher Desktop"),
        (
            ".local/share/containers/podman/machine/podman.sock",
            "Podman Machine",
        ),
        (
            ".local/share/containers/podman/machine/qemu/podman.sock",
            "Podman Machine",
        ),
    ];

    fn settings(root: &Path) -> EngineSettings {
        EngineSettings {
            home: Some(root.join("home")),
            runtime_dir: Some(root.join("run")),
            ..EngineSettings::default()
        }
    }

    #[test]
    fn each_desktop_engine_is_found_by_its_socket() {
        for (socket, engine) in IN_HOME {
            let root = tempfile::tempdir().unwrap();
            let socket = root.path().join("home").join(socket);
            fs::create_dir_all(socket.parent().unwrap()).unwrap();
            let _listener = UnixListener::bind(&socket).unwrap();
            let places = all(&settings(root.path()));
            let below = |place: &&KnownSocket| place.socket.starts_with(root.path());
            let found: Vec<&KnownSocket> = places
                .iter()
                .filter(below)
                .filter(|place| place.socket.exists())
                .collect();
            assert_eq!(found.len(), 1, "{engine}: {found:?}");
            assert_eq!((&found[0].socket, found[0].engine), (&socket, engine));
        }
    }

    #[test]
    fn docker_comes_first_and_rootful_podman_last() {
        let places = all(&settings(Path::new("/nowhere")));
        let sockets: Vec<&Path> = places.iter().map(|place| place.socket.as_path()).collect();
        assert_eq!(sockets[0], Path::new("/var/run/docker.sock"));
        assert_eq!(sockets[1], Path::new("/nowhere/run/docker.sock"));
        let last = sockets.len() - 1;
        assert_eq!(
            sockets[last - 1],
            Path::new("/nowhere/run/podman/podman.sock")
        );
        assert_eq!(sockets[last], Path::new("/run/podman/podman.sock"));
    }

    #[test]
    fn an_engine_that_does_not_run_is_known_to_be_set_up() {
        for (folder, start) in [
            (".colima/default", "colima start"),
            (".config/colima/default", "colima start"),
            (".orbstack", "orb start"),
            (".rd", "rdctl start"),
            (".config/containers/podman/machine", "podman machine start"),
        ] {
            let root = tempfile::tempdir().unwrap();
            let settings = settings(root.path());
            let home = settings.home.clone().unwrap();
            let ours = |settings| {
                let places: Vec<KnownSocket> = all(settings);
                let own = places
                    .into_iter()
                    .filter(|place| place.set_up() == SetUp::ForThisUser);
                own.map(|place| place.start).collect::<Vec<_>>()
            };
            assert_eq!(ours(&settings), [""; 0], "{folder}");
            fs::create_dir_all(home.join(folder)).unwrap();
            assert_eq!(ours(&settings), [start], "{folder}");
        }
    }

    #[test]
    fn without_a_home_only_the_places_of_the_machine_are_tried() {
        let places = all(&EngineSettings::default());
        let sockets: Vec<&Path> = places.iter().map(|place| place.socket.as_path()).collect();
        assert_eq!(
            sockets,
            [
                Path::new("/var/run/docker.sock"),
                Path::new("/run/podman/podman.sock")
            ]
        );
    }
}
