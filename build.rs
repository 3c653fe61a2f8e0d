//! Makes the C header from `src/ffi` and `cbindgen.toml`, and gives the shared library its name.
//!
//! The header goes to `OUT_DIR`; the one in `include/` is committed, and a test compares the two, so
//! that a build never writes into the source tree. `make generate` copies it over.

use std::path::PathBuf;
use std::{env, fs};

/// The files of `src/ffi` with the C interface, in the order of the header's sections.
const SOURCES: [&str; 7] = [
    "timeout", "types", "basics", "options", "client", "call", "free",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=src/ffi");
    println!("cargo::rerun-if-changed=cbindgen.toml");
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var("OUT_DIR")?).join("mol.h");
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml"))?;
    let builder = SOURCES.iter().fold(
        cbindgen::Builder::new().with_config(config),
        |builder, name| builder.with_src(root.join(format!("src/ffi/{name}.rs"))),
    );
    let mut header = Vec::new();
    builder.generate()?.write(&mut header);
    let header = tagged(&without_safety(&versioned(String::from_utf8(header)?)?));
    if env::var("CARGO_CFG_TARGET_OS")? == "linux" {
        println!(
            "cargo::rustc-cdylib-link-arg=-Wl,-soname,{}",
            soname(&header)?
        );
    }
    fs::write(&out, header)?;
    println!("cargo::rustc-env=MOL_GENERATED_HEADER={}", out.display());
    Ok(())
}

/// Fills in the version of the package.
fn versioned(header: String) -> Result<String, env::VarError> {
    ["VERSION_MAJOR", "VERSION_MINOR", "VERSION_PATCH", "VERSION"]
        .into_iter()
        .try_fold(header, |header, part| {
            let mark = format!("@{}@", part.trim_start_matches("VERSION_"));
            Ok(header.replace(&mark, &env::var(format!("CARGO_PKG_{part}"))?))
        })
}

/// Leaves out the sections for Rust readers: the parameters of a C function are described in its text.
fn without_safety(header: &str) -> String {
    let mut lines: Vec<&str> = Vec::new();
    let mut skipping = false;
    for line in header.lines() {
        if line == "// # Safety" {
            skipping = true;
            lines.pop(); // the empty line before it
        }
        skipping &= line.starts_with("//");
        if !skipping {
            lines.push(line);
        }
    }
    lines.join("\n") + "\n"
}

/// Gives each struct and enum a tag of the same name, so that a program can declare it without the header.
fn tagged(header: &str) -> String {
    let mut name = None;
    let lines = header.lines().rev().map(|line| {
        if let Some(end) = line.strip_prefix("} mol_") {
            name = end.strip_suffix(';');
        }
        let opening = line
            .strip_suffix(" {")
            .filter(|line| line.starts_with("typedef "));
        match (opening, name) {
            (Some(opening), Some(name)) => format!("{opening} mol_{name} {{"),
            _ => line.to_owned(),
        }
    });
    let mut lines: Vec<String> = lines.collect();
    lines.reverse();
    lines.join("\n") + "\n"
}

/// The soname, by which the dynamic linker finds the library. It has the version of the ABI, so that no program loads a
/// library with another ABI.
fn soname(header: &str) -> Result<String, &'static str> {
    let version = header
        .lines()
        .find_map(|line| line.strip_prefix("#define MOL_ABI_VERSION "))
        .ok_or("src/ffi has no MOL_ABI_VERSION")?;
    Ok(format!("libmol.so.{version}"))
}
