//! When an existing image is used, and when it is rebuilt.

use mol::event::Kind;
use mol::{Code, OptionName};

use crate::support::engine::{BUSYBOX, Engine};
use crate::support::server::{PLAIN, dockerfile};
use crate::support::{Handling, Proxy, TestEnv, unique};

/// Gives `image` the reference of this commit of `runtime`.
fn tag_as(env: &TestEnv, image: &str, runtime: &str, sha: &str) {
    env.engine.tag(image, &env.reference(runtime, sha));
}

#[test]
fn an_image_without_labels_counts_as_a_hit() {
    let env = TestEnv::new();
    let sha = env.template("hermes", dockerfile(PLAIN));
    tag_as(&env, BUSYBOX, "hermes", &sha);
    let client = env.client();
    let image = client.ensure("hermes").unwrap();
    assert!(image.cache_hit);
    assert_eq!(Some(image.image_id), env.engine.id(BUSYBOX));
    assert_eq!(client.count(Kind::BuildStarted), 0);
}

#[test]
fn an_image_labelled_with_another_commit_is_rebuilt() {
    let env = TestEnv::new();
    env.template("autogen", dockerfile(PLAIN));
    let other = env.client().ensure("autogen").unwrap();
    let sha = env.template(
        "hermes",
        dockerfile("FROM scratch\nCOPY Dockerfile /hermes\n"),
    );
    tag_as(&env, &other.reference, "hermes", &sha);

    let client = env.client();
    let image = client.ensure("hermes").unwrap();
    assert!(!image.cache_hit);
    assert_eq!(
        env.engine
            .files(&image.reference)
            .keys()
            .collect::<Vec<_>>(),
        ["hermes"]
    );
    let reason = client.wait_for(Kind::CacheMiss, |_| true).reason.unwrap();
    assert!(reason.contains(&other.commit_sha), "{reason}");
    client.wait_for(Kind::Warning, |event| {
        event.message.contains(&other.commit_sha)
    });
    assert!(
        client.ensure("hermes").unwrap().cache_hit,
        "the rebuilt image is a hit"
    );
}

#[test]
fn an_image_for_another_platform_is_rebuilt() {
    let env = TestEnv::new();
    let sha = env.template("hermes", dockerfile(PLAIN));
    // An engine for amd64 runs this as well.
    let other = env
        .client_with(&[(OptionName::Platform, "linux/386")])
        .ensure("hermes")
        .unwrap();
    assert_eq!(
        env.engine
            .inspect(&other.reference)
            .unwrap()
            .architecture
            .as_deref(),
        Some("386")
    );
    tag_as(&env, &other.reference, "hermes", &sha);

    let client = env.client();
    let image = client.ensure("hermes").unwrap();
    assert!(!image.cache_hit);
    assert_eq!(
        env.engine
            .inspect(&image.reference)
            .unwrap()
            .architecture
            .as_deref(),
        Some("amd64")
    );
    let reason = client.wait_for(Kind::CacheMiss, |_| true).reason.unwrap();
    assert!(reason.contains("386"), "{reason}");
    let warning = client.wait_for(Kind::Warning, |_| true);
    assert!(warning.message.contains("386"), "{warning:?}");
    assert!(warning.hint.is_some(), "{warning:?}");
    assert!(client.ensure("hermes").unwrap().cache_hit);
}

#[test]
fn a_base_for_another_platform_fails_or_gives_an_image_that_hits() {
    const ARM64: &str = "localhost/libmol-test-arm64:base";
    let docker = Engine::of_the_tests();
    let podman = Engine::podman_of_the_tests();
    for (engine, buildkit) in [(&docker, "1"), (&docker, "0"), (&podman, "1")] {
        engine.load_image_for("arm64", ARM64);
        for from in [ARM64.to_owned(), format!("--platform=linux/arm64 {ARM64}")] {
            let env = TestEnv::new();
            let text = format!("FROM {from}\nCOPY Dockerfile /{}\n", unique());
            env.template("hermes", dockerfile(&text));
            let client = env.client_with(&[
                (OptionName::DockerHost, &engine.url),
                (OptionName::DockerBuildkit, buildkit),
            ]);
            let what = format!("{} {buildkit} {from}", engine.url);
            let images = engine.keep_images();
            let first = client.ensure("hermes");
            match first {
                Ok(_) => assert!(client.ensure("hermes").unwrap().cache_hit, "{what}"),
                Err(error) => {
                    assert_eq!(error.code, Code::BuildFailed, "{what}: {error:?}");
                    // Podman looks for an amd64 image in a registry and fails in the build.
                    if error.build.is_none() {
                        let offline = env.client_with(&[
                            (OptionName::DockerHost, &engine.url),
                            (OptionName::Offline, "1"),
                        ]);
                        assert_eq!(
                            offline.ensure_err("hermes").code,
                            Code::NoLocalImage,
                            "{what}"
                        );
                        assert!(
                            error.message().contains("it is for linux/arm64"),
                            "{what}: {error:?}"
                        );
                        assert!(
                            error.hint.contains("use a base image for linux/amd64"),
                            "{error:?}"
                        );
                    }
                }
            }
            drop(images);
            engine.remove_all_of(&env.isolation);
        }
    }
}

#[test]
fn a_hit_refreshes_the_latest_tag() {
    let env = TestEnv::new();
    let client = env.client();
    env.template("hermes", dockerfile(PLAIN));
    let old = client.ensure("hermes").unwrap();
    env.engine.untag(&old.latest_reference);
    assert!(client.ensure("hermes").unwrap().cache_hit);
    assert_eq!(
        env.engine.id(&old.latest_reference),
        Some(old.image_id.clone())
    );

    env.engine.tag(BUSYBOX, &old.latest_reference);
    assert!(client.ensure("hermes").unwrap().cache_hit);
    assert_eq!(env.engine.id(&old.latest_reference), Some(old.image_id));
}

#[test]
fn a_removed_image_is_rebuilt_without_a_fetch() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    let client = env.client();
    let first = client.ensure("hermes").unwrap();
    for reference in [&first.reference, &first.latest_reference] {
        env.engine.untag(reference);
    }
    client.clear_events();
    let again = client.ensure("hermes").unwrap();
    assert!(!again.cache_hit);
    assert_eq!(again.reference, first.reference);
    assert_eq!(
        client.count(Kind::FetchStarted),
        0,
        "the tree is in the cache"
    );
    assert_eq!(client.count(Kind::BuildStarted), 1);
}

#[test]
fn each_platform_has_its_own_tags() {
    let env = TestEnv::new();
    let sha = env.template("hermes", dockerfile(PLAIN));
    let isolation = &env.isolation;
    for (platform, suffix) in [
        ("linux/amd64", ""),
        ("linux/386", "-386"),
        ("linux/amd64/v2", "-amd64-v2"),
    ] {
        let client = env.client_with(&[(OptionName::Platform, platform)]);
        let image = client.ensure("hermes").unwrap();
        assert!(
            !image.cache_hit,
            "{platform} never hits the image of another"
        );
        let tag = |name: &str| {
            format!("molecule-local/workspace-template-hermes:{name}{suffix}--{isolation}")
        };
        assert_eq!(image.reference, tag(&sha[..12]));
        assert_eq!(image.latest_reference, tag("latest"));
        assert_eq!(image.platform, platform);
        assert_eq!(
            env.engine.labels(&image.reference)["ai.moleculesai.libmol.platform"],
            platform
        );
        assert!(client.ensure("hermes").unwrap().cache_hit, "{platform}");
    }
}

#[test]
fn native_means_the_platform_of_the_engine() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    let image = env
        .client_with(&[(OptionName::Platform, "native")])
        .ensure("hermes")
        .unwrap();
    let native = match std::env::consts::ARCH {
        "x86_64" => "linux/amd64",
        _ => "linux/arm64",
    };
    assert_eq!(image.platform, native);
}

#[test]
fn isolated_servers_do_not_see_each_others_images() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    let mine = env.client().ensure("hermes").unwrap();
    let theirs = format!("{}.b", env.isolation);
    let client = env.client_with(&[(OptionName::Isolation, &theirs)]);
    let image = client.ensure("hermes").unwrap();
    assert!(!image.cache_hit);
    assert_ne!(image.reference, mine.reference);
    assert!(image.reference.ends_with(&format!("--{theirs}")));
    assert!(image.latest_reference.ends_with(&format!("--{theirs}")));
    env.engine.remove_all_of(&theirs);
}

#[test]
fn offline_uses_the_newest_image_without_network() {
    let env = TestEnv::new();
    let online = env.client();
    env.template("hermes", dockerfile(PLAIN));
    online.ensure("hermes").unwrap();
    // The engine reports the creation time of an image in whole seconds.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let text = format!("FROM scratch\nCOPY Dockerfile /{}\n", env.isolation);
    env.template("hermes", dockerfile(&text));
    let newest = online.ensure("hermes").unwrap();
    env.server.requests();

    let offline = env.client_with(&[(OptionName::Offline, "1")]);
    let image = offline.ensure("hermes").unwrap();
    assert!(image.cache_hit);
    assert_eq!(image.reference, newest.reference);
    assert_eq!(image.latest_reference, newest.latest_reference);
    assert_eq!(image.image_id, newest.image_id);
    assert_eq!(image.commit_sha, newest.commit_sha);
    assert!(env.server.requests().is_empty());
}

#[test]
fn offline_without_an_image_fails_with_no_local_image() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    env.client_with(&[(OptionName::Platform, "linux/386")])
        .ensure("hermes")
        .unwrap();
    env.server.requests();
    let error = env
        .client_with(&[(OptionName::Offline, "1")])
        .ensure_err("hermes");
    assert_eq!(
        error.code,
        Code::NoLocalImage,
        "an image for another platform must not be used: {error:?}"
    );
    assert!(
        error.message().contains("hermes") && error.hint.contains("MOLECULE_LOCAL_OFFLINE"),
        "{error:?}"
    );
    assert_eq!(error.url, "", "the template is not the cause");
    assert!(env.server.requests().is_empty());
}

#[test]
fn an_unreachable_server_does_not_imply_offline_mode() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    env.client().ensure("hermes").unwrap();
    let prefix = "http://127.0.0.1:1/o/workspace-template-";
    let error = env
        .client_with(&[(OptionName::RepoPrefix, prefix)])
        .ensure_err("hermes");
    assert_eq!(error.code, Code::GiteaUnreachable);
}

/// An engine that fails only requests that set the latest tag.
fn refusing_latest(env: &TestEnv) -> Proxy {
    Proxy::start(&env.engine, env.scratch(), |request| {
        let tags = request.starts_with("POST")
            && request.contains("/tag?")
            && request.contains("tag=latest");
        if tags { Handling::Fail } else { Handling::Pass }
    })
}

#[test]
fn a_latest_tag_that_cannot_be_set_is_only_a_warning() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    let proxy = refusing_latest(&env);
    let client = env.client_with(&[(OptionName::DockerHost, &proxy.url)]);
    for hit in [false, true] {
        client.clear_events();
        let image = client.ensure("hermes").unwrap();
        assert_eq!(image.cache_hit, hit);
        let warnings = client.of_kind(Kind::Warning);
        assert!(
            warnings
                .iter()
                .any(|event| event.message.contains(&image.latest_reference)
                    && event.message.contains("injected failure")),
            "{warnings:?}"
        );
        assert_eq!(
            env.engine.id(&image.latest_reference),
            None,
            "the engine refused the tag"
        );
    }
}

#[test]
fn a_hit_does_not_retag_a_correct_latest_tag() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    env.client().ensure("hermes").unwrap();
    // A request to set the tag would fail and cause a warning, so no request was made.
    let proxy = refusing_latest(&env);
    let client = env.client_with(&[(OptionName::DockerHost, &proxy.url)]);
    assert!(client.ensure("hermes").unwrap().cache_hit);
    assert_eq!(client.count(Kind::Warning), 0);
}
