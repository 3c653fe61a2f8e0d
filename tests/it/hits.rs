//! Step three: when an image that is there is used, and when it is not.

use mol::event::Kind;
use mol::{Code, OptionName};

use crate::support::engine::{BUSYBOX, Engine};
use crate::support::server::dockerfile;
use crate::support::{Bed, Proxy, Treat, unique};

const PLAIN: &str = "FROM scratch\nCOPY Dockerfile /\n";

/// An image that somebody else has given the tag of this commit.
fn planted(bed: &Bed, image_of: &str, as_of: &str, sha: &str) {
    bed.engine.tag(image_of, &bed.reference(as_of, sha));
}

#[test]
fn an_image_without_labels_counts_as_a_hit() {
    let bed = Bed::new();
    let sha = bed.template("hermes", dockerfile(PLAIN));
    planted(&bed, BUSYBOX, "hermes", &sha);
    let client = bed.client();
    let image = client.ensure("hermes").unwrap();
    assert!(image.cache_hit);
    assert_eq!(Some(image.image_id), bed.engine.id(BUSYBOX));
    assert_eq!(client.count(Kind::BuildStarted), 0);
}

#[test]
fn a_label_of_another_commit_means_that_it_is_built_again() {
    let bed = Bed::new();
    bed.template("autogen", dockerfile(PLAIN));
    let other = bed.client().ensure("autogen").unwrap();
    let sha = bed.template(
        "hermes",
        dockerfile("FROM scratch\nCOPY Dockerfile /hermes\n"),
    );
    planted(&bed, &other.reference, "hermes", &sha);

    let client = bed.client();
    let image = client.ensure("hermes").unwrap();
    assert!(!image.cache_hit);
    assert_eq!(
        bed.engine
            .files(&image.reference)
            .keys()
            .collect::<Vec<_>>(),
        ["hermes"]
    );
    let reason = client.wait_for(Kind::CacheMiss, |_| true).reason.unwrap();
    assert!(reason.contains(&other.commit_sha), "{reason}");
    assert!(
        client.ensure("hermes").unwrap().cache_hit,
        "and now it is right"
    );
}

#[test]
fn an_image_for_another_platform_means_that_it_is_built_again() {
    let bed = Bed::new();
    let sha = bed.template("hermes", dockerfile(PLAIN));
    // An engine for amd64 runs this as well.
    let other = bed
        .client_with(&[(OptionName::Platform, "linux/386")])
        .ensure("hermes")
        .unwrap();
    assert_eq!(
        bed.engine
            .inspect(&other.reference)
            .unwrap()
            .architecture
            .as_deref(),
        Some("386")
    );
    planted(&bed, &other.reference, "hermes", &sha);

    let client = bed.client();
    let image = client.ensure("hermes").unwrap();
    assert!(!image.cache_hit);
    assert_eq!(
        bed.engine
            .inspect(&image.reference)
            .unwrap()
            .architecture
            .as_deref(),
        Some("amd64")
    );
    let reason = client.wait_for(Kind::CacheMiss, |_| true).reason.unwrap();
    assert!(reason.contains("386"), "{reason}");
}

#[test]
fn an_image_that_could_never_be_a_hit_is_not_called_ready() {
    const ARM64: &str = "localhost/libmol-test-arm64:base";
    let docker = Engine::of_the_tests();
    let podman = Engine::podman_of_the_tests();
    for (engine, buildkit) in [(&docker, "1"), (&docker, "0"), (&podman, "1")] {
        engine.load_image_for("arm64", ARM64);
        for from in [ARM64.to_owned(), format!("--platform=linux/arm64 {ARM64}")] {
            let bed = Bed::new();
            let text = format!("FROM {from}\nCOPY Dockerfile /{}\n", unique());
            bed.template("hermes", dockerfile(&text));
            let client = bed.client_with(&[
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
                    // Podman looks for one for amd64 in a registry.
                    if error.build.is_none() {
                        let offline = bed.client_with(&[
                            (OptionName::DockerHost, &engine.url),
                            (OptionName::Offline, "1"),
                        ]);
                        assert_eq!(offline.refused("hermes").code, Code::NoLocalImage, "{what}");
                        assert!(
                            error.message.contains("it is for linux/arm64"),
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
            engine.remove_all_of(&bed.isolation);
        }
    }
}

#[test]
fn what_contradicts_its_tag_is_warned_of() {
    let bed = Bed::new();
    bed.template("autogen", dockerfile(PLAIN));
    let other = bed.client().ensure("autogen").unwrap();
    // Another content: the same one would be the same commit.
    let sha = bed.template(
        "hermes",
        dockerfile("FROM scratch\nCOPY Dockerfile /other\n"),
    );
    planted(&bed, &other.reference, "hermes", &sha);
    let client = bed.client();
    client.ensure("hermes").unwrap();
    let warnings = client.of_kind(Kind::Warning);
    assert!(
        warnings
            .iter()
            .any(|event| event.message.contains(&other.commit_sha)),
        "{warnings:?}"
    );
}

#[test]
fn latest_follows_a_hit() {
    let bed = Bed::new();
    let client = bed.client();
    bed.template("hermes", dockerfile(PLAIN));
    let old = client.ensure("hermes").unwrap();
    bed.engine.untag(&old.latest_reference);
    assert!(client.ensure("hermes").unwrap().cache_hit);
    assert_eq!(
        bed.engine.id(&old.latest_reference),
        Some(old.image_id.clone())
    );

    bed.engine.tag(BUSYBOX, &old.latest_reference);
    assert!(client.ensure("hermes").unwrap().cache_hit);
    assert_eq!(bed.engine.id(&old.latest_reference), Some(old.image_id));
}

#[test]
fn an_image_that_was_removed_is_built_again_without_a_fetch() {
    let bed = Bed::new();
    bed.template("hermes", dockerfile(PLAIN));
    let client = bed.client();
    let first = client.ensure("hermes").unwrap();
    for reference in [&first.reference, &first.latest_reference] {
        bed.engine.untag(reference);
    }
    client.forget();
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
fn every_platform_has_tags_of_its_own() {
    let bed = Bed::new();
    let sha = bed.template("hermes", dockerfile(PLAIN));
    let isolation = &bed.isolation;
    for (platform, suffix) in [
        ("linux/amd64", ""),
        ("linux/386", "-386"),
        ("linux/amd64/v2", "-amd64-v2"),
    ] {
        let client = bed.client_with(&[(OptionName::Platform, platform)]);
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
            bed.engine.labels(&image.reference)["ai.moleculesai.libmol.platform"],
            platform
        );
        assert!(client.ensure("hermes").unwrap().cache_hit, "{platform}");
    }
}

#[test]
fn native_is_what_the_engine_runs_on() {
    let bed = Bed::new();
    bed.template("hermes", dockerfile(PLAIN));
    let image = bed
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
    let bed = Bed::new();
    bed.template("hermes", dockerfile(PLAIN));
    let mine = bed.client().ensure("hermes").unwrap();
    let theirs = format!("{}.b", bed.isolation);
    let client = bed.client_with(&[(OptionName::Isolation, &theirs)]);
    let image = client.ensure("hermes").unwrap();
    assert!(!image.cache_hit);
    assert_ne!(image.reference, mine.reference);
    assert!(image.reference.ends_with(&format!("--{theirs}")));
    assert!(image.latest_reference.ends_with(&format!("--{theirs}")));
    bed.engine.remove_all_of(&theirs);
}

#[test]
fn offline_is_the_newest_image_and_no_network() {
    let bed = Bed::new();
    let online = bed.client();
    bed.template("hermes", dockerfile(PLAIN));
    online.ensure("hermes").unwrap();
    // The engine tells the age of an image in whole seconds.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let text = format!("FROM scratch\nCOPY Dockerfile /{}\n", bed.isolation);
    bed.template("hermes", dockerfile(&text));
    let newest = online.ensure("hermes").unwrap();
    bed.server.requests();

    let offline = bed.client_with(&[(OptionName::Offline, "1")]);
    let image = offline.ensure("hermes").unwrap();
    assert!(image.cache_hit);
    assert_eq!(image.reference, newest.reference);
    assert_eq!(image.latest_reference, newest.latest_reference);
    assert_eq!(image.image_id, newest.image_id);
    assert_eq!(image.commit_sha, newest.commit_sha);
    assert!(bed.server.requests().is_empty());
}

#[test]
fn offline_without_an_image_is_an_error_of_its_own() {
    let bed = Bed::new();
    bed.template("hermes", dockerfile(PLAIN));
    bed.client_with(&[(OptionName::Platform, "linux/386")])
        .ensure("hermes")
        .unwrap();
    bed.server.requests();
    let error = bed
        .client_with(&[(OptionName::Offline, "1")])
        .refused("hermes");
    assert_eq!(
        error.code,
        Code::NoLocalImage,
        "one for another platform will not do: {error:?}"
    );
    assert!(
        error.message.contains("hermes") && error.hint.contains("MOLECULE_LOCAL_OFFLINE"),
        "{error:?}"
    );
    assert!(bed.server.requests().is_empty());
}

#[test]
fn a_failure_never_means_offline() {
    let bed = Bed::new();
    bed.template("hermes", dockerfile(PLAIN));
    bed.client().ensure("hermes").unwrap();
    let prefix = "http://127.0.0.1:1/o/workspace-template-";
    let error = bed
        .client_with(&[(OptionName::RepoPrefix, prefix)])
        .refused("hermes");
    assert_eq!(error.code, Code::GiteaUnreachable);
}

/// An engine that fails when the moving tag is set, and only then.
fn without_latest(bed: &Bed) -> Proxy {
    Proxy::start(&bed.engine, bed.scratch(), |request| {
        let tags = request.starts_with("POST")
            && request.contains("/tag?")
            && request.contains("tag=latest");
        if tags { Treat::Fail } else { Treat::Pass }
    })
}

#[test]
fn a_moving_tag_that_cannot_be_set_is_only_a_warning() {
    let bed = Bed::new();
    bed.template("hermes", dockerfile(PLAIN));
    let proxy = without_latest(&bed);
    let client = bed.client_with(&[(OptionName::DockerHost, &proxy.url)]);
    for hit in [false, true] {
        client.forget();
        let image = client.ensure("hermes").unwrap();
        assert_eq!(image.cache_hit, hit);
        let warnings = client.of_kind(Kind::Warning);
        assert!(
            warnings
                .iter()
                .any(|event| event.message.contains(&image.latest_reference)),
            "{warnings:?}"
        );
        assert_eq!(
            bed.engine.id(&image.latest_reference),
            None,
            "the engine did refuse"
        );
    }
}

#[test]
fn an_engine_that_breaks_off_in_the_middle_of_a_build_is_told() {
    for buildkit in ["1", "0"] {
        let bed = Bed::new();
        bed.template("hermes", dockerfile(PLAIN));
        let proxy = Proxy::start(&bed.engine, bed.scratch(), |request| {
            match request.contains("/build?") {
                true => Treat::Break,
                false => Treat::Pass,
            }
        });
        let client = bed.client_with(&[
            (OptionName::DockerHost, &proxy.url),
            (OptionName::DockerBuildkit, buildkit),
        ]);
        let error = client.refused("hermes");
        assert_eq!(error.code, Code::EngineUnreachable, "{error:?}");
        assert!(
            error.message.contains(&proxy.url) && !error.hint.is_empty(),
            "{error:?}"
        );
        bed.client().ensure("hermes").unwrap();
    }
}

#[test]
fn an_engine_that_answers_an_error_is_told_with_its_words() {
    let bed = Bed::new();
    bed.template("hermes", dockerfile(PLAIN));
    let proxy = Proxy::start(&bed.engine, bed.scratch(), |request| {
        match request.contains("/images/") {
            true => Treat::Fail,
            false => Treat::Pass,
        }
    });
    let error = bed
        .client_with(&[(OptionName::DockerHost, &proxy.url)])
        .refused("hermes");
    assert_eq!(error.code, Code::EngineUnreachable, "{error:?}");
    assert!(
        error.message.contains("told to fail") && error.message.contains("500"),
        "{error:?}"
    );
}

#[test]
fn a_hit_leaves_a_moving_tag_alone_that_is_right_already() {
    let bed = Bed::new();
    bed.template("hermes", dockerfile(PLAIN));
    bed.client().ensure("hermes").unwrap();
    // What would set the tag fails, and is told of: so it is not asked for.
    let proxy = without_latest(&bed);
    let client = bed.client_with(&[(OptionName::DockerHost, &proxy.url)]);
    assert!(client.ensure("hermes").unwrap().cache_hit);
    assert_eq!(client.count(Kind::Warning), 0);
}
