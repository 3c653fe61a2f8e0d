//! `make install` and the Go package as a new user finds them: C programs and Go servers are built in
//! an empty folder with the commands of the documents.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::support::child::{command, compiler, host, platform, soname, source, succeed, text};
use crate::support::header::Header;
use crate::support::server::{PLAIN, dockerfile};
use crate::support::{TestEnv, required_var};

/// A Go server that ensures one image and prints the library version.
pub const SERVER: &str = r#"package main

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

/// A folder with the libraries, as packaging/install expects it.
fn libraries(folder: &Path) -> &Path {
    std::fs::create_dir_all(folder).unwrap();
    let built = PathBuf::from(required_var("MOL_TEST_LIB_DIR"));
    for library in ["libmol.a", "libmol.so"] {
        let _ = std::fs::remove_file(folder.join(library));
        symlink(built.join(library), folder.join(library)).unwrap();
    }
    folder
}

/// The same with the `mol` command, built once.
fn with_command() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("with-command");
        let mut make = Command::new(source("packaging/command"));
        succeed(make.arg(host()).arg(libraries(&folder).join("command")));
        folder
    })
}

/// Runs packaging/install with these settings and returns its output.
fn install(settings: &[(&str, &Path)], argument: impl AsRef<OsStr>) -> String {
    let mut install = Command::new(source("packaging/install"));
    install.arg(argument).env("PLATFORM", platform());
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

/// Installs the library under test below `prefix` and returns the folder for PKG_CONFIG_PATH.
fn installed(prefix: &Path) -> PathBuf {
    install(&[("PREFIX", prefix)], required_var("MOL_TEST_LIB_DIR"));
    prefix.join("lib/pkgconfig")
}

/// The flags that pkg-config prints for the library.
fn pkg_config(pkg_config_path: &Path, options: &[&str]) -> Vec<String> {
    let mut command = Command::new("pkg-config");
    let output = succeed(
        command
            .args(options)
            .arg("mol")
            .env("PKG_CONFIG_PATH", pkg_config_path),
    );
    let flags = text(&output);
    flags.split_whitespace().map(str::to_owned).collect()
}

/// All files and links below a folder, relative to it.
pub fn files(folder: &Path) -> Vec<String> {
    let output = succeed(
        Command::new("find")
            .arg(folder)
            .args(["-not", "-type", "d", "-printf", "%P\n"]),
    );
    let mut files: Vec<_> = text(&output).lines().map(str::to_owned).collect();
    files.sort();
    files
}

/// Builds the C program of the README with pkg-config, linked dynamically and statically, and runs it.
fn the_readme_works(env: &TestEnv, prefix: &Path) {
    let sha = env.template("claude-code", dockerfile(PLAIN));
    let readme = std::fs::read_to_string(source("README.md")).unwrap();
    let program = readme.split("```c\n").nth(1).unwrap();
    let program = program.split("```").next().unwrap();
    let boot = env.scratch().join("boot.c");
    std::fs::write(&boot, program).unwrap();

    for (link_flag, options) in [
        (None, &["--cflags", "--libs"][..]),
        (Some("-static"), &["--cflags", "--libs", "--static"]),
    ] {
        let built = env.scratch().join("boot");
        let mut compile = compiler(false);
        succeed(
            compile
                .args(link_flag)
                .arg(&boot)
                .arg("-o")
                .arg(&built)
                .args(pkg_config(&prefix.join("lib/pkgconfig"), options)),
        );
        let mut boot = command(env, &built);
        // For the dynamic linker: the prefix is not a system folder.
        boot.env("LD_LIBRARY_PATH", prefix.join("lib"));
        let output = succeed(&mut boot);
        let reference = env.reference("claude-code", &sha);
        assert_eq!(text(&output), format!("{reference}\n"));
        let needs = succeed(Command::new("readelf").arg("-d").arg(&built));
        let is_shared = text(&needs).contains(&format!("[{}]", soname()));
        assert_eq!(is_shared, link_flag.is_none(), "{}", text(&needs));
    }
}

#[test]
fn the_readme_c_program_builds_with_pkg_config_alone() {
    let env = TestEnv::new();
    let prefix = env.scratch().join("prefix");
    installed(&prefix);
    the_readme_works(&env, &prefix);
}

#[test]
fn make_install_needs_no_rust_and_the_dynamic_linker_finds_the_library() {
    let built = tempfile::tempdir().unwrap();
    libraries(&built.path().join("release/package"));
    let program = built.path().join("program.c");
    std::fs::write(
        &program,
        "#include <mol.h>\nint main(void) { return mol_abi_version() != MOL_ABI_VERSION; }\n",
    )
    .unwrap();
    // In a mount namespace, so that neither /usr/local nor the linker's cache of this machine change.
    let script = r#"
        cp -a /etc "$built/etc" && mount --bind "$built/etc" /etc && mount -t tmpfs tmpfs /usr/local
        make -C "$root" install CARGO=false TARGET_DIR="$built" >/dev/null
        cc "$built/program.c" -lmol -o "$built/program" && "$built/program"
        make -C "$root" uninstall >/dev/null
        if ldconfig -p | grep libmol; then exit 1; fi
        find /usr/local -not -type d
    "#;
    let mut shell = Command::new("unshare");
    shell.args(["--mount", "sh", "-e", "-c", script]);
    shell
        .env_clear()
        .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin");
    shell.env("built", built.path()).env("root", source(""));
    let left = succeed(&mut shell).stdout;
    assert_eq!(String::from_utf8_lossy(&left), "");
}

#[test]
fn without_rust_and_a_build_make_install_says_what_to_run() {
    let empty = tempfile::tempdir().unwrap();
    let output = Command::new("make")
        .arg("-C")
        .arg(source(""))
        .arg("install")
        .arg(format!("TARGET_DIR={}", empty.path().display()))
        .arg(format!("DESTDIR={}", empty.path().display()))
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .output()
        .unwrap();
    assert!(!output.status.success());
    let text = text(&output);
    assert!(text.contains("first run make as the user"), "{text}");
    assert!(!text.contains("cargo"), "{text}");
}

#[test]
fn install_is_complete_and_uninstall_removes_it() {
    let env = TestEnv::new();
    let (stage, prefix) = (env.scratch().join("stage"), Path::new("/opt/mol & co"));
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
    assert_eq!(
        files(&stage).len(),
        expected.len(),
        "nothing outside the prefix"
    );

    let version = succeed(Command::new(root.join("bin/mol")).arg("version"));
    let expected = concat!("mol v", env!("CARGO_PKG_VERSION"), "\n");
    assert!(text(&version).starts_with(expected), "{version:?}");

    let library = root.join("lib/x86_64").join(&soname);
    let named = succeed(Command::new("readelf").arg("-d").arg(&library));
    assert!(text(&named).contains(&format!("soname: [{soname}]")));
    let link = std::fs::read_link(root.join("lib/x86_64/libmol.so")).unwrap();
    assert_eq!(link, Path::new(&soname));
    let pc_file = std::fs::read_to_string(root.join("lib/x86_64/pkgconfig/mol.pc")).unwrap();
    assert!(
        !pc_file.contains("stage"),
        "DESTDIR is in mol.pc: {pc_file}"
    );
    assert!(pc_file.contains("prefix=/opt/mol & co\n"), "{pc_file}");
    assert!(pc_file.contains(concat!("Version: ", env!("CARGO_PKG_VERSION"))));
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
        assert!(
            installed == says(command),
            "{file} differs from what this mol prints"
        );
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
    // Modules of this repository have no checksum and are covered by its own licence.
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
fn without_go_install_skips_the_command_and_says_so() {
    let env = TestEnv::new();
    let prefix = env.scratch().join("prefix");
    let built = env.scratch().join("built");
    let said = install(&[("PREFIX", &*prefix)], libraries(&built));
    assert!(said.contains("the command mol was not built"), "{said}");
    let files = files(&prefix);
    assert!(files.contains(&"lib/libmol.a".to_owned()), "{files:?}");
    assert!(!files.contains(&"bin/mol".to_owned()), "{files:?}");
}

#[test]
fn the_dist_archive_verifies_relocates_and_has_an_sbom() {
    const DATE: &str = "2023-11-14 22:13:20";
    let env = TestEnv::new();
    let out = env.scratch().join("out");
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
    let elsewhere = env.scratch().join("elsewhere");
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
    the_readme_works(&env, &elsewhere.join(&name));
    let version = succeed(Command::new(elsewhere.join(&name).join("bin/mol")).arg("version"));
    assert!(text(&version).contains(env!("CARGO_PKG_VERSION")));

    let sbom = std::fs::read(elsewhere.join(&name).join("libmol.cdx.json")).unwrap();
    let sbom: serde_json::Value = serde_json::from_slice(&sbom).unwrap();
    assert_eq!(sbom["bomFormat"], "CycloneDX");
    let metadata = &sbom["metadata"];
    assert_eq!(metadata["timestamp"], "2023-11-14T22:13:20Z");
    assert_eq!(metadata["component"]["version"], env!("CARGO_PKG_VERSION"));
    let macos = std::fs::read(source("packaging/libmol-macos.cdx.json")).unwrap();
    let macos: serde_json::Value = serde_json::from_slice(&macos).unwrap();
    let components: BTreeSet<_> = [&sbom, &macos]
        .into_iter()
        .flat_map(|sbom| sbom["components"].as_array().unwrap())
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
        assert!(components.contains(package), "no SBOM has {package}");
        named += 1;
    }
    assert!(named > 200, "{named} packages in the licence texts");

    let mut bytes = std::fs::read(&archive).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&archive, bytes).unwrap();
    assert!(!verify());
}

/// A server in its own Go module, created with the commands of docs/integration.md.
fn server(env: &TestEnv) -> PathBuf {
    let folder = env.scratch().join("server");
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

#[test]
fn without_the_archive_go_build_names_the_command_that_builds_it() {
    let package = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(source("go/mol")).unwrap() {
        let from = entry.unwrap().path();
        let name = from.file_name().unwrap().to_str().unwrap().to_owned();
        if from.is_file() && !name.starts_with("libmol_") {
            std::fs::copy(from, package.path().join(name)).unwrap();
        }
    }
    for (arguments, goal) in [
        (&["build", "."][..], "lib"),
        (&["build", "-tags", "musl", "."], "musl"),
    ] {
        let output = go(package.path(), arguments).output().unwrap();
        assert!(!output.status.success());
        let advice = format!("run \"make {goal}\" in the root of libmol");
        let output = text(&output);
        assert_eq!(output.matches("error:").count(), 1, "{output}");
        assert!(output.contains(&advice), "{output}");
    }
}

/// The go command without the user's settings. The tests' other programs are built with -trimpath too, so the standard
/// library is compiled once.
fn go(folder: &Path, arguments: &[&str]) -> Command {
    let mut go = Command::new("go");
    go.args(arguments).current_dir(folder).envs([
        ("GOFLAGS", "-trimpath"),
        ("GOWORK", "off"),
        ("CGO_ENABLED", "1"),
    ]);
    go
}

#[test]
fn a_go_server_builds_from_the_module_and_vendored() {
    let env = TestEnv::new();
    let sha = env.template("hermes", dockerfile(PLAIN));
    let server = server(&env);
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
        let output = text(&succeed(&mut command(&env, &server.join("server"))));
        let library = concat!("library ", env!("CARGO_PKG_VERSION"), "+");
        assert!(output.starts_with(library), "{output}");
        let reference = format!("reference {}\n", env.reference("hermes", &sha));
        assert!(output.ends_with(&reference), "{output}");
    }
}

#[test]
fn a_go_server_rejects_a_shared_library_of_another_abi() {
    let env = TestEnv::new();
    let sha = env.template("hermes", dockerfile(PLAIN));
    let server = server(&env);
    let pkg_config_path = installed(&env.scratch().join("prefix"));
    let mut build = go(&server, &["build", "-tags", "mol_shared", "-o", "server"]);
    // Go's build cache keys on the flags given, not on the output of pkg-config, so this path is put into the flags.
    let flags = format!("-O2 -g -DFOUND_BY={}", pkg_config_path.display());
    succeed(
        build
            .env("PKG_CONFIG_PATH", &pkg_config_path)
            .env("CGO_CFLAGS", flags),
    );
    let run = |libraries: &Path| {
        let mut command = command(&env, &server.join("server"));
        command.env("LD_LIBRARY_PATH", libraries).output().unwrap()
    };
    let output = run(&env.scratch().join("prefix/lib"));
    assert!(output.status.success(), "{}", text(&output));
    let reference = format!("reference {}\n", env.reference("hermes", &sha));
    assert!(text(&output).ends_with(&reference), "{}", text(&output));

    // A library of another ABI under the same name. Calling anything but the two version functions aborts.
    let other = env.scratch().join("other");
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
    let ours = mol::ffi::basics::MOL_ABI_VERSION.to_string();
    for number in ["4711", &ours] {
        assert!(text(&output).contains(number), "{}", text(&output));
    }
}

#[test]
fn without_cgo_a_go_server_builds_and_reports_what_is_missing() {
    let env = TestEnv::new();
    let server = server(&env);
    succeed(go(&server, &["build", "-o", "server"]).env("CGO_ENABLED", "0"));
    let output = command(&env, &server.join("server")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let output = text(&output);
    assert!(output.contains("CGO_ENABLED=1"), "{output}");
    assert!(output.contains("unsupported true"), "{output}");
}

#[test]
fn missing_programs_for_another_target_are_named_before_the_build() {
    let folder = tempfile::tempdir().unwrap();
    for program in ["bash", "dirname", "uname"] {
        symlink(
            Path::new("/usr/bin").join(program),
            folder.path().join(program),
        )
        .unwrap();
    }
    let output = Command::new(source("packaging/prelink"))
        .args(["--check", "aarch64-unknown-linux-gnu"])
        .env("PATH", folder.path())
        .output()
        .unwrap();
    assert!(!output.status.success());
    let text = text(&output);
    for part in ["no ld.bfd", "binutils-aarch64-linux-gnu"] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn a_library_that_needs_a_newer_glibc_is_not_packed() {
    let check = |glibc| {
        let mut check = Command::new(source("packaging/dist"));
        check
            .arg("--check-glibc")
            .arg(required_var("MOL_TEST_LIB_DIR"));
        check.env("GLIBC", glibc).output().unwrap()
    };
    let output = check("2.17");
    assert!(!output.status.success());
    let said = "and must not need more than 2.17";
    assert!(text(&output).contains(said), "{output:?}");
    assert!(check("99.0").status.success());
}
