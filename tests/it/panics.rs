//! A panic in the library becomes an error of the call, with the panic's message and location, and has
//! no other effect. Tested through the libraries as hosts link them (promise P7).

use std::fs::File;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use mol::{Code, OptionName};

use crate::abi::declared_functions;
use crate::support::child::{
    BOTH, Link, command, compiler, host, installed, native_libraries, process, program_with_points,
    source, succeed, text, words,
};
use crate::support::points::{POINTS, Trigger, first_pass_until, prepare, setting, template};
use crate::support::{TestEnv, in_parallel, required_var, wait_until};

/// The output lines of a program that must succeed with an empty standard error.
fn lines(output: &Output) -> Vec<String> {
    assert!(output.status.success(), "{}", text(output));
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "",
        "standard error must be empty"
    );
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(str::to_owned).collect()
}

/// The line has the panic message and a source location that holds the failpoint.
fn assert_located(line: &str, name: &str) {
    let said = format!("boom at the point {name}");
    let place = line
        .split_once(&said)
        .unwrap_or_else(|| panic!("{said} in {line}"))
        .1;
    let (file, number) = place
        .split_once("src/")
        .and_then(|(_, place)| place.trim_end_matches(')').split_once(':'))
        .unwrap_or_else(|| panic!("file and line in {line}"));
    let file = format!("src/{file}");
    let text = std::fs::read_to_string(source(&file)).unwrap();
    let number: usize = number.parse().unwrap();
    let code = text.lines().nth(number - 1).unwrap();
    assert!(code.contains("point!("), "{file}:{number} is {code}");
}

#[test]
fn a_panic_in_any_entry_point_returns_an_error() {
    for link in BOTH {
        let mut panics = process(&program_with_points("panics", link));
        panics.env("FAILPOINTS", "entry=return(boom)");
        let output = panics.output().unwrap();
        let mut called = Vec::new();
        for line in lines(&output) {
            let mut words = line.splitn(3, ' ');
            called.push(words.next().unwrap().to_owned());
            if let Some(status) = words.next() {
                assert_eq!(status, Code::Internal.name(), "{line}");
                assert_located(words.next().unwrap(), "entry");
            }
        }
        called.sort_unstable();
        assert_eq!(called, declared_functions(), "a function was not called");
    }
}

#[test]
fn a_panic_anywhere_in_a_call_fails_that_call_only() {
    for link in BOTH {
        program_with_points("crowd", link);
    }
    // "entry" also fails the creation of the client.
    let points = POINTS.into_iter().filter(|(name, _)| *name != "entry");
    let cases = points.zip(BOTH.into_iter().cycle());
    in_parallel(cases, |(point, link)| panics_at(point, link));
}

fn panics_at(point: (&str, Trigger), link: Link) {
    let (name, trigger) = point;
    let env = TestEnv::new();
    template(&env);
    let callers = prepare(&env, trigger).to_string();
    let output = command(&env, &program_with_points("crowd", link))
        .env("FAILPOINTS", setting(point, "boom", true))
        .args([callers.as_str(), "0", "2", "hermes"])
        .output()
        .unwrap();
    let lines = lines(&output);
    let ends = |start: &str| {
        let found = lines.iter().filter(|line| line.starts_with(start));
        found.collect::<Vec<_>>()
    };
    let failed = ends("end 1 hermes internal ");
    assert_eq!(failed.len(), 1, "{name}: {lines:#?}");
    assert_located(failed[0], name);
    assert_eq!(
        ends("end 1 ").len().to_string(),
        callers,
        "{name}: one result per call"
    );
    assert_eq!(
        ends("end 2 hermes ok ").len().to_string(),
        callers,
        "{name}: {lines:#?}"
    );
    let paths = env.cached_paths();
    assert!(
        !paths.iter().any(|path| path.contains(".work")),
        "{name}: {paths:?}"
    );
}

#[test]
fn a_panic_in_a_shared_build_fails_all_its_callers() {
    let env = TestEnv::new();
    template(&env);
    let (printed, go) = (env.scratch().join("printed"), env.scratch().join("go"));
    let points = format!(
        "{};tree-ready=1*return(boom)",
        first_pass_until("lock-taken", &go)
    );
    let crowd = command(&env, &program_with_points("crowd", Link::Shared))
        .env("FAILPOINTS", points)
        .args(["20", "0", "2", "hermes"])
        .stdout(File::create(&printed).unwrap())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let printed = || std::fs::read(&printed).unwrap();
    wait_until("all but one to wait", || {
        let text = String::from_utf8_lossy(&printed()).into_owned();
        (text.matches("\"kind\":\"waiting\"").count() == 19).then_some(())
    });
    File::create(go).unwrap();
    let mut output = crowd.wait_with_output().unwrap();
    output.stdout = printed();
    let lines = lines(&output);
    let ends = |start: &str| lines.iter().filter(|line| line.starts_with(start)).count();
    assert_eq!(ends("end 1 hermes internal "), 20, "{lines:#?}");
    assert_eq!(ends("end 2 hermes ok "), 20, "{lines:#?}");
}

#[test]
fn a_token_in_a_panic_message_is_masked() {
    let env = TestEnv::new();
    template(&env);
    let token = "t0ken-0f-the-panic";
    let output = command(&env, &program_with_points("crowd", Link::Static))
        .env(OptionName::Token.name(), token)
        .env("FAILPOINTS", format!("tree-ready=1*return({token})"))
        .args(["1", "0", "1", "hermes"])
        .output()
        .unwrap();
    let lines = lines(&output);
    let end = lines
        .iter()
        .find(|line| line.starts_with("end 1 hermes internal "));
    assert!(end.is_some_and(|end| end.contains("***")), "{lines:#?}");
    assert!(!text(&output).contains(token), "{lines:#?}");
}

#[test]
fn the_shipped_library_has_no_failpoints() {
    let has_points = |folder: &str| {
        let library = std::fs::read(Path::new(&required_var(folder)).join("libmol.so")).unwrap();
        let name = b"FAILPOINTS";
        library.windows(name.len()).any(|window| window == name)
    };
    assert!(has_points("MOL_TEST_FAILPOINTS_LIB_DIR"));
    assert!(!has_points("MOL_TEST_LIB_DIR"));
}

/// The Rust compilers for the other library: that of the PATH, and those of `MOL_TEST_RUST_VERSIONS` ("1.85.0 beta").
fn rust_compilers() -> Vec<Command> {
    let versions = std::env::var("MOL_TEST_RUST_VERSIONS").unwrap_or_default();
    let others = versions.split_whitespace().map(|version| {
        let mut rustup = Command::new("rustup");
        rustup.args(["run", version, "rustc"]);
        rustup
    });
    std::iter::once(Command::new("rustc"))
        .chain(others)
        .collect()
}

/// How programs with libmol are linked: with shared libraries of the system, or as a static program. zig can do only one
/// of them for each target.
fn linker_flags() -> Vec<Vec<String>> {
    let shared = native_libraries();
    let of_target = words("MOL_TEST_CFLAGS");
    if std::env::var_os("MOL_TEST_CC").is_some() {
        // libmol.a for musl has its own libunwind; the other library needs one.
        let is_musl = std::env::var("MOL_TEST_TARGET").is_ok_and(|target| target.ends_with("musl"));
        let of_other = is_musl.then(|| "-lunwind".to_owned());
        return vec![[of_target, shared, Vec::from_iter(of_other)].concat()];
    }
    let mut of_static = shared.clone();
    // There is no static libgcc_s; gcc takes libgcc_eh by itself.
    of_static.retain(|library| library != "-lgcc_s");
    of_static.push("-static".to_owned());
    vec![shared, of_static]
}

#[test]
fn another_rust_static_library_can_be_in_the_same_program() {
    let profiles: [&[&str]; 3] = [
        &["-Copt-level=0"],
        &["-Copt-level=3", "-Clto=fat"],
        &["-Copt-level=s", "-Clto=thin", "-Ccodegen-units=1"],
    ];
    let target = std::env::var("MOL_TEST_TARGET").unwrap_or_else(|_| host());
    let libmol = Path::new(&required_var("MOL_TEST_FAILPOINTS_LIB_DIR")).join("libmol.a");
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("libother.a");
    for profile in profiles {
        for mut rustc in rust_compilers() {
            rustc
                .args(["--edition=2024", "--crate-type=staticlib"])
                .args(["--target", &target, "-o"])
                .arg(&other)
                .args(profile)
                .arg(source("tests/rust/other.rs"));
            succeed(&mut rustc);
            // The linker takes the first definition of a name that it finds, so both orders are tested.
            for libraries in [[&libmol, &other], [&other, &libmol]] {
                for flags in linker_flags() {
                    let program = folder.path().join("beside");
                    let mut cc = compiler(false);
                    cc.arg("-I")
                        .arg(source("include"))
                        .arg(source("tests/c/beside.c"));
                    cc.args(libraries).args(flags).arg("-o").arg(&program);
                    succeed(&mut cc);
                    assert_beside_works(&program, &format!("{rustc:?}"));
                }
            }
        }
    }
}

/// Each library catches its own panics.
fn assert_beside_works(program: &Path, what: &str) {
    for (points, status) in [("", "ok"), ("entry=return(boom)", "internal")] {
        let output = process(program).env("FAILPOINTS", points).output();
        let round = format!("other 2\nmol_resolve {status}\n");
        assert_eq!(text(&output.unwrap()), round.repeat(2), "{what}");
    }
}

#[test]
fn a_rust_host_keeps_its_panic_hook() {
    let folder = required_var("MOL_TEST_FAILPOINTS_LIB_DIR");
    let host = Path::new(env!("CARGO_TARGET_TMPDIR")).join("host");
    let installed = installed(Path::new(&folder), &host.with_extension("lib"));
    succeed(
        Command::new("rustc")
            .arg("--edition=2024")
            .arg(source("tests/rust/host.rs"))
            .args(["-L", &folder, "-l", "dylib=mol"])
            .arg(format!("-Clink-arg=-Wl,-rpath,{}", installed.display()))
            .arg("-o")
            .arg(&host),
    );
    let mut process = Command::new(host);
    // Cargo's LD_LIBRARY_PATH would load the library without failpoints.
    process.env_clear().env("FAILPOINTS", "entry=return(boom)");
    let output = process.output().unwrap();
    let status = format!("status {}", Code::Internal as i32);
    let counts = ["panics of the library seen 0", "own panics seen 1"];
    assert_eq!(lines(&output), [&status, counts[0], counts[1]]);
}
