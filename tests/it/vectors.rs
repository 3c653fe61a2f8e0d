//! The cases in tests/vectors, which the tests of the Go package also use, so that both languages agree.

use mol::names::registry::{RegistryMode, resolve};
use mol::names::runtimes::is_known_runtime;
use mol::redact::mask_token;
use mol::{Client, Code, OptionName};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use url::Url;

use crate::support::TestEnv;
use crate::support::child::source;
use crate::support::server::dockerfile;

fn cases<C: DeserializeOwned>(file: &str) -> Vec<C> {
    #[derive(Deserialize)]
    struct Vectors<C> {
        cases: Vec<C>,
    }
    let text = std::fs::read_to_string(source("tests/vectors").join(file)).unwrap();
    let vectors: Vectors<C> = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{file}: {e}"));
    assert!(!vectors.cases.is_empty());
    vectors.cases
}

#[test]
fn a_token_is_masked_in_every_spelling() {
    #[derive(Deserialize)]
    struct Case {
        name: String,
        text: String,
        token: String,
        want: String,
    }
    for case in cases::<Case>("mask_token.json") {
        assert_eq!(
            mask_token(&case.text, &case.token),
            case.want,
            "{}",
            case.name
        );
    }
}

#[test]
fn the_user_information_of_a_url_is_masked() {
    #[derive(Deserialize)]
    struct Case {
        name: String,
        url: String,
        want: String,
    }
    let mut cases = cases::<Case>("mask_url.json");
    // The core masks URLs within texts; a text that is not a URL only concerns the Go function.
    cases.retain(|case| Url::parse(&case.url).is_ok_and(|url| url.has_host()));
    assert!(!cases.is_empty());
    for case in cases {
        assert_eq!(mask_token(&case.url, ""), case.want, "{}", case.name);
    }
}

#[test]
fn the_registry_variable_sets_mode_and_prefix() {
    #[derive(Deserialize)]
    struct Case {
        name: String,
        value: Option<String>,
        mode: String,
        prefix: String,
    }
    for case in cases::<Case>("resolve.json") {
        let source = resolve(case.value.as_deref());
        let mode = match source.mode {
            RegistryMode::Local => "local",
            RegistryMode::Saas => "saas",
        };
        assert_eq!(
            (mode, source.prefix),
            (&*case.mode, &*case.prefix),
            "{}",
            case.name
        );
    }
}

#[test]
fn only_the_nine_default_runtimes_are_known() {
    #[derive(Deserialize)]
    struct Case {
        name: String,
        runtime: String,
        known: bool,
    }
    for case in cases::<Case>("is_known_runtime.json") {
        assert_eq!(is_known_runtime(&case.runtime), case.known, "{}", case.name);
    }
}

#[test]
fn image_references_match_the_contract() {
    use mol::names::commit::CommitSha;
    use mol::names::platform::Platform;
    use mol::names::reference::{Isolation, References, TagArch, TagRules};
    use mol::names::runtimes::Runtimes;
    #[derive(Deserialize)]
    struct Case {
        name: String,
        runtime: String,
        sha: String,
        platform: String,
        isolation: String,
        #[serde(default)]
        tag_arch: String,
        #[serde(default)]
        r#ref: String,
        #[serde(default)]
        latest_ref: String,
        error: Option<serde_json::Value>,
    }
    for case in cases::<Case>("image_refs.json") {
        let made = || {
            let platform = match case.platform.as_str() {
                "" => Platform::default(),
                text => Platform::parse(text)?,
            };
            Some(References::new(
                Runtimes::default().find(&case.runtime)?,
                &CommitSha::parse(&case.sha)?,
                &platform,
                &TagRules {
                    arch: match case.tag_arch.as_str() {
                        "always" => TagArch::Always,
                        _ => TagArch::Auto,
                    },
                    isolation: Isolation::parse(&case.isolation).ok()?,
                },
            ))
        };
        match (made(), &case.error) {
            (Some(references), None) => {
                assert_eq!(references.pinned, case.r#ref, "{}", case.name);
                assert_eq!(references.latest, case.latest_ref, "{}", case.name);
            }
            (None, Some(_)) => {}
            (made, error) => panic!("{}: {made:?}, but {error:?}", case.name),
        }
    }
}

#[test]
fn the_branch_url_matches_the_gitea_api() {
    #[derive(Deserialize)]
    struct Case {
        name: String,
        repo_prefix: String,
        runtime: String,
        branch: String,
        #[serde(default)]
        want: String,
        error: Option<String>,
        #[serde(default)]
        not_shown: Vec<String>,
    }
    let env = TestEnv::new();
    for case in cases::<Case>("branch_url.json") {
        // An empty option counts as unset, and an unknown runtime is refused earlier.
        if case.repo_prefix.is_empty() || case.branch.is_empty() || !is_known_runtime(&case.runtime)
        {
            continue;
        }
        let mut options = env.options();
        options.set(OptionName::Branch, &case.branch);
        if case.error.is_some() {
            options.set(OptionName::RepoPrefix, &case.repo_prefix);
            let error = Client::new(&options, None).expect_err(&case.name);
            assert_eq!(
                Some(error.code.name()),
                case.error.as_deref(),
                "{}",
                case.name
            );
            for secret in &case.not_shown {
                assert!(
                    !format!("{error:?}").contains(secret),
                    "{}: {error:?}",
                    case.name
                );
            }
            continue;
        }
        // The same path on the test's own server, which records its requests.
        let path = Url::parse(&case.repo_prefix).unwrap().path().to_owned();
        options.set(OptionName::RepoPrefix, &format!("{}{path}", env.server.url));
        let error = crate::support::TestClient::new(&options).ensure_err(&case.runtime);
        let wanted = Url::parse(&case.want).unwrap();
        let requested = &env.server.requests()[0].path;
        assert_eq!(requested, wanted.path(), "{}: {error:?}", case.name);
    }
}

#[test]
fn the_commit_id_is_read_from_the_branch_response_only() {
    #[derive(Deserialize)]
    struct Case {
        name: String,
        body: String,
        #[serde(default)]
        want: String,
        error: Option<String>,
        padded_to: Option<usize>,
    }
    let env = TestEnv::new();
    env.template("hermes", dockerfile("FROM scratch\n"));
    for case in cases::<Case>("head_sha.json") {
        let body = match case.padded_to {
            Some(length) => case.body.clone() + &" ".repeat(length - case.body.len()),
            None => case.body,
        };
        // If the branch response is too large, the ref request that follows gets the same large body.
        env.server
            .faults(json!([{ "match": "/api/", "status": 200, "body": body }]));
        let client = env.client();
        let error = client.ensure_err("hermes");
        match &case.error {
            Some(code) => assert_eq!(error.code.name(), code, "{}: {error:?}", case.name),
            None => {
                // The commit does not exist, so the lookup succeeds and the fetch fails.
                assert_eq!(error.code, Code::Fetch, "{}: {error:?}", case.name);
                let done = client.wait_for(mol::event::Kind::LookupDone, |_| true);
                assert_eq!(done.commit_sha, Some(case.want), "{}", case.name);
            }
        }
    }
}
