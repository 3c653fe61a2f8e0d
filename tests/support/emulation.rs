//! Emulation of arm64, which the whole machine has while a test needs it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::child::succeed;

/// Where the kernel is told which programs run others (Documentation/admin-guide/binfmt-misc.rst).
const FOLDER: &str = "/proc/sys/fs/binfmt_misc";

const NAME: &str = "libmol-test-aarch64";

const QEMU: &str = "/usr/bin/qemu-aarch64-static";

/// The beginning of a program for arm64, and which bits of it count.
const MAGIC: &str = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00";
const MASK: &str =
    r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff";

/// While it is held, programs for arm64 run. What it has changed goes with it.
pub struct Emulation {
    registered: bool,
    mounted: bool,
    /// Only one at a time, of all processes of the machine.
    _alone: File,
}

impl Emulation {
    /// Registers qemu, unless the machine has a registration of its own.
    pub fn of_arm64() -> Self {
        let alone =
            File::open(QEMU).unwrap_or_else(|error| panic!("{QEMU}: {error}; run `make test`"));
        alone.lock().unwrap();
        let mut emulation = Self {
            registered: false,
            mounted: false,
            _alone: alone,
        };
        if !Path::new(FOLDER).join("register").exists() {
            succeed(Command::new("mount").args(["-t", "binfmt_misc", "binfmt_misc", FOLDER]));
            emulation.mounted = true;
        }
        // One of a test that was killed.
        unregister();
        if !runs("0200b700") {
            // F: qemu is opened now, because no container has it.
            let line = format!(":{NAME}:M::{MAGIC}:{MASK}:{QEMU}:F");
            fs::write(Path::new(FOLDER).join("register"), line).unwrap();
            emulation.registered = true;
        }
        emulation
    }
}

impl Drop for Emulation {
    fn drop(&mut self) {
        if self.registered {
            unregister();
        }
        if self.mounted {
            let _ = Command::new("umount").arg(FOLDER).status();
        }
    }
}

fn unregister() {
    let _ = fs::write(Path::new(FOLDER).join(NAME), "-1");
}

/// Has the machine an emulation for programs whose header ends so (type, processor; in hexadecimal)?
pub fn runs(header: &str) -> bool {
    let entries = fs::read_dir(FOLDER).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter_map(|path: PathBuf| fs::read_to_string(path).ok())
        .any(|text| text.starts_with("enabled") && text.contains(header))
}
