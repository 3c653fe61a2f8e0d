//! Machine-wide emulation of arm64 while a test needs it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::child::succeed;

/// The kernel's interface to register interpreters (Documentation/admin-guide/binfmt-misc.rst).
const FOLDER: &str = "/proc/sys/fs/binfmt_misc";

const NAME: &str = "libmol-test-aarch64";

const QEMU: &str = "/usr/bin/qemu-aarch64-static";

/// The first bytes of an ELF program for arm64, and the mask of the significant bits.
const MAGIC: &str = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00";
const MASK: &str =
    r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff";

/// While it exists, programs for arm64 run. Its changes to the machine are undone when it is dropped.
pub struct Emulation {
    registered: bool,
    mounted: bool,
    /// A lock, so that only one exists at a time on the machine.
    _alone: File,
}

impl Emulation {
    /// Registers qemu, unless the machine already has an emulation of arm64.
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
        // The registration of a killed test.
        unregister();
        if !runs("0200b700") {
            // Flag F: the kernel opens qemu now, because containers do not have it.
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

/// Whether the machine emulates programs whose ELF header has this type and machine (in hexadecimal).
pub fn runs(header: &str) -> bool {
    let entries = fs::read_dir(FOLDER).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter_map(|path: PathBuf| fs::read_to_string(path).ok())
        .any(|text| text.starts_with("enabled") && text.contains(header))
}

/// A platform that this machine can neither run nor emulate, with its ELF machine number.
pub fn impossible() -> (&'static str, u16) {
    // The last number is not assigned to any processor.
    [
        ("riscv64", 243_u16),
        ("ppc64le", 21),
        ("loong64", 258),
        ("sparc64", 0xfeed),
    ]
    .into_iter()
    .find(|(_, machine)| {
        let [low, high] = machine.to_le_bytes();
        !runs(&format!("0200{low:02x}{high:02x}"))
    })
    .expect("an unassigned machine number is not emulated")
}
