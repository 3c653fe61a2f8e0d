//! Explains why no engine answers: one cause, and what to do about it.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::process::{getegid, geteuid, getgroups};

use crate::cache::ownership::OVERFLOW_UID;
use crate::engine::connect::address::Address;
use crate::engine::connect::endpoint::Endpoint;
use crate::engine::connect::places::{KnownSocket, SetUp};
use crate::error::{Code, Error};
use crate::process::outside_file;

const HINT_START: &str = "start Docker or Podman, or set DOCKER_HOST to its address";
const HINT_SSH: &str = "check that `ssh HOST docker version` works for the same user without \
     a prompt: the key, the known hosts and the configuration are that user's";
const HINT_TCP: &str = "start Docker or Podman there, or fix the address; with TLS, set \
     DOCKER_TLS_VERIFY=1 or use a docker context, with ca.pem of the CA, cert.pem signed by it, and key.pem";
const HINT_SILENT: &str = "check that it is a container engine; restart it, or read its log";

/// The most bytes of /etc/passwd and /etc/group.
const MAX_ACCOUNTS: usize = 1 << 20;

/// An endpoint that did not answer as an engine does.
#[derive(Clone, Debug)]
pub(in crate::engine) struct Attempt {
    pub(in crate::engine) endpoint: Endpoint,
    /// The reason, for people.
    pub(in crate::engine) why: String,
    /// The kind of error, if the operating system reported one.
    pub(in crate::engine) kind: Option<ErrorKind>,
    /// What to do, if the answer shows it.
    pub(in crate::engine) hint: Option<String>,
}

/// Why an attempt failed. Ordered: the smaller the cause, the closer the attempt came to an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cause {
    /// Something accepted the connection, or the address is not a Unix socket.
    NoAnswer,
    /// This user may not open the socket.
    Denied,
    /// There is a file, and nothing listens there.
    NothingListens,
    /// There is no socket, but an engine is set up that would have one there.
    NotRunning(SetUp),
    /// There is no socket, as far as this user can see.
    Absent,
}

impl Attempt {
    /// Looks at the disk.
    fn cause(&self) -> Cause {
        let Address::Unix(socket) = &self.endpoint.address else {
            return Cause::NoAnswer;
        };
        let set_up = || self.endpoint.known_socket.as_ref().map(KnownSocket::set_up);
        match self.kind {
            Some(ErrorKind::ConnectionRefused) => Cause::NothingListens,
            // Most users may not look into /run/podman, which says nothing about their engine.
            Some(ErrorKind::PermissionDenied)
                if self.endpoint.known_socket.is_none() || fs::metadata(socket).is_ok() =>
            {
                Cause::Denied
            }
            Some(ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::PermissionDenied) => {
                match set_up() {
                    None | Some(SetUp::No) => Cause::Absent,
                    Some(set_up) => Cause::NotRunning(set_up),
                }
            }
            _ => Cause::NoAnswer,
        }
    }

    /// What is wrong, and what to do. Looks at the disk.
    fn explained(&self, cause: Cause) -> (String, String) {
        let why = &self.why;
        let socket = match &self.endpoint.address {
            Address::Unix(socket) => socket,
            Address::Ssh(_) => return (why.clone(), self.hint_or(HINT_SSH)),
            Address::Tcp { .. } => return (why.clone(), self.hint_or(HINT_TCP)),
        };
        let known = self.endpoint.known_socket.as_ref();
        let running = known.map(|known| {
            let hint = format!("start {}: {}", known.engine, known.start);
            (known.engine, hint)
        });
        match (cause, running) {
            (Cause::NoAnswer, _) => (why.clone(), self.hint_or(HINT_SILENT)),
            (Cause::Denied, _) => match Access::of(socket) {
                Some(access) => (format!("{why}: {access}"), access.hint()),
                None => (
                    why.clone(),
                    "check the permissions of the folders above it, and SELinux or AppArmor"
                        .to_owned(),
                ),
            },
            (Cause::NothingListens, _) if !is_socket(socket) => {
                ("it is not a socket".to_owned(), HINT_START.to_owned())
            }
            (Cause::NothingListens, Some((engine, hint)))
                if known.is_some_and(|known| known.set_up() != SetUp::No) =>
            {
                (format!("{engine} is not running: {why}"), hint)
            }
            (Cause::NotRunning(_), Some((engine, hint))) => {
                (format!("{engine} is set up here, but is not running"), hint)
            }
            _ => (why.clone(), HINT_START.to_owned()),
        }
    }

    fn hint_or(&self, usual: &str) -> String {
        self.hint.clone().unwrap_or_else(|| usual.to_owned())
    }
}

fn is_socket(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

/// The error for endpoints of which none answers. Looks at the disk, so it may block.
pub(in crate::engine) fn explain(attempts: &[Attempt]) -> Error {
    let mut attempts: Vec<(Cause, &Attempt)> = attempts
        .iter()
        .map(|attempt| (attempt.cause(), attempt))
        .collect();
    // Stable: of equal causes, the first that was tried.
    attempts.sort_by_key(|(cause, _)| *cause);
    let Some(((cause, first), others)) = attempts.split_first() else {
        return unexplained(&[]);
    };
    let (why, hint) = first.explained(*cause);
    let is_absent = |cause: &Cause| *cause > Cause::NothingListens;
    let mut absent: Vec<String> = others
        .iter()
        .filter(|(cause, _)| is_absent(cause))
        .map(|(_, attempt)| attempt.endpoint.address.to_string())
        .collect();
    let mut message = "no container engine answers".to_owned();
    if *cause == Cause::Absent && !others.is_empty() {
        absent.insert(0, first.endpoint.to_string());
    } else {
        message += &format!(": {}: {why}", first.endpoint);
    }
    for (_, attempt) in others.iter().filter(|(cause, _)| !is_absent(cause)) {
        message += &format!("; {}: {}", attempt.endpoint, attempt.why);
    }
    if !absent.is_empty() {
        message += &format!("; no socket was found at {}", absent.join(", "));
    }
    Error::new(Code::EngineUnreachable, message).hint(hint)
}

/// Like [`explain`], but reads no files.
pub(in crate::engine) fn unexplained(attempts: &[Attempt]) -> Error {
    let tried: Vec<String> = attempts
        .iter()
        .map(|attempt| format!("{}: {}", attempt.endpoint, attempt.why))
        .collect();
    let message = format!("no container engine answers; tried {}", tried.join("; "));
    Error::new(Code::EngineUnreachable, message).hint(HINT_START)
}

/// Who may open a socket.
#[derive(Debug, PartialEq, Eq)]
struct Access {
    uid: u32,
    /// The group, if it may open the socket.
    group: Option<Account>,
    /// The user of this process.
    user: Account,
}

/// A user or a group.
#[derive(Debug, PartialEq, Eq)]
struct Account {
    id: u32,
    name: Option<String>,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => f.write_str(name),
            None => self.id.fmt(f),
        }
    }
}

impl Access {
    /// `None` if the mode does not explain why this process may not open the socket, or is an unusual one: it excludes
    /// the owner, or admits everyone except the group.
    fn of(socket: &Path) -> Option<Self> {
        let found = fs::metadata(socket).ok()?;
        let (mode, uid, gid) = (found.mode(), found.uid(), found.gid());
        let me = geteuid().as_raw();
        let groups = getgroups().unwrap_or_default();
        let is_member = getegid().as_raw() == gid || groups.iter().any(|id| id.as_raw() == gid);
        let is_usual = me != uid && mode & 0o002 == 0;
        (is_usual && !may_write(mode, me, uid, is_member)).then(|| Self {
            uid,
            group: (mode & 0o020 != 0).then(|| Account {
                id: gid,
                // The accounts in a container are not those of the engine's machine.
                name: (!is_in_container())
                    .then(|| name_in("/etc/group", gid))
                    .flatten(),
            }),
            user: Account {
                id: me,
                name: name_in("/etc/passwd", me),
            },
        })
    }

    fn hint(&self) -> String {
        let own = "rootless Docker or Podman (dockerd-rootless-setuptool.sh install, or systemctl --user start \
                   podman.socket)";
        let ids = [Some(self.uid), self.group.as_ref().map(|group| group.id)];
        if ids.contains(&Some(OVERFLOW_UID)) {
            return "its owner is unknown in this user namespace: use the socket of an engine of the user who started \
                    this container"
                .to_owned();
        }
        match &self.group {
            // Whoever is in the group root can change much more than containers.
            Some(Account { id: 0, .. }) | None if self.uid == 0 => {
                format!("run as root, or use {own}")
            }
            Some(Account { id: 0, .. }) | None => {
                format!("run as the user {}, or use {own}", self.uid)
            }
            Some(Account {
                name: Some(name), ..
            }) => format!(
                "run sudo usermod -aG {name} {}, then log out and in again, or restart the service",
                self.user
            ),
            Some(Account { id, .. }) => format!(
                "give this process the group {id}; for a container: docker run --group-add {id}, or group_add in a \
                 compose file"
            ),
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.uid {
            0 => f.write_str("only root")?,
            uid => write!(f, "only root and the user {uid}")?,
        }
        if let Some(group) = &self.group {
            write!(f, " and the group {group}")?;
        }
        write!(f, " may open it, and this process is {}", self.user)
    }
}

/// Whether a mode allows a user to write, which is what connecting to a socket needs (unix(7)). Only one of the mode's
/// three classes applies: the owner's to the owner, the group's to its other members, the last to everybody else
/// (path_resolution(7)).
fn may_write(mode: u32, user: u32, owner: u32, is_member: bool) -> bool {
    user == 0
        || match (user == owner, is_member) {
            (true, _) => mode & 0o200 != 0,
            (false, true) => mode & 0o020 != 0,
            (false, false) => mode & 0o002 != 0,
        }
}

/// Docker and Podman create these files in each container.
fn is_in_container() -> bool {
    ["/.dockerenv", "/run/.containerenv"]
        .iter()
        .any(|file| Path::new(file).exists())
}

fn name_in(file: &str, id: u32) -> Option<String> {
    let text = outside_file::read(Path::new(file), MAX_ACCOUNTS).ok()?;
    name_of(&String::from_utf8_lossy(&text), id)
}

/// The name of an id in the text of /etc/group or /etc/passwd (group(5), passwd(5)). The C library is not used: it may
/// also query directories on the network (LDAP), without a time limit. An engine's group is normally in these files.
fn name_of(accounts: &str, id: u32) -> Option<String> {
    accounts.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let number = fields.nth(1)?;
        (number.parse() == Ok(id) && !name.is_empty()).then(|| name.to_owned())
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
        // Docker Desktop is left out: the path that shows that it is set up is outside the home folder, so it may exist
        // here.
        let below = |place: &places::KnownSocket| {
            place.socket.starts_with(home) && place.engine != "Docker Desktop"
        };
        let attempt = |place: places::KnownSocket| {
            let socket = place.socket.strip_prefix(home).unwrap();
            let found = happened.iter().find(|(name, _)| Path::new(name) == socket);
            let kind = found.map_or(ErrorKind::NotFound, |(_, kind)| *kind);
            Attempt {
                endpoint: Endpoint {
                    address: Address::Unix(place.socket.clone()),
                    named_by: place.engine.to_owned(),
                    known_socket: Some(place),
                },
                why: kind.to_string(),
                kind: Some(kind),
                hint: None,
            }
        };
        let places = places::all(&settings).into_iter().filter(below);
        explain(&places.map(attempt).collect::<Vec<_>>())
    }

    fn named(address: Address, kind: Option<ErrorKind>) -> Error {
        let endpoint = Endpoint {
            address,
            named_by: "DOCKER_HOST".to_owned(),
            known_socket: None,
        };
        let (why, hint) = ("why".to_owned(), None);
        explain(&[Attempt {
            endpoint,
            why,
            kind,
            hint,
        }])
    }

    const COLIMA: &str = ".colima/default/docker.sock";
    const ORBSTACK: &str = ".orbstack/run/docker.sock";
    const RANCHER: &str = ".rd/docker.sock";

    /// Makes what Colima, OrbStack and Rancher Desktop leave in a home folder.
    fn home(set_up: &[&str]) -> tempfile::TempDir {
        let home = tempfile::tempdir().unwrap();
        for folder in set_up {
            fs::create_dir_all(home.path().join(folder)).unwrap();
        }
        home
    }

    fn listen(home: &Path, socket: &str) -> UnixListener {
        UnixListener::bind(home.join(socket)).unwrap()
    }

    #[test]
    fn the_nearest_cause_comes_first() {
        use ErrorKind::{ConnectionRefused, PermissionDenied, TimedOut};
        let home = home(&[".colima/default", ".rd"]);
        let (_colima, _rancher) = (listen(home.path(), COLIMA), listen(home.path(), RANCHER));
        for (happened, cause, hint) in [
            (
                vec![(COLIMA, PermissionDenied), (RANCHER, TimedOut)],
                "rd/docker.sock (Rancher Desktop): timed out; unix:",
                HINT_SILENT,
            ),
            (
                vec![(COLIMA, ConnectionRefused), (RANCHER, PermissionDenied)],
                "rd/docker.sock (Rancher Desktop): permission denied; unix:",
                "check the permissions",
            ),
            (
                vec![(RANCHER, ConnectionRefused)],
                "rd/docker.sock (Rancher Desktop): Rancher Desktop is not running: connection refused; no socket was \
                 found at unix:",
                "start Rancher Desktop: rdctl start",
            ),
        ] {
            let error = explained(home.path(), &happened);
            assert_eq!(error.code, Code::EngineUnreachable);
            assert!(error.message().contains(cause), "{error:?}");
            assert!(error.hint.starts_with(hint), "{error:?}");
            // Every place is named, and only once.
            for socket in [COLIMA, ORBSTACK, RANCHER] {
                assert_eq!(
                    error.message().matches(socket).count(),
                    1,
                    "{socket}: {error:?}"
                );
            }
        }
    }

    #[test]
    fn an_engine_that_is_set_up_and_does_not_run_is_named_with_its_command() {
        let home = home(&[".orbstack"]);
        let error = explained(home.path(), &[]);
        let cause =
            "(OrbStack): OrbStack is set up here, but is not running; no socket was found at unix:";
        assert!(error.message().contains(cause), "{error:?}");
        assert_eq!(error.hint, "start OrbStack: orb start");
    }

    #[test]
    fn a_folder_that_may_not_be_searched_hides_no_other_cause() {
        use ErrorKind::{ConnectionRefused, NotADirectory, PermissionDenied};
        let home = home(&[".colima/default"]);
        let _colima = listen(home.path(), COLIMA);
        let happened = [
            (COLIMA, ConnectionRefused),
            (RANCHER, PermissionDenied),
            (ORBSTACK, NotADirectory),
        ];
        let error = explained(home.path(), &happened);
        assert_eq!(error.hint, "start Colima: colima start", "{error:?}");
        assert!(!error.message().contains("denied"), "{error:?}");
    }

    #[test]
    fn a_stale_socket_does_not_prove_an_engine() {
        let home = home(&[]);
        fs::create_dir_all(home.path().join(ORBSTACK)).unwrap();
        let settings = EngineSettings::default();
        for (socket, why) in [
            (home.path().join(ORBSTACK), "it is not a socket"),
            (home.path().join("engine.sock"), "connection refused"),
        ] {
            if !socket.exists() {
                drop(UnixListener::bind(&socket).unwrap());
            }
            let address = Address::Unix(socket);
            let error = explain(&[Attempt {
                endpoint: Endpoint::named(address, "DOCKER_HOST", &settings),
                why: "connection refused".to_owned(),
                kind: Some(ErrorKind::ConnectionRefused),
                hint: None,
            }]);
            assert!(error.message().ends_with(why), "{error:?}");
            assert_eq!(error.hint, HINT_START);
        }
    }

    #[test]
    fn a_context_that_names_a_usual_socket_has_its_command() {
        let home = home(&[".colima/default"]);
        let settings = EngineSettings {
            home: Some(home.path().to_owned()),
            ..EngineSettings::default()
        };
        let address = Address::Unix(home.path().join(COLIMA));
        let error = explain(&[Attempt {
            endpoint: Endpoint::named(address, "the current docker context", &settings),
            why: "no such file".to_owned(),
            kind: Some(ErrorKind::NotFound),
            hint: None,
        }]);
        assert_eq!(error.hint, "start Colima: colima start");
    }

    #[test]
    fn without_any_engine_all_sockets_are_listed() {
        let home = home(&[]);
        let error = explained(home.path(), &[]);
        let start = "no container engine answers; no socket was found at unix:///";
        assert!(error.message().starts_with(start), "{error:?}");
        assert_eq!(error.message().matches("unix:///").count(), 6, "{error:?}");
        assert_eq!(error.hint, HINT_START);
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
            (named(unix(), Some(ErrorKind::NotFound)), HINT_START),
            (named(unix(), None), HINT_SILENT),
            (named(tcp, Some(ErrorKind::ConnectionRefused)), HINT_TCP),
        ] {
            assert_eq!(error.hint, hint, "{error:?}");
            assert!(error.message().ends_with("(DOCKER_HOST): why"), "{error:?}");
        }
    }

    #[test]
    fn the_hint_on_a_denied_socket_depends_on_who_may_open_it() {
        let account = |(id, name): (u32, Option<&str>)| Account {
            id,
            name: name.map(str::to_owned),
        };
        for (uid, group, text, hint) in [
            (
                0,
                Some((998, Some("docker"))),
                "only root and the group docker may open it, and this process is app",
                "run sudo usermod -aG docker app, then log out and in again",
            ),
            (
                0,
                Some((998, None)),
                "only root and the group 998 may open it",
                "give this process the group 998; for a container: docker run --group-add 998",
            ),
            (
                0,
                None,
                "only root may open it",
                "run as root, or use rootless",
            ),
            (
                0,
                Some((0, Some("root"))),
                "only root and the group root may open it",
                "run as root, or use rootless",
            ),
            (
                1000,
                Some((0, Some("root"))),
                "only root and the user 1000 and the group root may open it",
                "run as the user 1000, or use rootless",
            ),
            (
                1000,
                None,
                "only root and the user 1000 may open it",
                "run as the user 1000, or use rootless",
            ),
            (
                OVERFLOW_UID,
                Some((OVERFLOW_UID, Some("nogroup"))),
                "only root and the user 65534",
                "its owner is unknown in this user namespace",
            ),
        ] {
            let access = Access {
                uid,
                group: group.map(account),
                user: account((33, Some("app"))),
            };
            assert!(access.to_string().starts_with(text), "{access}");
            assert!(access.hint().starts_with(hint), "{}", access.hint());
        }
    }

    #[test]
    fn an_id_is_named_as_in_the_file_of_accounts() {
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

    #[test]
    fn a_mode_that_lets_this_process_in_is_not_the_cause() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("engine.sock");
        let _listener = UnixListener::bind(&socket).unwrap();
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(Access::of(&socket), None);
        assert_eq!(Access::of(Path::new("/nowhere/engine.sock")), None);
    }

    #[test]
    fn only_the_class_that_applies_decides_who_may_open_a_socket() {
        // The modes with which root, the owner, a member of the group and others may.
        const OWNER: u32 = 1000;
        for (mode, allowed) in [
            (0o600, [true, true, false, false]),
            (0o060, [true, false, true, false]),
            (0o006, [true, false, false, true]),
            (0o660, [true, true, true, false]),
            (0o606, [true, true, false, true]),
            (0o666, [true, true, true, true]),
            (0o555, [true, false, false, false]),
        ] {
            let users = [(0, false), (OWNER, true), (33, true), (33, false)];
            let may = users.map(|(user, is_member)| may_write(mode, user, OWNER, is_member));
            assert_eq!(may, allowed, "{mode:o}");
        }
    }
}
