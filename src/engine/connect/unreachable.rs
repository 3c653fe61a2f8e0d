//! Explains why no engine answers: one cause, and what to do about it.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::engine::connect::endpoint::{Address, Endpoint};
use crate::error::{Code, Error};
use crate::process::outside_file;

const HINT_UNIX: &str = "start Docker or Podman, or set DOCKER_HOST to its address";
const HINT_SSH: &str = "check that `ssh HOST docker version` works for the same user without \
     a prompt: the key, the known hosts and the configuration are that user's";
const HINT_TCP: &str = "start Docker or Podman there, or fix the address; with TLS, set \
     DOCKER_TLS_VERIFY=1 or use a docker context, with the authority's ca.pem and a cert.pem and key.pem it signed";

/// The most bytes of /etc/group.
const MAX_GROUPS: usize = 1 << 20;

/// An endpoint that did not answer.
#[derive(Debug)]
pub(in crate::engine) struct Attempt {
    pub(in crate::engine) endpoint: Endpoint,
    /// The reason, for people.
    pub(in crate::engine) why: String,
    /// The kind of error, if the operating system reported one.
    pub(in crate::engine) kind: Option<ErrorKind>,
    /// What to do, if the answer shows it.
    pub(in crate::engine) hint: Option<String>,
}

impl Attempt {
    /// Whether there is no socket.
    fn is_absent(&self) -> bool {
        self.kind == Some(ErrorKind::NotFound) && self.socket().is_some()
    }

    fn socket(&self) -> Option<&Path> {
        match &self.endpoint.address {
            Address::Unix(path) => Some(path),
            Address::Ssh(_) | Address::Tcp { .. } => None,
        }
    }

    /// How close the engine is to answering: what is to be reported first.
    fn rank(&self) -> u8 {
        let installed = self
            .endpoint
            .place
            .as_ref()
            .is_some_and(|place| place.is_installed());
        match self.kind {
            Some(ErrorKind::PermissionDenied) => 0,
            Some(ErrorKind::ConnectionRefused) => 2,
            _ if !self.is_absent() => 1,
            _ if installed => 3,
            _ => 4,
        }
    }

    /// What is wrong there, after the address.
    fn cause(&self, access: Option<&Access>) -> String {
        let place = self.endpoint.place.as_ref().map(|place| place.engine);
        match (self.rank(), place) {
            (0, _) => match access {
                Some(access) => format!("{}, but {access}", self.why),
                None => self.why.clone(),
            },
            (2, Some(engine)) => format!("{engine} does not run: {}", self.why),
            (3, Some(engine)) => format!("{engine} is installed, but does not run"),
            _ => self.why.clone(),
        }
    }

    fn hint(&self, access: Option<&Access>) -> String {
        if let Some(hint) = &self.hint {
            return hint.clone();
        }
        match (&self.endpoint.address, self.rank(), &self.endpoint.place) {
            (Address::Ssh(_), ..) => HINT_SSH.to_owned(),
            (Address::Tcp { .. }, ..) => HINT_TCP.to_owned(),
            (Address::Unix(_), 0, _) => match access {
                Some(access) => access.hint(),
                None => "check the permissions of the folders above it, and SELinux or AppArmor"
                    .to_owned(),
            },
            (Address::Unix(_), 2 | 3, Some(place)) => {
                format!("start {}: {}", place.engine, place.start)
            }
            (Address::Unix(_), ..) => HINT_UNIX.to_owned(),
        }
    }
}

/// The error for endpoints of which none answers. It reads files, and may block.
pub(in crate::engine) fn explain(mut attempts: Vec<Attempt>) -> Error {
    // Stable: of equal ones the first that was tried.
    attempts.sort_by_key(Attempt::rank);
    let Some((first, others)) = attempts.split_first() else {
        return Error::new(Code::EngineUnreachable, "no container engine is configured")
            .hint(HINT_UNIX);
    };
    let access = match (first.kind, first.socket()) {
        (Some(ErrorKind::PermissionDenied), Some(socket)) => Access::of(socket),
        _ => None,
    };
    let access = access.as_ref();
    let (absent, failed): (Vec<_>, Vec<_>) = others.iter().partition(|attempt| attempt.is_absent());
    let mut message = match first.rank() {
        4 if !others.is_empty() => format!(
            "no container engine answers: there is no socket at {}",
            first.endpoint
        ),
        _ => format!(
            "no container engine answers: {}: {}",
            first.endpoint,
            first.cause(access)
        ),
    };
    for attempt in failed {
        message += &format!("; {}: {}", attempt.endpoint, attempt.why);
    }
    if !absent.is_empty() {
        let addresses: Vec<String> = absent
            .iter()
            .map(|attempt| attempt.endpoint.address.to_string())
            .collect();
        let start = match first.rank() {
            4 => ", ",
            _ => "; there is no socket at ",
        };
        message += &format!("{start}{}", addresses.join(", "));
    }
    Error::new(Code::EngineUnreachable, message).hint(first.hint(access))
}

/// Who may open a socket.
#[derive(Debug, PartialEq, Eq)]
struct Access {
    uid: u32,
    /// The group, if it may open the socket.
    group: Option<Group>,
}

#[derive(Debug, PartialEq, Eq)]
struct Group {
    gid: u32,
    name: Option<String>,
}

impl Access {
    /// `None` if the mode does not explain why this process may not.
    fn of(socket: &Path) -> Option<Self> {
        let found = fs::metadata(socket).ok()?;
        let mode = found.mode();
        // Connecting needs the right to write (unix(7)).
        let is_owner = found.uid() == rustix::process::geteuid().as_raw();
        if mode & 0o002 != 0 || (is_owner && mode & 0o200 != 0) {
            return None;
        }
        let groups = outside_file::read(Path::new("/etc/group"), MAX_GROUPS).unwrap_or_default();
        Some(Self {
            uid: found.uid(),
            group: (mode & 0o020 != 0).then(|| Group {
                gid: found.gid(),
                name: name_of(&String::from_utf8_lossy(&groups), found.gid()),
            }),
        })
    }

    fn hint(&self) -> String {
        match &self.group {
            Some(Group { gid: 0, .. }) | None if self.uid == 0 => {
                "run as root, or use rootless Docker or Podman (dockerd-rootless-setuptool.sh install, or \
                 systemctl --user start podman.socket)"
                    .to_owned()
            }
            None => "run as the user that owns the socket, or start an engine of your own".to_owned(),
            Some(Group { name: Some(name), .. }) => {
                format!("run sudo usermod -aG {name} $USER, then log out and in again")
            }
            // Usual in a container, whose /etc/group is not that of the engine's machine.
            Some(Group { gid, .. }) => format!(
                "give this process the group {gid}; for a container: docker run --group-add {gid}, or group_add in \
                 a compose file"
            ),
        }
    }
}

impl std::fmt::Display for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.uid {
            0 => f.write_str("only root")?,
            uid => write!(f, "only root and the user {uid}")?,
        }
        match &self.group {
            Some(Group {
                name: Some(name), ..
            }) => write!(f, " and the group {name}")?,
            Some(Group { gid, .. }) => write!(f, " and the group {gid}")?,
            None => {}
        }
        f.write_str(" may open it")
    }
}

/// The name of a group in the text of /etc/group (group(5)). The C library would ask directories on the network too,
/// for as long as they take; a group that was made for an engine is in this file.
fn name_of(groups: &str, gid: u32) -> Option<String> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let number = fields.nth(1)?;
        (number.parse() == Ok(gid) && !name.is_empty()).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::engine::connect::places;
    use crate::options::EngineSettings;

    /// What happened at each place below a home folder; the others have no socket.
    fn explained(home: &Path, happened: &[(&str, ErrorKind)]) -> Error {
        let settings = EngineSettings {
            home: Some(home.to_owned()),
            ..EngineSettings::default()
        };
        let below = |place: &places::Place| place.socket.starts_with(home);
        let attempt = |place: places::Place| {
            let socket = place.socket.strip_prefix(home).unwrap();
            let found = happened.iter().find(|(name, _)| Path::new(name) == socket);
            let kind = found.map_or(ErrorKind::NotFound, |(_, kind)| *kind);
            Attempt {
                endpoint: Endpoint {
                    address: Address::Unix(place.socket.clone()),
                    named_by: place.engine.to_owned(),
                    place: Some(place),
                },
                why: kind.to_string(),
                kind: Some(kind),
                hint: None,
            }
        };
        let places = places::all(&settings).into_iter().filter(below);
        explain(places.map(attempt).collect())
    }

    fn named(address: Address, kind: Option<ErrorKind>) -> Error {
        let endpoint = Endpoint {
            address,
            named_by: "DOCKER_HOST".to_owned(),
            place: None,
        };
        let (why, hint) = ("why".to_owned(), None);
        explain(vec![Attempt {
            endpoint,
            why,
            kind,
            hint,
        }])
    }

    const COLIMA: &str = ".colima/default/docker.sock";
    const ORBSTACK: &str = ".orbstack/run/docker.sock";
    const RANCHER: &str = ".rd/docker.sock";

    #[test]
    fn the_nearest_cause_comes_first() {
        use ErrorKind::{ConnectionRefused, PermissionDenied, TimedOut};
        let home = tempfile::tempdir().unwrap();
        for (happened, cause, hint) in [
            (
                vec![(COLIMA, ConnectionRefused), (RANCHER, PermissionDenied)],
                "rd/docker.sock (Rancher Desktop): permission denied; unix:",
                "check the permissions",
            ),
            (
                vec![(COLIMA, ConnectionRefused), (RANCHER, TimedOut)],
                "rd/docker.sock (Rancher Desktop): timed out; unix:",
                "start Docker or Podman",
            ),
            (
                vec![(RANCHER, ConnectionRefused)],
                "rd/docker.sock (Rancher Desktop): Rancher Desktop does not run: connection refused; there is no socket at unix:",
                "start Rancher Desktop: rdctl start",
            ),
        ] {
            let error = explained(home.path(), &happened);
            assert_eq!(error.code, Code::EngineUnreachable);
            assert!(error.message.contains(cause), "{error:?}");
            assert!(error.hint.starts_with(hint), "{error:?}");
            // Every place is named, and only once.
            for socket in [COLIMA, ORBSTACK, RANCHER] {
                assert_eq!(
                    error.message.matches(socket).count(),
                    1,
                    "{socket}: {error:?}"
                );
            }
        }
    }

    #[test]
    fn an_installed_engine_that_does_not_run_is_named_with_its_command() {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join(".orbstack")).unwrap();
        let error = explained(home.path(), &[]);
        let cause =
            "(OrbStack): OrbStack is installed, but does not run; there is no socket at unix:";
        assert!(error.message.contains(cause), "{error:?}");
        assert_eq!(error.hint, "start OrbStack: orb start");
    }

    #[test]
    fn without_any_engine_all_sockets_are_listed() {
        let home = tempfile::tempdir().unwrap();
        let error = explained(home.path(), &[]);
        let start = "no container engine answers: there is no socket at unix:///";
        assert!(error.message.starts_with(start), "{error:?}");
        assert_eq!(error.message.matches("unix:///").count(), 8, "{error:?}");
        assert_eq!(error.hint, HINT_UNIX);
    }

    #[test]
    fn a_named_engine_has_the_hint_of_its_kind_of_address() {
        let unix = || Address::Unix("/nowhere/engine.sock".into());
        let tcp = Address::Tcp {
            host: "host".to_owned(),
            port: 1,
            path: String::new(),
            tls: None,
        };
        for (error, hint) in [
            (named(unix(), Some(ErrorKind::NotFound)), HINT_UNIX),
            (named(unix(), Some(ErrorKind::ConnectionRefused)), HINT_UNIX),
            (named(unix(), None), HINT_UNIX),
            (named(tcp, Some(ErrorKind::ConnectionRefused)), HINT_TCP),
        ] {
            assert_eq!(error.hint, hint, "{error:?}");
            assert!(error.message.ends_with("(DOCKER_HOST): why"), "{error:?}");
        }
    }

    #[test]
    fn the_hint_on_a_denied_socket_depends_on_who_may_open_it() {
        let access = |uid, group: Option<(u32, Option<&str>)>| Access {
            uid,
            group: group.map(|(gid, name)| Group {
                gid,
                name: name.map(str::to_owned),
            }),
        };
        for (access, text, hint) in [
            (
                access(0, Some((998, Some("docker")))),
                "only root and the group docker may open it",
                "run sudo usermod -aG docker $USER, then log out and in again",
            ),
            (
                access(0, Some((998, None))),
                "only root and the group 998 may open it",
                "give this process the group 998; for a container: docker run --group-add 998",
            ),
            (
                access(0, None),
                "only root may open it",
                "run as root, or use rootless",
            ),
            (
                access(0, Some((0, Some("root")))),
                "only root and the group root may open it",
                "run as root, or use rootless",
            ),
            (
                access(1000, None),
                "only root and the user 1000 may open it",
                "run as the user that owns the socket",
            ),
        ] {
            assert_eq!(access.to_string(), text);
            assert!(access.hint().starts_with(hint), "{}", access.hint());
        }
    }

    #[test]
    fn the_mode_of_the_socket_says_who_may_open_it() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("engine.sock");
        let _listener = UnixListener::bind(&socket).unwrap();
        let own = fs::metadata(&socket).unwrap();
        let set = |mode| fs::set_permissions(&socket, fs::Permissions::from_mode(mode));
        // Its owner, or everybody, may write: the mode is not the reason.
        for mode in [0o600, 0o666] {
            set(mode).unwrap();
            assert_eq!(Access::of(&socket), None);
        }
        set(0o060).unwrap();
        let access = Access::of(&socket).unwrap();
        assert_eq!(access.uid, own.uid());
        assert_eq!(access.group.map(|group| group.gid), Some(own.gid()));
        set(0o000).unwrap();
        assert_eq!(Access::of(&socket).unwrap().group, None);
        assert_eq!(Access::of(Path::new("/nowhere/engine.sock")), None);
    }

    #[test]
    fn a_group_is_named_as_in_the_file_of_groups() {
        let groups = "root:x:0:\ndocker:x:998:me,you\n\nbad line\n:x:7:\nlast:x:1000";
        for (gid, name) in [
            (0, Some("root")),
            (998, Some("docker")),
            (1000, Some("last")),
            (7, None),
            (5, None),
        ] {
            assert_eq!(name_of(groups, gid).as_deref(), name);
        }
    }
}
