//! An engine with endless or deliberately expensive answers: the call fails with an error that names what
//! was too large, and uses little memory. A real engine cannot be made to send such answers, so a proxy
//! sends them instead.

use std::time::{Duration, Instant};

use mol::upkeep::prune::PruneOptions;
use mol::{Code, OptionName};

use crate::support::child::{Peak, peak};
use crate::support::server::dockerfile;
use crate::support::{End, Handling, Proxy, TestEnv, block_on, unique};

/// The library's memory limit, whatever it receives (promise P9).
const MAX_MIB: u64 = 512;

/// A call must fail within this time, on a busy machine too. It includes the start of its process.
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// Options besides the engine.
type Options<'a> = &'a [(OptionName, &'a str)];

const HEAD: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";

fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

/// An answer that starts with `begin` and repeats `more` forever, in chunks of about 64 KiB.
fn endless(begin: &str, more: &str) -> Handling {
    let more = more.repeat((64 << 10) / more.len() + 1);
    let head = format!("{HEAD}{}", chunk(begin));
    Handling::Endless(head.into_bytes(), chunk(&more).into_bytes())
}

/// An endless answer with chunks of one byte.
fn endless_bytes(begin: &str) -> Handling {
    let head = format!("{HEAD}{}", chunk(begin));
    let more = "1\r\n \r\n".repeat(10_000);
    Handling::Endless(head.into_bytes(), more.into_bytes())
}

/// A complete answer of about `size` bytes: `begin`, `more` repeated, `end`.
fn complete(begin: &str, more: &str, end: &str, size: usize) -> Handling {
    let body = format!("{begin}{}{end}", more.repeat(size / more.len()));
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length:";
    Handling::Answer(
        format!("{head} {}\r\n\r\n{body}", body.len()).into_bytes(),
        End::Stay,
    )
}

/// Makes a call in a separate process against an engine whose requests to `path` get `handling`.
fn at(path: &'static str, handling: &Handling, more: &[(OptionName, &str)]) -> (Peak, Duration) {
    let env = TestEnv::new();
    env.template(
        "hermes",
        dockerfile(&format!("FROM scratch\nCOPY Dockerfile /{}\n", unique())),
    );
    let handling = handling.clone();
    let proxy = Proxy::start(&env.engine, env.scratch(), move |line| {
        match line.contains(path) && !line.contains("/session") {
            true => handling.clone(),
            false => Handling::Pass,
        }
    });
    let mut options = vec![(OptionName::DockerHost, proxy.url.as_str())];
    options.extend_from_slice(more);
    let begun = Instant::now();
    let peak = peak(&env, &options, None);
    (peak, begun.elapsed())
}

#[test]
fn an_endless_engine_answer_is_refused_in_little_memory() {
    let offline = [(OptionName::Offline, "1")];
    let image = r#"{"Id":"sha256:x","RepoTags":[],"Created":1,"Size":1},"#;
    // The numbers must be consecutive: any other line counts as output.
    let step = |number| format!("{{\"stream\":\"Step {number}/5000 : RUN x\\n\"}}\n");
    let steps: String = (1..=5000).map(step).collect();
    let rows: [(&'static str, Handling, Options<'_>, &str); 13] = [
        ("/version", endless("{", " "), &[], "/version"),
        (
            "/version",
            endless("{\"Components\":[", "{},"),
            &[],
            "/version",
        ),
        ("/version", endless("{\"Version\":\"", "x"), &[], "/version"),
        ("/version", endless_bytes("{"), &[], "pieces of a few bytes"),
        (
            "/images/",
            endless("{\"Id\":\"x\",\"RepoTags\":[", "\"\","),
            &[],
            "/images/molecule-local/",
        ),
        (
            "/images/",
            endless("{\"Id\":\"x\",\"Config\":{\"Labels\":{", "\"a\":\"\","),
            &[],
            "/images/",
        ),
        ("/images/", endless_bytes("{"), &[], "pieces of a few bytes"),
        (
            "/images/json",
            endless("[", image),
            &offline,
            "/images/json",
        ),
        (
            "/images/json",
            endless_bytes("["),
            &offline,
            "pieces of a few bytes",
        ),
        (
            "/images/json",
            endless("[{\"Id\":\"", "x"),
            &offline,
            "/images/json",
        ),
        (
            "/build?",
            endless("{\"stream\":\"", "x"),
            &[(OptionName::DockerBuildkit, "0")],
            "message",
        ),
        ("/build?", endless("{\"aux\":\"", "A"), &[], "message"),
        (
            "/build?",
            endless(&steps, " "),
            &[(OptionName::DockerBuildkit, "0")],
            "4096 steps",
        ),
    ];
    for (path, handling, options, named) in rows {
        let (peak, took) = at(path, &handling, options);
        let what = format!("{path} {named} {took:?} {peak:?}");
        println!("{what}");
        assert_eq!(peak.status, "engine_unreachable", "{what}");
        assert!(peak.message.contains(named), "{what}");
        assert!(peak.message.contains("proxy.sock"), "{what}");
        assert!(peak.growth_mib < MAX_MIB / 2, "{what}");
        assert!(took < TIME_LIMIT, "{what}");
    }
}

#[test]
fn an_endless_engine_error_is_reported_in_little_memory() {
    for path in ["/version", "/images/", "/build?"] {
        let head = HEAD.replace("200 OK", "500 Internal Server Error");
        let more = chunk(&"x".repeat(64 << 10));
        let handling = Handling::Endless(head.into_bytes(), more.into_bytes());
        let (peak, took) = at(path, &handling, &[]);
        println!("{path} {took:?} {peak:?}");
        assert!(
            ["engine_unreachable", "build_failed"].contains(&&*peak.status),
            "{peak:?}"
        );
        assert!(peak.message.contains("Internal Server Error"), "{peak:?}");
        assert!(
            peak.growth_mib < 64 && took < TIME_LIMIT,
            "{took:?} {peak:?}"
        );
    }
}

#[test]
fn an_expensive_answer_within_the_limits_costs_little_memory() {
    let offline = [(OptionName::Offline, "1")];
    let list = 60 << 20;
    let named = r#"{"Id":"","RepoTags":["molecule-local/"],"Created":1,"Size":1},"#;
    let last = r#"{"Id":"","Created":1,"Size":1}]"#;
    // A StatusResponse of empty vertexes (`0a 00`), logs (`1a 00`) and warnings (`22 00`).
    let empty_parts = ["CgAKAAoA", "GgAaABoA", "IgAiACIA"];
    let mut rows: Vec<(&'static str, Handling, Options<'_>)> = vec![
        (
            "/images/",
            complete("{\"Id\":\"x\",\"RepoTags\":[", "\"\",", "\"\"]}", 4_000_000),
            &[],
        ),
        (
            "/images/",
            complete("{\"Id\":\"x\",\"RepoDigests\":[", "{},", "{}]}", 4_000_000),
            &[],
        ),
        ("/images/json", complete("[", named, last, list), &offline),
        (
            "/images/json",
            complete("[", r#"{"Id":"","Created":1,"Size":1},"#, last, list),
            &offline,
        ),
        (
            "/images/json",
            complete("[{\"Id\":\"\",\"RepoTags\":[", "\"\",", "\"\"]}]", list),
            &offline,
        ),
        (
            "/images/json",
            complete("[{\"Id\":\"\",\"x\":[", "[],", "[]]}]", list),
            &offline,
        ),
    ];
    for parts in empty_parts {
        rows.push((
            "/build?",
            complete("{\"aux\":\"", parts, "\"}\n", 8_000_000),
            &[],
        ));
    }
    let classic: &[(OptionName, &str)] = &[(OptionName::DockerBuildkit, "0")];
    rows.push((
        "/build?",
        complete("{\"stream\":\"", "a\\n", "\"}\n", 2_000_000),
        classic,
    ));
    for (path, handling, options) in rows {
        let (peak, took) = at(path, &handling, options);
        let start = match &handling {
            Handling::Answer(bytes, _) => String::from_utf8_lossy(&bytes[70..140]).into_owned(),
            _ => String::new(),
        };
        let what = format!("{path} {start:?} {took:?} {peak:?}");
        println!("{what}");
        // The answer was read: it is refused for its content, or says that there is no image.
        let outcomes = [
            "sent an answer",
            "sent progress",
            "there is no image",
            "does not exist",
        ];
        let expected = outcomes.iter().any(|text| peak.message.contains(text));
        assert!(expected, "{what}");
        assert!(peak.growth_mib < MAX_MIB / 2, "{what}");
        // No limit is exceeded; this only bounds the time of the call.
        assert!(took < Duration::from_secs(60), "{what}");
    }
}

#[test]
fn an_endless_list_fails_a_prune_and_is_named() {
    let env = TestEnv::new();
    env.template(
        "hermes",
        dockerfile(&format!("FROM scratch\nCOPY Dockerfile /{}\n", unique())),
    );
    env.client().ensure("hermes").unwrap();
    for path in ["/images/json", "/containers/json"] {
        let folder = env.scratch().join(path.replace('/', "-"));
        std::fs::create_dir(&folder).unwrap();
        let handling = endless(
            "[",
            r#"{"Id":"x","Names":["/x"],"ImageID":"y","Created":1,"Size":1},"#,
        );
        let proxy = Proxy::start(&env.engine, &folder, move |line| {
            match line.contains(path) {
                true => handling.clone(),
                false => Handling::Pass,
            }
        });
        let client = env.client_with(&[(OptionName::DockerHost, &proxy.url)]);
        let begun = Instant::now();
        let error = block_on(client.inner().prune(PruneOptions::default()).wait(None)).unwrap_err();
        assert_eq!(error.code, Code::EngineUnreachable, "{error:?}");
        let says = format!("sent more than 64.0 MiB in answer to {path}");
        assert!(error.message().contains(&says), "{error:?}");
        assert!(begun.elapsed() < TIME_LIMIT, "{:?}", begun.elapsed());
    }
}
