//! Makes the C header from `src/ffi`.
//!
//! The header goes to `OUT_DIR`; the one in `include/` is committed, and a test compares the two, so
//! that a build never writes into the source tree. `make generate` copies it over.

use std::path::PathBuf;
use std::{env, fs};

/// In the order in which a reader of the header wants them.
const SOURCES: [&str; 5] = ["types", "pure", "options", "client", "free"];

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
    fs::write(&out, header)?;
    println!("cargo::rustc-env=MOL_GENERATED_HEADER={}", out.display());
    Ok(())
}
