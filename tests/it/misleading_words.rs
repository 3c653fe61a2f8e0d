//! Text that a template prints, runs or uses as a name has no effect on the library's decisions: whether a build is
//! retried, which error it gets, which step runs.

use mol::event::Kind;
use mol::{Code, OptionName};

use crate::support::engine::{BUSYBOX, Engine, builders};
use crate::support::server::dockerfile;
use crate::support::{Handling, Proxy, TestClient, TestEnv, in_parallel, unique};

/// A client, and the proxy that records its requests to the engine.
fn client(env: &TestEnv, engine: &Engine, buildkit: &str) -> (TestClient, Proxy) {
    let proxy = Proxy::start(engine, env.scratch(), |_| Handling::Pass);
    let client = env.client_with(&[
        (OptionName::DockerHost, &proxy.url),
        (OptionName::DockerBuildkit, buildkit),
    ]);
    (client, proxy)
}

#[test]
fn a_failed_command_is_build_failed_whatever_it_prints() {
    let commands = [
        ("looking for duplicate output files", 3),
        ("duplicate output 0", 3),
        (
            "unable to find image \\\"sha256:4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945\\\"",
            3,
        ),
        ("exec format error", 1),
        ("sh: exec format error", 1),
        ("Exec format error", 255),
        ("exec /bin/sh: exec format error", 3),
        ("operating system is not supported", 5),
        ("write /x: no space left on device", 4),
        ("rpc error: code = Unavailable desc = no active session", 6),
        ("exit code: 7 non-zero code: 8 exit status 9", 3),
        ("context canceled", 2),
    ];
    let builders = builders();
    let rows: Vec<_> = builders
        .iter()
        .flat_map(|builder| commands.iter().map(move |command| (builder, command)))
        .collect();
    in_parallel(
        rows.iter(),
        |((_, engine, buildkit), (words, exit_code))| {
            let env = TestEnv::new();
            let word = unique();
            let text =
                format!("FROM {BUSYBOX}\nRUN echo \"{words}\"; : {word}; exit {exit_code}\n");
            env.template("hermes", dockerfile(&text));
            let (client, proxy) = client(&env, engine, buildkit);
            let _images = engine.keep_images();
            let error = client.ensure_err("hermes");
            let what = format!("{} {buildkit} {words}: {error:?}", engine.url);
            assert_eq!(error.code, Code::BuildFailed, "{what}");
            assert!(
                !error.message().contains("the disk of the engine"),
                "{what}"
            );
            let build = error.build.expect("the error has build details");
            assert_eq!(build.exit_code, *exit_code, "{what}");
            assert_eq!(build.line, 2, "{what}");
            assert_eq!(proxy.sent().matches("/build?").count(), 1, "{what}");
        },
    );
}

#[test]
fn error_phrases_in_a_dockerfile_do_not_change_the_error() {
    let dockerfiles = [
        "FROM scratch\nCOPY [\"no space left on device\", \"/\"]\n",
        "FROM scratch\nSTOPSIGNAL no space left on device\n",
        "FROM scratch\nSTOPSIGNAL x: no space left on device\n",
        "FROM scratch\nSTOPSIGNAL non-zero code: 5\n",
        "FROM scratch\nSTOPSIGNAL exit code: 5\n",
        "FROM scratch\nCOPY [\"duplicate output 0\", \"/\"]\n",
        "FROM scratch\nCOPY [\"exec format error\", \"/\"]\n",
        "FROM scratch\nCOPY --from=duplicate-output / /\nOPERATING system is not supported\n",
        "FROM localhost:1/no-active-session\nRUN true\n",
    ];
    let builders = builders();
    let rows: Vec<_> = builders
        .iter()
        .flat_map(|builder| dockerfiles.iter().map(move |text| (builder, *text)))
        .collect();
    in_parallel(rows.iter(), |((_, engine, buildkit), text)| {
        let env = TestEnv::new();
        env.template("hermes", dockerfile(text));
        let (client, proxy) = client(&env, engine, buildkit);
        let _images = engine.keep_images();
        let error = client.ensure_err("hermes");
        let what = format!("{} {buildkit} {text}: {error:?}", engine.url);
        assert_eq!(error.code, Code::BuildFailed, "{what}");
        assert!(
            !error.message().contains("the disk of the engine"),
            "{what}"
        );
        assert_eq!(error.build.unwrap_or_default().exit_code, 0, "{what}");
        assert_eq!(proxy.sent().matches("/build?").count(), 1, "{what}");
    });
}

/// Not tested with Podman, which mixes standard output with standard error, to which the container runtime writes.
#[test]
fn a_command_cannot_imitate_the_container_runtime_on_stdout() {
    for (_, engine, buildkit) in &builders()[..2] {
        for print in ["echo", "printf"] {
            let env = TestEnv::new();
            let text = format!(
                "FROM {BUSYBOX}\nRUN {print} \"exec /bin/sh: exec format error\"; : {}; exit 1\n",
                unique()
            );
            env.template("hermes", dockerfile(&text));
            let (client, _proxy) = client(&env, engine, buildkit);
            let error = client.ensure_err("hermes");
            assert_eq!(
                error.code,
                Code::BuildFailed,
                "{buildkit} {print}: {error:?}"
            );
        }
    }
}

#[test]
fn output_that_looks_like_a_step_is_logged_as_output() {
    for (_, engine, buildkit) in builders() {
        let env = TestEnv::new();
        let lines = [
            "Step 4/4 : RUN fake",
            "STEP 9/9: RUN fake",
            " ---> Using cache",
            " ---> Running in 0123456789ab",
            "--> Using cache of pip",
            "Removing intermediate container 0123456789ab",
            "Successfully installed pip",
            "[internal] load build context",
            "exporting to image",
        ];
        let echo: String = lines
            .iter()
            .map(|line| format!("echo \"{line}\"; "))
            .collect();
        let text = format!(
            "FROM {BUSYBOX}\nENV A=b\nRUN {echo}: {}\nRUN echo last line\n",
            unique()
        );
        env.template("hermes", dockerfile(&text));
        let (client, _proxy) = client(&env, &engine, buildkit);
        {
            let _images = engine.keep_images();
            client.ensure("hermes").unwrap();
        }
        let logged: Vec<_> = client
            .of_kind(Kind::Log)
            .into_iter()
            .filter_map(|event| event.line)
            .collect();
        for line in lines.iter().chain(&["last line"]) {
            assert!(logged.contains(&(*line).to_owned()), "{line}: {logged:?}");
        }
        let steps: Vec<_> = client
            .of_kind(Kind::StepStarted)
            .into_iter()
            .filter_map(|event| event.step_name)
            .collect();
        assert!(
            !steps.iter().any(|step| step.contains("] RUN fake")),
            "{steps:?}"
        );
        assert!(
            steps
                .iter()
                .any(|step| step.contains("] RUN echo last line")),
            "{steps:?}"
        );
        engine.remove_all_of(&env.isolation);
    }
}
