//! A released version, as a user without Rust gets it: with the go command and a C compiler, from a Go module proxy.
//!
//! tests/shipped runs these tests with the libraries of a release too, also with that for musl.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::packaging::{SERVER, files};
use crate::support::child::{command, host, source, succeed, text};
use crate::support::server::{PLAIN, dockerfile};
use crate::support::{TestEnv, required_var};

const MODULES: &str = "git.moleculesai.app/molecule-ai/libmol/go";

/// The versions in the proxy, and the library of each: that of the second has failpoints.
const VERSIONS: [(&str, &str); 2] = [
    ("0.2.0", "MOL_TEST_LIB_DIR"),
    ("0.2.1", "MOL_TEST_FAILPOINTS_LIB_DIR"),
];

fn is_musl() -> bool {
    std::env::var("MOL_TEST_PLATFORM").is_ok_and(|platform| platform.starts_with("musl_"))
}

/// The Rust targets in the proxy: that of the library, and another one, of which only the name matters.
fn targets() -> [String; 2] {
    match (is_musl(), std::env::consts::ARCH) {
        (true, _) => [host().replace("-gnu", "-musl"), host()],
        (false, "x86_64") => [host(), "aarch64-unknown-linux-gnu".to_owned()],
        (false, _) => [host(), "x86_64-unknown-linux-gnu".to_owned()],
    }
}

/// The proxy, made once.
fn proxy() -> &'static Path {
    static PROXY: OnceLock<TempDir> = OnceLock::new();
    PROXY
        .get_or_init(|| {
            let folder = tempfile::tempdir().unwrap();
            for (version, libraries) in VERSIONS {
                succeed(&mut release(version, libraries, folder.path()));
            }
            folder
        })
        .path()
}

/// Adds a version to a proxy.
fn release(version: &str, libraries: &str, folder: &Path) -> Command {
    let library = PathBuf::from(required_var(libraries)).join("libmol.a");
    let mut release = Command::new(source("packaging/release"));
    release.args(["--built", version]).arg(folder);
    release.args(targets().map(|target| format!("{target}={}", library.display())));
    release
}

/// The lines of the README that set the variables of the go command.
fn exports() -> String {
    let readme = std::fs::read_to_string(source("README.md")).unwrap();
    let lines = readme.lines().map(str::trim);
    let exports: Vec<_> = lines.filter(|line| line.starts_with("export ")).collect();
    assert_eq!(exports.len(), 2, "{exports:?}");
    exports.join("\n")
}

/// The linker flags of docs/integration.md for a static program. glibc needs none.
fn linker_flags() -> String {
    match is_musl() {
        true => {
            let flags = required_var("MOL_TEST_CFLAGS");
            format!("-linkmode=external \"-extldflags={flags} -Wl,-s\"")
        }
        false => String::new(),
    }
}

/// The flags for Go without cgo.
const WITHOUT_CGO: &str = "-modcacherw -trimpath";

/// A user's machine: the go command, a C compiler, and nothing of this repository.
struct User {
    home: TempDir,
}

impl User {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join("bin")).unwrap();
        // For musl the C compiler is that of MOL_TEST_CC.
        let programs = match is_musl() {
            true => &["go"][..],
            false => &["go", "gcc", "as", "ld"],
        };
        for program in programs {
            let found = std::env::split_paths(&std::env::var_os("PATH").unwrap())
                .map(|folder| folder.join(program))
                .find(|path| path.exists())
                .unwrap_or_else(|| panic!("no {program}"));
            symlink(found, home.path().join("bin").join(program)).unwrap();
        }
        Self { home }
    }

    /// An empty folder of the user's, with a server's source text.
    fn server(&self) -> PathBuf {
        let folder = self.home.path().join("server");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("main.go"), SERVER).unwrap();
        succeed(&mut self.go(&folder, "mod init example.org/server"));
        folder
    }

    /// The go command. Modules other than libmol's come from this machine's module cache, or from its
    /// GOPROXY.
    fn go(&self, folder: &Path, arguments: &str) -> Command {
        let here = |name| {
            let output = succeed(Command::new("go").args(["env", name]));
            text(&output).trim().to_owned()
        };
        let var = |name| std::env::var(name).unwrap();
        let others = format!(
            "file://{}/cache/download,{}",
            here("GOMODCACHE"),
            here("GOPROXY")
        );
        // With the proxy of the tests in place of the README's.
        let script = exports().replace("https://goproxy.example.com", "$PROXY");
        let mut go = Command::new("/bin/sh");
        go.args(["-e", "-c", &format!("{script}\nexec go \"$@\""), "go"]);
        go.args(arguments.split_whitespace()).current_dir(folder);
        go.env_clear().envs([
            ("HOME", self.home.path().display().to_string()),
            ("PATH", self.home.path().join("bin").display().to_string()),
            ("PROXY", format!("file://{}", proxy().display())),
            ("GOPROXY", others),
            ("GOSUMDB", here("GOSUMDB")),
            ("GOFLAGS", WITHOUT_CGO.to_owned()),
            ("GOTOOLCHAIN", "local".to_owned()),
            // Only saves time, as -trimpath does: the standard library is compiled once.
            ("GOCACHE", here("GOCACHE")),
        ]);
        if is_musl() {
            // The compiler is a script, which needs the programs of this machine.
            let (path, home, cc) = (var("PATH"), var("HOME"), var("MOL_TEST_CC"));
            let cc = format!("/usr/bin/env PATH={path} HOME={home} {cc}");
            let flags = format!("{WITHOUT_CGO} -tags=musl '-ldflags={}'", linker_flags());
            go.envs([("CC", cc), ("GOFLAGS", flags)]);
        }
        let network = ["SSL_CERT_FILE", "SSL_CERT_DIR"];
        go.envs(
            network
                .into_iter()
                .filter_map(|name| Some((name, std::env::var_os(name)?))),
        );
        go
    }
}

fn go_mod_text(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("go.mod")).unwrap()
}

#[test]
fn a_server_builds_with_go_get_alone() {
    let env = TestEnv::new();
    let sha = env.template("hermes", dockerfile(PLAIN));
    let user = User::new();
    let server = user.server();
    let works = || {
        let output = text(&succeed(&mut command(&env, &server.join("server"))));
        let library = concat!("library ", env!("CARGO_PKG_VERSION"), "+");
        assert!(output.starts_with(library), "{output}");
        let reference = format!("reference {}\n", env.reference("hermes", &sha));
        assert!(output.ends_with(&reference), "{output}");
    };
    // The server has the library of v0.2.1.
    let is_updated = || {
        let server = std::fs::read(server.join("server")).unwrap();
        let name = b"FAILPOINTS";
        server.windows(name.len()).any(|window| window == name)
    };
    succeed(&mut user.go(&server, &format!("get {MODULES}/mol@v0.2.0")));
    succeed(&mut user.go(&server, "build -o server"));
    works();
    assert!(!is_updated());

    succeed(&mut user.go(&server, "get -u ./..."));
    let modules = go_mod_text(&server);
    let updated = 1 + targets().len();
    assert_eq!(modules.matches(" v0.2.1").count(), updated, "{modules}");
    assert!(!modules.contains("v0.2.0"), "{modules}");
    succeed(&mut user.go(&server, "mod tidy"));
    succeed(&mut user.go(&server, "build -o server"));
    works();
    assert!(is_updated());

    succeed(&mut user.go(&server, "mod vendor"));
    std::fs::remove_file(server.join("server")).unwrap();
    succeed(&mut user.go(&server, "build -mod=vendor -o server"));
    works();
}

/// v0.2.1 has failpoints.
#[test]
fn a_panic_in_the_library_is_an_error_of_the_server() {
    let env = TestEnv::new();
    let user = User::new();
    let server = user.server();
    succeed(&mut user.go(&server, &format!("get {MODULES}/mol@v0.2.1")));
    succeed(&mut user.go(&server, "build -o server"));
    let mut process = command(&env, &server.join("server"));
    let output = process.env("FAILPOINTS", "entry=return(boom)").output();
    let said = text(&output.unwrap());
    assert!(said.contains("error a defect in libmol"), "{said}");
    assert!(said.contains("boom at the point entry"), "{said}");
}

/// The README's settings add to the user's, who may have private modules of their own.
#[test]
fn the_settings_of_the_readme_keep_those_of_the_user() {
    let user = User::new();
    let mut print = user.go(user.home.path(), "env GOPRIVATE GONOPROXY GONOSUMDB");
    let own = "corp.example.com";
    let output = succeed(print.env("GOPRIVATE", own));
    let without_sums = format!("git.moleculesai.app,{own}");
    let expected = format!("{own}\n{own}\n{without_sums}\n");
    assert_eq!(text(&output), expected);
}

#[test]
fn go_build_downloads_only_the_library_that_it_links() {
    let user = User::new();
    let server = user.server();
    succeed(&mut user.go(&server, &format!("get {MODULES}/mol@v0.2.0")));
    succeed(&mut user.go(&server, "mod tidy"));
    let cache = user.home.path().join("empty");
    succeed(user.go(&server, "build").env("GOMODCACHE", &cache));

    let libraries = cache.join("cache/download").join(MODULES).join("mol/lib");
    let mut zips = files(&libraries);
    zips.retain(|file| file.ends_with(".zip"));
    let mut platform = Command::new(source("packaging/platform"));
    let platform = text(&succeed(platform.arg(&targets()[0])));
    let expected = format!("{}/@v/v0.2.0.zip", platform.trim());
    assert_eq!(zips, [&*expected]);
    let size = libraries.join(expected).metadata().unwrap().len();
    assert!(size <= 6_000_000, "{size} bytes");
}

#[test]
fn the_library_adds_at_most_12_mb_to_a_go_program() {
    let user = User::new();
    let server = user.server();
    succeed(&mut user.go(&server, &format!("get {MODULES}/mol@v0.2.0")));
    let size = |cgo, flags: &str| {
        let mut build = user.go(&server, "build -o server");
        build.arg(format!("-ldflags=-s -w {flags}"));
        succeed(build.env("CGO_ENABLED", cgo));
        server.join("server").metadata().unwrap().len()
    };
    let growth = size("1", &linker_flags()) - size("0", "");
    assert!(growth <= 12_000_000, "{growth} bytes");
}

/// Going back to an older version leaves the library at the newer one.
#[test]
fn a_library_of_another_version_than_the_package_does_not_compile() {
    let user = User::new();
    let server = user.server();
    for version in ["v0.2.1", "v0.2.0"] {
        succeed(&mut user.go(&server, &format!("get {MODULES}/mol@{version}")));
    }
    let output = user.go(&server, "build").output().unwrap();
    assert!(!output.status.success());
    let said = text(&output);
    assert!(said.contains("undefined: lib.V0_2_0"), "{said}");

    let modules = go_mod_text(&server);
    let modules = modules.lines().filter(|line| !line.contains("/mol/lib/"));
    let modules: String = modules.map(|line| format!("{line}\n")).collect();
    std::fs::write(server.join("go.mod"), modules).unwrap();
    succeed(&mut user.go(&server, "mod tidy"));
    succeed(&mut user.go(&server, "build"));
}

#[test]
fn the_command_is_installed_with_go_install() {
    let user = User::new();
    let install = format!("install {MODULES}/cmd/mol@v0.2.0");
    succeed(&mut user.go(user.home.path(), &install));
    let mol = user.home.path().join("go/bin/mol");
    let output = text(&succeed(Command::new(&mol).arg("version")));
    let versions = concat!("mol v0.2.0\nlibmol ", env!("CARGO_PKG_VERSION"), "+");
    assert!(output.starts_with(versions), "{output}");
    let segments = succeed(Command::new("readelf").arg("-l").arg(&mol));
    let is_static = !text(&segments).contains("INTERP");
    assert_eq!(is_static, is_musl());

    // Without a C compiler, everything that needs no library.
    let mut without_cgo = user.go(user.home.path(), &install);
    succeed(without_cgo.envs([("CGO_ENABLED", "0"), ("GOFLAGS", WITHOUT_CGO)]));
    let mol = |arguments: &[&str]| Command::new(&mol).args(arguments).output().unwrap();
    for (arguments, says) in [
        (&["resolve"][..], "local molecule-local"),
        (&["version"], "mol v0.2.0"),
        (&["ensure", "--help"], "mol ensure"),
        (&["completion", "fish"], "complete -c mol"),
    ] {
        let output = mol(arguments);
        assert!(output.status.success(), "{output:?}");
        assert!(text(&output).contains(says), "{output:?}");
    }
    let output = mol(&["ensure", "hermes"]);
    assert!(!output.status.success());
    assert!(text(&output).contains("CGO_ENABLED=1"), "{output:?}");
}

/// The packages that a server's author may want besides go/mol and the command.
#[test]
fn every_other_module_builds_from_the_proxy() {
    let user = User::new();
    let server = user.server();
    for package in ["templateserver", "workspace", "examples/provisioner/..."] {
        succeed(&mut user.go(&server, &format!("get {MODULES}/{package}@v0.2.0")));
        succeed(&mut user.go(&server, &format!("build {MODULES}/{package}")));
    }
    let manifests = files(proxy()).into_iter();
    let mut manifests = manifests.filter(|file| file.ends_with(".mod")).peekable();
    assert!(manifests.peek().is_some());
    for manifest in manifests {
        let said = std::fs::read_to_string(proxy().join(&manifest)).unwrap();
        assert!(!said.contains("replace"), "{manifest}: {said}");
    }
}

/// The release of the glibc tests has no musl library; that of the musl tests has both.
#[test]
fn a_build_for_the_wrong_c_library_fails_and_says_why() {
    let user = User::new();
    let server = user.server();
    succeed(&mut user.go(&server, &format!("get {MODULES}/mol@v0.2.0")));
    let (tags, said) = match is_musl() {
        true => ("", "for musl, build with -tags musl"),
        false => ("musl", "libmol v0.2.0 is not released for musl_linux_"),
    };
    let build = format!("build -tags={tags}");
    let output = user.go(&server, &build).output().unwrap();
    assert!(!output.status.success());
    assert!(text(&output).contains(said), "{output:?}");
}

#[test]
fn a_second_release_of_a_version_has_the_same_bytes() {
    let again = tempfile::tempdir().unwrap();
    let (version, libraries) = VERSIONS[0];
    succeed(&mut release(version, libraries, again.path()));
    let difference = Command::new("diff")
        .args(["-r", "--exclude=list", "--exclude=v0.2.1.*"])
        .arg(proxy())
        .arg(again.path())
        .output()
        .unwrap();
    assert!(difference.status.success(), "{}", text(&difference));
}

#[test]
fn a_released_version_is_not_overwritten() {
    let (version, libraries) = VERSIONS[0];
    let output = release(version, libraries, proxy()).output().unwrap();
    assert!(!output.status.success());
    assert!(
        text(&output).contains("release another version"),
        "{output:?}"
    );
}

/// A repository with one commit: the files of this checkout, including uncommitted changes.
fn checkout() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let script = r#"
        git -C "$root" ls-files -z | tar -C "$root" --null -T - -c | tar -x
        git init --quiet
        git add --all
        git -c user.name=test -c user.email=test@example.org commit --quiet --message test
    "#;
    let mut shell = Command::new("sh");
    shell.args(["-e", "-c", script]).env("root", source(""));
    succeed(shell.current_dir(folder.path()));
    folder
}

/// What `make release` says when it refuses.
fn refusal(checkout: &Path, version: &str) -> String {
    let mut make = Command::new("make");
    // When another make calls it (as `make test` does), make also prints the folders that it enters, in quotes.
    make.args(["--no-print-directory", "release"])
        .arg(format!("VERSION={version}"));
    let output = make.current_dir(checkout).output().unwrap();
    assert!(!output.status.success());
    text(&output)
}

#[test]
fn a_release_needs_a_version_and_a_clean_tree() {
    let checkout = checkout();
    let said = refusal(checkout.path(), "");
    assert!(said.contains("set VERSION, for example"), "{said}");

    std::fs::write(checkout.path().join("new"), "").unwrap();
    let said = refusal(checkout.path(), env!("CARGO_PKG_VERSION"));
    assert!(said.contains("changes that are not committed"), "{said}");
}

#[test]
fn a_release_needs_the_same_version_in_every_file() {
    // Other packages also have this version: the check must not be satisfied by theirs.
    let (old, new) = (env!("CARGO_PKG_VERSION"), "0.2.0");
    let checkout = checkout();
    let git = |script: &str| {
        let mut shell = Command::new("sh");
        let script = format!(
            "{script}\ngit -c user.name=test -c user.email=test@example.org commit --quiet --all --message test"
        );
        succeed(
            shell
                .args(["-e", "-c", &script])
                .current_dir(checkout.path()),
        );
    };
    let places = [
        ("Cargo.toml", "version = \"VERSION\""),
        ("include/mol.h", "\"VERSION\""),
        ("go/mol/mol.h", "\"VERSION\""),
        ("packaging/libmol.cdx.json", "cargo/mol@VERSION"),
        ("packaging/libmol-macos.cdx.json", "cargo/mol@VERSION"),
        ("packaging/homebrew/mol.rb", "version \"VERSION\""),
        ("packaging/alpine/APKBUILD", "pkgver=VERSION"),
    ];
    for (file, line) in places {
        if file != "Cargo.toml" {
            let said = refusal(checkout.path(), new);
            assert!(
                said.contains(&format!("{file} has another version")),
                "{said}"
            );
        }
        let (from, to) = (line.replace("VERSION", old), line.replace("VERSION", new));
        git(&format!("sed -i 's|{from}|{to}|' {file}"));
    }
}

/// The commands of the message work although cargo is called with --locked everywhere.
#[test]
fn a_release_of_another_version_says_how_to_set_it() {
    let checkout = checkout();
    let said = refusal(checkout.path(), "9.9.9");
    let current = concat!("Cargo.toml has the version ", env!("CARGO_PKG_VERSION"));
    assert!(said.contains(current), "{said}");
    let commands: Vec<&str> = said.split('\'').skip(1).step_by(2).collect();
    let [update, "make generate licences"] = commands[..] else {
        panic!("{said}");
    };

    let manifest = checkout.path().join("Cargo.toml");
    let old = std::fs::read_to_string(&manifest).unwrap();
    let version = concat!("version = \"", env!("CARGO_PKG_VERSION"), "\"");
    std::fs::write(&manifest, old.replacen(version, "version = \"9.9.9\"", 1)).unwrap();
    let mut update: Vec<&str> = update.split_whitespace().collect();
    let mut cargo = Command::new(update.remove(0));
    succeed(cargo.args(update).current_dir(checkout.path()));
    let mut tree = Command::new("cargo");
    tree.args(["tree", "--locked", "--offline", "--depth=0"]);
    let tree = text(&succeed(tree.current_dir(checkout.path())));
    assert!(tree.starts_with("mol v9.9.9"), "{tree}");
}
