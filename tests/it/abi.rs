//! The surface: the header, the symbols, and what must not be in the build.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::child::{source, succeed, text};
use crate::support::given;

fn library(name: &str) -> PathBuf {
    Path::new(&given("MOL_TEST_LIB_DIR")).join(name)
}

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_shared_library_exports_nothing_but_mol_functions() {
    let output = succeed(
        Command::new("nm")
            .args(["--dynamic", "--defined-only"])
            .arg(library("libmol.so")),
    );
    let text = text(&output);
    let symbols: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split_whitespace().last())
        .collect();
    let foreign: Vec<_> = symbols
        .iter()
        .filter(|symbol| !symbol.starts_with("mol_"))
        .collect();
    assert!(foreign.is_empty(), "{foreign:?}");

    let mut exported = symbols.clone();
    exported.sort_unstable();
    assert_eq!(
        exported,
        declared_functions(),
        "the header has what the library has"
    );
}

/// The functions in the header, in the order of the alphabet.
pub fn declared_functions() -> Vec<String> {
    let header = read(source("include/mol.h"));
    let mut declared: Vec<String> = header
        .lines()
        .filter(|line| !line.trim_start().starts_with(['/', '*', ' ']))
        .filter_map(|line| line.split_once('(')?.0.rsplit([' ', '*']).next())
        .filter(|name| name.starts_with("mol_"))
        .map(str::to_owned)
        .collect();
    declared.sort_unstable();
    declared
}

#[test]
fn the_static_library_has_no_global_c_name_but_mol_functions() {
    // A host that links another Rust library, or a C library of the same name, must not clash. What
    // Rust itself names is mangled or begins with an underscore.
    let output = Command::new("nm")
        .args(["--extern-only", "--defined-only"])
        .arg(library("libmol.a"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let names: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split_whitespace().nth(2))
        .collect();
    assert!(names.contains(&"mol_ensure_local_image"));
    for name in names.iter().filter(|name| name.starts_with("mol")) {
        assert!(name.starts_with("mol_"), "{name}");
    }
}

/// What the shipped build is made of: no dev-dependencies.
fn features(of: &str) -> String {
    let manifest = source("Cargo.toml");
    let output = succeed(
        Command::new(env!("CARGO"))
            .args([
                "tree",
                "--offline",
                "--locked",
                "--edges",
                "features,normal",
                "--invert",
                of,
                "--manifest-path",
            ])
            .arg(manifest),
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn tokio_starts_no_process_and_handles_no_signal() {
    let tokio = features("tokio");
    assert!(
        tokio.contains("tokio feature \"net\""),
        "the test sees features: {tokio}"
    );
    for feature in ["process", "signal"] {
        assert!(
            !tokio.contains(&format!("tokio feature \"{feature}\"")),
            "tokio's {feature} is in the build"
        );
    }
    assert!(!tokio.contains("tokio feature \"full\""));
}

#[test]
fn no_signal_handler_is_in_the_build() {
    let manifest = source("Cargo.toml");
    let output = succeed(
        Command::new(env!("CARGO"))
            .args([
                "tree",
                "--offline",
                "--locked",
                "--edges",
                "normal",
                "--prefix",
                "none",
                "--manifest-path",
            ])
            .arg(manifest),
    );
    let tree = text(&output);
    for package in [
        "signal-hook ",
        "ctrlc ",
        "openssl-sys ",
        "native-tls ",
        "aws-lc-sys ",
    ] {
        assert!(
            !tree.lines().any(|line| line.starts_with(package)),
            "{package}is in the build"
        );
    }
    let once = |package: &str| {
        let mut versions: Vec<&str> = tree
            .lines()
            .filter(|line| line.starts_with(package))
            .map(|line| line.trim_end_matches(" (*)"))
            .collect();
        versions.sort_unstable();
        versions.dedup();
        assert_eq!(versions.len(), 1, "{versions:?}");
    };
    for package in ["rustls v", "ring v", "tokio v", "hyper v"] {
        once(package);
    }
}

#[test]
fn a_panic_unwinds_in_every_profile() {
    let manifest = read(source("Cargo.toml"));
    let mut profiles = 0;
    for section in manifest
        .split("\n[")
        .filter(|section| section.starts_with("profile."))
    {
        profiles += usize::from(section.contains("panic = \"unwind\""));
        assert!(!section.contains("panic = \"abort\""), "{section}");
    }
    assert!(profiles >= 2, "release and dev say so");
    const { assert!(cfg!(panic = "unwind")) }
}
