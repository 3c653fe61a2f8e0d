//! What `make install` and the Go package give to somebody who has never seen this project: C programs
//! and Go servers that are built from nothing, in an empty folder, by the words of the documents.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::support::child::{command, compiler, soname, source, succeed, text};
use crate::support::header::Header;
use crate::support::server::dockerfile;
use crate::support::{Bed, given};

const PLAIN: &str = "FROM scratch\nCOPY Dockerfile /\n";

/// A Go server that asks for one image, and the library which one it is.
const SERVER: &str = r#"package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"git.moleculesai.app/molecule-ai/libmol/go/mol"
)

func main() {
	mol.SetLogger(nil)
	fmt.Println("library", mol.LibraryVersion())
	ref, err := mol.EnsureLocalImage(context.Background(), "hermes")
	if err != nil {
		fmt.Println("error", err)
		fmt.Println("unsupported", errors.Is(err, errors.ErrUnsupported))
		os.Exit(1)
	}
	fmt.Println("reference", ref)
}
"#;

/// What Rust calls this machine.
fn host() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

/// A folder with the libraries, as packaging/install takes it.
fn libraries(folder: &Path) -> &Path {
    std::fs::create_dir_all(folder).unwrap();
    let built = PathBuf::from(given("MOL_TEST_LIB_DIR"));
    for library in ["libmol.a", "libmol.so"] {
        let _ = std::fs::remove_file(folder.join(library));
        symlink(built.join(library), folder.join(library)).unwrap();
    }
    folder
}

/// Such a folder with the command in it as well, which is made once.
fn with_command() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("with-command");
        let mut make = Command::new(source("packaging/command"));
        succeed(make.arg(host()).arg(libraries(&folder).join("command")));
        folder
    })
}

/// Runs packaging/install with these settings, and returns what it says.
fn install(settings: &[(&str, &Path)], argument: impl AsRef<OsStr>) -> String {
    let platform = match std::env::consts::ARCH {
        "x86_64" => "linux_amd64",
        _ => "linux_arm64",
    };
    let mut install = Command::new(source("packaging/install"));
    install.arg(argument).env("PLATFORM", platform);
    for name in [
        "PREFIX",
        "DESTDIR",
        "BINDIR",
        "INCLUDEDIR",
        "LIBDIR",
        "DATADIR",
    ] {
        install.env_remove(name);
    }
    text(&succeed(install.envs(settings.iter().copied())))
}

/// Installs what the tests are about below `prefix`, and returns what pkg-config needs to find it.
fn installed(prefix: &Path) -> PathBuf {
    install(&[("PREFIX", prefix)], given("MOL_TEST_LIB_DIR"));
    prefix.join("lib/pkgconfig")
}

/// What pkg-config says of the library.
fn pkg_config(found_by: &Path, options: &[&str]) -> Vec<String> {
    let mut command = Command::new("pkg-config");
    let output = succeed(
        command
            .args(options)
            .arg("mol")
            .env("PKG_CONFIG_PATH", found_by),
    );
    let flags = text(&output);
    flags.split_whitespace().map(str::to_owned).collect()
}

/// All files and links below a folder, relative to it.
fn files(folder: &Path) -> Vec<String> {
    let output = succeed(
        Command::new("find")
            .arg(folder)
            .args(["-not", "-type", "d", "-printf", "%P\n"]),
    );
    let mut files: Vec<_> = text(&output).lines().map(str::to_owned).collect();
    files.sort();
    files
}

/// Builds the C program of the README by what pkg-config finds there, linked in both ways, and runs it.
fn the_readme_works(bed: &Bed, prefix: &Path) {
    let sha = bed.template("claude-code", dockerfile(PLAIN));
    let readme = std::fs::read_to_string(source("README.md")).unwrap();
    let program = readme.split("```c\n").nth(1).unwrap();
    let program = program.split("```").next().unwrap();
    let boot = bed.scratch().join("boot.c");
    std::fs::write(&boot, program).unwrap();

    for (how, options) in [
        (None, &["--cflags", "--libs"][..]),
        (Some("-static"), &["--cflags", "--libs", "--static"]),
    ] {
        let built = bed.scratch().join("boot");
        let mut compile = compiler(false);
        succeed(
            compile
                .args(how)
                .arg(&boot)
                .arg("-o")
                .arg(&built)
                .args(pkg_config(&prefix.join("lib/pkgconfig"), options)),
        );
        let mut boot = command(bed, &built);
        // As the dynamic linker finds it in a prefix of one's own.
        boot.env("LD_LIBRARY_PATH", prefix.join("lib"));
        let output = succeed(&mut boot);
        let reference = bed.reference("claude-code", &sha);
        assert_eq!(text(&output), format!("{reference}\n"));
        let needs = succeed(Command::new("readelf").arg("-d").arg(&built));
        let is_shared = text(&needs).contains(&format!("[{}]", soname()));
        assert_eq!(is_shared, how.is_none(), "{}", text(&needs));
    }
}

#[test]
fn the_c_program_of_the_readme_builds_with_nothing_but_pkg_config() {
    let bed = Bed::new();
    let prefix = bed.scratch().join("prefix");
    installed(&prefix);
    the_readme_works(&bed, &prefix);
}

#[test]
fn what_is_installed_is_complete_and_goes_away_again() {
    let bed = Bed::new();
    let (stage, prefix) = (bed.scratch().join("stage"), Path::new("/opt/mol & co"));
    let settings = [
        ("DESTDIR", &*stage),
        ("PREFIX", prefix),
        ("LIBDIR", Path::new("/opt/mol & co/lib/x86_64")),
    ];
    install(&settings, with_command());
    let root = stage.join("opt/mol & co");
    let soname = soname();
    let mut expected = vec![
        "bin/mol".to_owned(),
        "include/mol.h".to_owned(),
        "lib/x86_64/libmol.a".to_owned(),
        "lib/x86_64/libmol.so".to_owned(),
        format!("lib/x86_64/{soname}"),
        "lib/x86_64/pkgconfig/mol.pc".to_owned(),
        "share/bash-completion/completions/mol".to_owned(),
        "share/fish/vendor_completions.d/mol.fish".to_owned(),
        "share/licenses/libmol/GO-LICENSES.txt".to_owned(),
        "share/licenses/libmol/LICENSE-APACHE".to_owned(),
        "share/licenses/libmol/LICENSE-MIT".to_owned(),
        "share/licenses/libmol/THIRD-PARTY-LICENSES.txt".to_owned(),
        "share/man/man1/mol.1".to_owned(),
        "share/zsh/site-functions/_mol".to_owned(),
    ];
    expected.sort();
    assert_eq!(files(&root), expected);
    assert_eq!(files(&stage).len(), expected.len(), "nothing beside it");

    let library = root.join("lib/x86_64").join(&soname);
    let named = succeed(Command::new("readelf").arg("-d").arg(&library));
    assert!(text(&named).contains(&format!("soname: [{soname}]")));
    let link = std::fs::read_link(root.join("lib/x86_64/libmol.so")).unwrap();
    assert_eq!(link, Path::new(&soname));
    let about = std::fs::read_to_string(root.join("lib/x86_64/pkgconfig/mol.pc")).unwrap();
    assert!(!about.contains("stage"), "DESTDIR is in no file: {about}");
    assert!(about.contains("prefix=/opt/mol & co\n"), "{about}");
    assert!(about.contains(concat!("Version: ", env!("CARGO_PKG_VERSION"))));
    for (file, mode) in [
        ("bin/mol", 0o755),
        ("include/mol.h", 0o644),
        ("lib/x86_64/pkgconfig/mol.pc", 0o644),
    ] {
        let found = std::fs::metadata(root.join(file)).unwrap();
        assert_eq!(found.permissions().mode() & 0o777, mode, "{file}");
    }

    let says = |arguments: &[&str]| {
        let mut mol = Command::new(root.join("bin/mol"));
        text(&succeed(mol.args(arguments)))
    };
    assert!(says(&["version"]).contains(env!("CARGO_PKG_VERSION")));
    for (file, command) in [
        ("man/man1/mol.1", &["man"][..]),
        ("bash-completion/completions/mol", &["completion", "bash"]),
        ("zsh/site-functions/_mol", &["completion", "zsh"]),
        (
            "fish/vendor_completions.d/mol.fish",
            &["completion", "fish"],
        ),
    ] {
        let installed = std::fs::read_to_string(root.join("share").join(file)).unwrap();
        assert!(installed == says(command), "{file} is that of another mol");
    }
    let licences = root.join("share/licenses/libmol/GO-LICENSES.txt");
    let licences = std::fs::read_to_string(licences).unwrap();
    let linked = succeed(
        Command::new("go")
            .args(["version", "-m"])
            .arg(root.join("bin/mol")),
    );
    let linked = text(&linked);
    let modules = linked.lines().filter_map(|line| {
        let mut words = line.trim().strip_prefix("dep\t")?.split('\t');
        Some((words.next()?, words.next()?, words.next()?))
    });
    let mut seen = 0;
    // Those of this repository have no checksum, and the licence of the rest.
    for (module, version, _) in modules.filter(|(_, _, sum)| sum.starts_with("h1:")) {
        assert!(licences.contains(&format!("==== {module} {version}: ")));
        seen += 1;
    }
    assert!(seen > 10, "{linked}");

    std::fs::write(root.join("lib/x86_64/libother.a"), "").unwrap();
    install(&settings, "--undo");
    assert_eq!(files(&root), ["lib/x86_64/libother.a"]);
}

#[test]
fn without_go_the_library_is_installed_and_it_is_said_that_the_command_is_not() {
    let bed = Bed::new();
    let prefix = bed.scratch().join("prefix");
    let built = bed.scratch().join("built");
    let said = install(&[("PREFIX", &*prefix)], libraries(&built));
    assert!(said.contains("without the command mol"), "{said}");
    let files = files(&prefix);
    assert!(files.contains(&"lib/libmol.a".to_owned()), "{files:?}");
    assert!(!files.contains(&"bin/mol".to_owned()), "{files:?}");
}

#[test]
fn an_archive_of_make_dist_verifies_unpacks_anywhere_and_says_what_is_in_it() {
    const DATE: &str = "2023-11-14 22:13:20";
    let bed = Bed::new();
    let out = bed.scratch().join("out");
    let mut pack = Command::new(source("packaging/dist"));
    pack.arg("--built").arg(with_command()).arg(host());
    succeed(pack.arg(&out).env("SOURCE_DATE_EPOCH", "1700000000"));
    let name = format!("libmol-{}-{}", env!("CARGO_PKG_VERSION"), host());
    let archive = out.join(format!("{name}.tar.gz"));
    let verify = || {
        let mut sums = Command::new("sha256sum");
        let sums = sums.args(["--check", "SHA256SUMS"]).current_dir(&out);
        sums.output().unwrap().status.success()
    };
    assert!(verify());

    let listing = succeed(
        Command::new("tar")
            .args(["--full-time", "--numeric-owner", "-tvf"])
            .arg(&archive)
            .env("TZ", "UTC"),
    );
    for line in text(&listing).lines() {
        let is_ours = line.contains(&format!(" {DATE} {name}/"));
        assert!(is_ours && line.contains(" 0/0 "), "{line}");
    }
    let elsewhere = bed.scratch().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let mut unpack = Command::new("tar");
    succeed(
        unpack
            .arg("-xf")
            .arg(&archive)
            .arg("-C")
            .arg(&elsewhere)
            .arg("--no-same-owner"),
    );
    the_readme_works(&bed, &elsewhere.join(&name));
    let version = succeed(Command::new(elsewhere.join(&name).join("bin/mol")).arg("version"));
    assert!(text(&version).contains(env!("CARGO_PKG_VERSION")));

    let sbom = std::fs::read(elsewhere.join(&name).join("libmol.cdx.json")).unwrap();
    let sbom: serde_json::Value = serde_json::from_slice(&sbom).unwrap();
    assert_eq!(sbom["bomFormat"], "CycloneDX");
    let metadata = &sbom["metadata"];
    assert_eq!(metadata["timestamp"], "2023-11-14T22:13:20Z");
    assert_eq!(metadata["component"]["version"], env!("CARGO_PKG_VERSION"));
    let components: BTreeSet<_> = sbom["components"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| {
            format!(
                "{} {}",
                it["name"].as_str().unwrap(),
                it["version"].as_str().unwrap()
            )
        })
        .collect();
    let licences = source("packaging/THIRD-PARTY-LICENSES.txt");
    let licences = std::fs::read_to_string(licences).unwrap();
    let mut named = 0;
    for package in licences.lines().filter_map(|line| {
        let (package, address) = line.strip_prefix("  ")?.split_once("  ")?;
        address.starts_with("https://").then_some(package)
    }) {
        assert!(components.contains(package), "the SBOM lacks {package}");
        named += 1;
    }
    assert!(named > 200, "{named} packages in the licence texts");

    let mut bytes = std::fs::read(&archive).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&archive, bytes).unwrap();
    assert!(!verify());
}

/// A server in a module of its own, made with the commands of docs/integration.md.
fn server(bed: &Bed) -> PathBuf {
    let folder = bed.scratch().join("server");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("main.go"), SERVER).unwrap();
    let package = "git.moleculesai.app/molecule-ai/libmol/go/mol";
    let from = source("go/mol");
    for arguments in [
        &["mod", "init", "example.org/server"][..],
        &["mod", "edit", &format!("-require={package}@v0.0.0")],
        &[
            "mod",
            "edit",
            &format!("-replace={package}={}", from.display()),
        ],
    ] {
        succeed(&mut go(&folder, arguments));
    }
    folder
}

/// The go command, as a user has it who has set nothing.
fn go(folder: &Path, arguments: &[&str]) -> Command {
    let mut go = Command::new("go");
    go.args(arguments).current_dir(folder).envs([
        ("GOFLAGS", ""),
        ("GOWORK", "off"),
        ("CGO_ENABLED", "1"),
    ]);
    go
}

#[test]
fn a_go_server_builds_with_go_build_also_vendored() {
    let bed = Bed::new();
    let sha = bed.template("hermes", dockerfile(PLAIN));
    let server = server(&bed);
    for (prepare, build) in [
        (None, &["build", "-o", "server"][..]),
        (
            Some(["mod", "vendor"]),
            &["build", "-mod=vendor", "-o", "server"],
        ),
    ] {
        if let Some(prepare) = prepare {
            succeed(&mut go(&server, &prepare));
        }
        let _ = std::fs::remove_file(server.join("server"));
        succeed(&mut go(&server, build));
        let output = text(&succeed(&mut command(&bed, &server.join("server"))));
        let library = concat!("library ", env!("CARGO_PKG_VERSION"), "+");
        assert!(output.starts_with(library), "{output}");
        let reference = format!("reference {}\n", bed.reference("hermes", &sha));
        assert!(output.ends_with(&reference), "{output}");
    }
}

#[test]
fn a_go_server_takes_the_shared_library_and_no_other_than_its_own() {
    let bed = Bed::new();
    let sha = bed.template("hermes", dockerfile(PLAIN));
    let server = server(&bed);
    let found_by = installed(&bed.scratch().join("prefix"));
    let mut build = go(&server, &["build", "-tags", "mol_shared", "-o", "server"]);
    // Go keeps what pkg-config has said once, by the flags that it was given and not by the answer.
    let flags = format!("-O2 -g -DFOUND_BY={}", found_by.display());
    succeed(
        build
            .env("PKG_CONFIG_PATH", &found_by)
            .env("CGO_CFLAGS", flags),
    );
    let run = |libraries: &Path| {
        let mut command = command(&bed, &server.join("server"));
        command.env("LD_LIBRARY_PATH", libraries).output().unwrap()
    };
    let output = run(&bed.scratch().join("prefix/lib"));
    assert!(output.status.success(), "{}", text(&output));
    let reference = format!("reference {}\n", bed.reference("hermes", &sha));
    assert!(text(&output).ends_with(&reference), "{}", text(&output));

    // One of another ABI under this name, of which nothing but its number may be asked.
    let other = bed.scratch().join("other");
    std::fs::create_dir(&other).unwrap();
    let mut code = String::from("#include <stdlib.h>\n");
    for (name, _) in Header::read().functions() {
        let body = match name {
            "mol_abi_version" => "return 4711;",
            "mol_version" => "return (long)\"9.9.9\";",
            _ => "abort();",
        };
        code += &format!("long {name}(void) {{ {body} }}\n");
    }
    let file = other.join("other.c");
    std::fs::write(&file, code).unwrap();
    let mut compile = compiler(false);
    succeed(
        compile
            .args(["-shared", "-o"])
            .arg(other.join(soname()))
            .arg(&file),
    );
    let output = run(&other);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let ours = mol::ffi::pure::MOL_ABI_VERSION.to_string();
    for number in ["4711", &ours] {
        assert!(text(&output).contains(number), "{}", text(&output));
    }
}

#[test]
fn without_cgo_a_go_server_builds_and_says_what_is_missing() {
    let bed = Bed::new();
    let server = server(&bed);
    succeed(go(&server, &["build", "-o", "server"]).env("CGO_ENABLED", "0"));
    let output = command(&bed, &server.join("server")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output);
    assert!(told.contains("CGO_ENABLED=1"), "{told}");
    assert!(told.contains("unsupported true"), "{told}");
}
