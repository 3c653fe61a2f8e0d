//! A machine reached with ssh: a real sshd on loopback, whose sessions use the tests' engine, and an `ssh`
//! that is configured for it.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::child::succeed;
use super::daemon::{Daemon, write_program};
use super::engine::{Process, processes};
use super::{required_var, wait_until};

pub struct Sshd {
    pub port: u16,
    folder: PathBuf,
    daemon: Daemon,
}

impl Sshd {
    /// Starts a server that stores its files in `folder`. Commands in its sessions use the tests' engine.
    pub fn start(folder: &Path) -> Self {
        let folder = folder.join("ssh");
        std::fs::create_dir(&folder).unwrap();
        for key in ["host_key", "key", "wrong_key"] {
            let mut generate = Command::new("/usr/bin/ssh-keygen");
            generate.args(["-q", "-t", "ed25519", "-N", "", "-f"]);
            succeed(generate.arg(folder.join(key)));
        }
        // sshd requires this folder, which the service manager usually creates.
        std::fs::create_dir_all("/run/sshd").unwrap();
        let config = folder.join("sshd_config");
        let path = folder.display();
        let (daemon, port) = (0..20)
            .find_map(|_| {
                let port = free_port();
                let text = format!(
                    "ListenAddress 127.0.0.1:{port}\n\
                     HostKey {path}/host_key\n\
                     AuthorizedKeysFile {path}/key.pub\n\
                     PidFile none\n\
                     StrictModes no\n\
                     UsePAM no\n\
                     PermitRootLogin yes\n\
                     PasswordAuthentication no\n\
                     KbdInteractiveAuthentication no\n\
                     SetEnv DOCKER_HOST={} PATH=/usr/bin:/bin\n",
                    required_var("MOL_TEST_ENGINE")
                );
                std::fs::write(&config, text).unwrap();
                let daemon = Daemon::start(
                    "/usr/sbin/sshd",
                    &["-D", "-e", "-f", config.to_str().unwrap()],
                    &folder.join("sshd.log"),
                );
                let listens = wait_until("sshd", || {
                    let log = daemon.log();
                    // Another process may have taken the port meanwhile.
                    let taken = log.contains("Cannot bind");
                    (taken || log.contains("Server listening")).then_some(!taken)
                });
                listens.then_some((daemon, port))
            })
            .expect("sshd must find a free port");
        let host_key = std::fs::read_to_string(folder.join("host_key.pub")).unwrap();
        let known = format!("[127.0.0.1]:{port} {host_key}");
        std::fs::write(folder.join("known_hosts"), known).unwrap();
        Self {
            port,
            folder,
            daemon,
        }
    }

    /// `ssh://root@127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("ssh://root@127.0.0.1:{}", self.port)
    }

    /// A folder with a program `ssh`, which runs the real one with the right key.
    pub fn client(&self) -> String {
        self.client_with("key")
    }

    /// The same, with a key that the server does not accept.
    pub fn client_with_the_wrong_key(&self) -> String {
        self.client_with("wrong_key")
    }

    fn client_with(&self, key: &str) -> String {
        let (path, config) = (
            self.folder.display(),
            self.folder.join(format!("{key}.conf")),
        );
        let text = format!(
            "IdentityFile {path}/{key}\n\
             IdentitiesOnly yes\n\
             UserKnownHostsFile {path}/known_hosts\n\
             GlobalKnownHostsFile /dev/null\n\
             StrictHostKeyChecking yes\n"
        );
        std::fs::write(&config, text).unwrap();
        let programs = self.folder.join(format!("{key}-bin"));
        let script = format!("exec /usr/bin/ssh -F {} \"$@\"", config.display());
        write_program(&programs, "ssh", &script);
        programs.to_str().unwrap().to_owned()
    }

    /// How many connections the server has accepted so far.
    pub fn accepted(&self) -> usize {
        self.daemon.log().matches("Accepted publickey").count()
    }

    /// The process ids of the running ssh clients of this server.
    pub fn connections(&self) -> Vec<u32> {
        let config = format!("{}/", self.folder.display());
        ids(|process| process.command.contains(&config) && process.command.contains("dial-stdio"))
    }

    /// The same, plus zombies: clients that have ended but were not reaped.
    pub fn clients(&self) -> Vec<u32> {
        // A zombie has no command line, so it may belong to another test.
        let zombies = ids(|process| {
            process.status.starts_with("Name:\tssh\n")
                && process.status.contains("\nState:\tZ")
                && process.parent == std::process::id()
        });
        [self.connections(), zombies].concat()
    }
}

fn ids(wanted: impl Fn(&Process) -> bool) -> Vec<u32> {
    let found = processes().filter(wanted);
    found.map(|process| process.id).collect()
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}
