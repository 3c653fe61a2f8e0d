//! Makes the C header from `src/ffi`, and gives the shared library its name.
//!
//! The header goes to `OUT_DIR`; the one in `include/` is committed, and a test compares the two, so
//! that a build never writes into the source tree. `make generate` copies it over.

use std::path::PathBuf;
use std::{env, fs};

/// In the order in which a reader of the header wants them.
const SOURCES: [&str; 6] = ["types", "pure", "options", "client", "upkeep", "free"];

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
    // What an argument must be is part of a C function's description, not a chapter of its own.
    let header = String::from_utf8(header)?.replace("// # Safety\n//\n", "");
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

/// What programs ask the dynamic linker for: another name for each version of the ABI, so that none
/// gets a library that it was not built for.
fn soname(header: &str) -> Result<String, &'static str> {
    let version = header
        .lines()
        .find_map(|line| line.strip_prefix("#define MOL_ABI_VERSION "))
        .ok_or("src/ffi has no MOL_ABI_VERSION")?;
    Ok(format!("libmol.so.{version}"))
}
