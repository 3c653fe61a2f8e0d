//! The ABI: the header, the symbols of the libraries, and what must not be in the build.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::child::{Link, program, source, strict_compiler, succeed, text};
use crate::support::header::{Declaration, Header};
use crate::support::required_var;

fn library(name: &str) -> PathBuf {
    Path::new(&required_var("MOL_TEST_LIB_DIR")).join(name)
}

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names that a library defines for the linker, sorted. `readelf`, unlike `nm`, reads those of every processor.
fn defined(table: &str, library: &Path) -> Vec<String> {
    let mut readelf = Command::new("readelf");
    readelf.args([table, "--wide"]).arg(library);
    let names: BTreeSet<String> = text(&succeed(&mut readelf))
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|symbol| symbol.len() == 8 && symbol[6] != "UND")
        .filter(|symbol| ["GLOBAL", "WEAK", "UNIQUE"].contains(&symbol[4]))
        .map(|symbol| symbol[7].to_owned())
        .collect();
    names.into_iter().collect()
}

fn size(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().len()
}

#[test]
fn the_shared_library_exports_nothing_but_mol_functions() {
    let names = defined("--dyn-syms", &library("libmol.so"));
    assert_eq!(names, declared_functions());
}

#[test]
fn the_shared_library_is_small() {
    let size = size(&library("libmol.so"));
    assert!(size <= 23 << 19, "{size} bytes, more than 11.5 MiB");
}

/// The functions in the header, sorted.
pub fn declared_functions() -> Vec<String> {
    let header = Header::read();
    let functions = header.functions().map(|(name, _)| name.to_owned());
    let mut declared: Vec<String> = functions.collect();
    declared.sort_unstable();
    declared
}

#[test]
fn the_abi_is_the_recorded_one() {
    let header = Header::read();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (code, layout) = (folder.join("layout.c"), folder.join("layout"));
    std::fs::write(&code, layout_program(&header)).unwrap();
    succeed(
        strict_compiler(false, "c11")
            .arg(&code)
            .arg("-o")
            .arg(&layout),
    );
    let now = text(&succeed(&mut Command::new(layout)));
    let agreed = source("tests/abi/mol.abi.txt");
    if std::fs::read_to_string(&agreed).ok().as_deref() != Some(&now) {
        let copy = folder.join("mol.abi.txt");
        std::fs::write(&copy, &now).unwrap();
        let difference = Command::new("diff")
            .arg("-u")
            .args([&agreed, &copy])
            .output()
            .unwrap();
        panic!(
            "the ABI has changed. If this is intended, and programs that were built with the old header still \
             work (otherwise increase MOL_ABI_VERSION): cp {} {}\n{}",
            copy.display(),
            agreed.display(),
            text(&difference)
        );
    }
}

/// A C program that prints the declarations of the header, with sizes and offsets.
fn layout_program(header: &Header) -> String {
    let mut code = String::from(
        "#include \"mol.h\"\n#include <stddef.h>\n#include <stdio.h>\nint main(void)\n{\n    \
         puts(\"# The declarations of include/mol.h, with the layout for 64-bit pointers.\");\n    \
         printf(\"MOL_ABI_VERSION %d\\n\", MOL_ABI_VERSION);\n    \
         printf(\"MOL_TIMEOUT_NONE %d\\n\", MOL_TIMEOUT_NONE);\n    \
         printf(\"MOL_TIMEOUT_CEILING %lld\\n\", (long long)MOL_TIMEOUT_CEILING);\n",
    );
    let mut say = |format: String, values: &str| {
        let _ = writeln!(code, "    printf(\"{format}\\n\"{values});");
    };
    for declaration in &header.declarations {
        match declaration {
            Declaration::Function { text, .. } => say(text.clone(), ""),
            Declaration::Enum { name, constants } => {
                say(
                    format!("enum {name} /* size %zu */"),
                    &format!(", sizeof(enum {name})"),
                );
                for constant in constants {
                    say(
                        format!("    {constant} = %d"),
                        &format!(", (int){constant}"),
                    );
                }
            }
            Declaration::Struct { name, fields } => {
                let sizes = format!(", sizeof(struct {name}), _Alignof(struct {name})");
                say(
                    format!("struct {name} /* size %zu, alignment %zu */"),
                    &sizes,
                );
                for (field, text) in fields {
                    let place =
                        format!(", offsetof({name}, {field}), sizeof((({name} *)0)->{field})");
                    say(format!("    {text} /* at %zu, size %zu */"), &place);
                }
            }
        }
    }
    code + "    return 0;\n}\n"
}

#[test]
fn every_parameter_of_every_function_has_a_refusal_test() {
    let header = Header::read();
    let declared: BTreeSet<String> = header
        .functions()
        .flat_map(|(name, parameters)| {
            let parameters = match parameters {
                [] => vec!["nothing".to_owned()],
                parameters => parameters.to_vec(),
            };
            parameters
                .into_iter()
                .map(move |parameter| format!("{name} {parameter}"))
        })
        .collect();
    assert_eq!(
        list("refusals"),
        declared,
        "tests/c/refusals.c has a case for each"
    );
    let functions: BTreeSet<String> = header
        .functions()
        .map(|(name, _)| name.to_owned())
        .collect();
    assert_eq!(
        list("random_calls"),
        functions,
        "tests/c/random_calls.c calls each"
    );
}

/// The list that a C program prints.
fn list(name: &'static str) -> BTreeSet<String> {
    let output = succeed(Command::new(program(name, Link::Static)).arg("--list"));
    text(&output).lines().map(str::to_owned).collect()
}

#[test]
fn the_static_library_exports_exactly_the_header_functions() {
    let names = defined("--symbols", &library("libmol.a"));
    assert_eq!(names, declared_functions());
}

#[test]
fn the_static_library_is_one_small_object_without_debug_information() {
    let library = library("libmol.a");
    let size = size(&library);
    assert!(size <= 19_000_000, "{size} bytes");
    let compressed = succeed(Command::new("gzip").arg("--stdout").arg(&library));
    let compressed = compressed.stdout.len();
    assert!(compressed <= 6_000_000, "{compressed} bytes compressed");
    let members = succeed(Command::new("ar").arg("t").arg(&library));
    assert_eq!(text(&members), "libmol.o\n");
    let sections = succeed(
        Command::new("readelf")
            .args(["--sections", "--wide"])
            .arg(&library),
    );
    for unwanted in [".debug_", ".llvm", ".comment"] {
        assert!(!text(&sections).contains(unwanted), "{unwanted}");
    }
}

/// The features of a package in the shipped build, which has no dev-dependencies.
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
fn tokio_is_built_without_process_and_signal_support() {
    let tokio = features("tokio");
    assert!(
        tokio.contains("tokio feature \"net\""),
        "the list has features: {tokio}"
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
fn the_build_has_no_signal_crate_and_one_tls_stack() {
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
    assert!(profiles >= 2, "in release and dev");
    const { assert!(cfg!(panic = "unwind")) }
}
