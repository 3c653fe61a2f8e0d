//! Podman, through its Docker-compatible socket.

use mol::event::Kind;
use mol::{Image, OptionName};

use crate::support::engine::Engine;
use crate::support::server::{Files, file};
use crate::support::{Bed, TestClient};

fn copying(content: &str) -> Files {
    Files::from([
        (
            "Dockerfile".to_owned(),
            file("FROM scratch\nCOPY content /\n"),
        ),
        ("content".to_owned(), file(content)),
    ])
}

/// The job, while no other test takes images away.
fn ensure(client: &TestClient, podman: &Engine) -> mol::Result<Image> {
    let _images = podman.keep_images();
    client.ensure("hermes")
}

fn client(bed: &Bed, podman: &Engine) -> TestClient {
    bed.client_with(&[(OptionName::DockerHost, &podman.url)])
}

#[test]
fn an_image_is_built_found_again_and_rebuilt_for_a_new_commit() {
    let (bed, podman) = (Bed::new(), Engine::podman_of_the_tests());
    let client = client(&bed, &podman);

    let sha = bed.template("hermes", copying("one"));
    let first = ensure(&client, &podman).unwrap();
    assert_eq!(first.reference, bed.reference("hermes", &sha));
    assert_eq!(first.endpoint, podman.url);
    assert_eq!(podman.read(&first.reference, "content"), "one");
    let labels = podman.labels(&first.reference);
    assert_eq!(labels["org.opencontainers.image.revision"], sha);

    let again = ensure(&client, &podman).unwrap();
    assert!(again.cache_hit);
    assert_eq!(again.image_id, first.image_id);
    assert_eq!(client.count(Kind::BuildStarted), 1);

    bed.template("hermes", copying("two"));
    let second = ensure(&client, &podman).unwrap();
    assert_eq!(podman.read(&second.reference, "content"), "two");
    assert_eq!(
        podman.id(&second.latest_reference),
        Some(second.image_id.clone())
    );
    podman.remove_all_of(&bed.isolation);
}

#[test]
fn without_a_network_the_newest_image_is_found_under_the_name_that_podman_gave_it() {
    let (bed, podman) = (Bed::new(), Engine::podman_of_the_tests());
    bed.template("hermes", copying("one"));
    let online = ensure(&client(&bed, &podman), &podman).unwrap();
    let offline = bed.client_with(&[
        (OptionName::DockerHost, &podman.url),
        (OptionName::Offline, "1"),
    ]);
    assert_eq!(
        ensure(&offline, &podman).unwrap().reference,
        online.reference
    );
    podman.remove_all_of(&bed.isolation);
}

#[test]
fn a_failing_step_is_named_with_its_output() {
    let (bed, podman) = (Bed::new(), Engine::podman_of_the_tests());
    bed.template(
        "hermes",
        Files::from([(
            "Dockerfile".to_owned(),
            file("FROM scratch\nCOPY nothing /\n"),
        )]),
    );
    let error = ensure(&client(&bed, &podman), &podman).unwrap_err();
    assert_eq!(error.code, mol::Code::BuildFailed, "{error:?}");
    let build = error.build.unwrap();
    assert!(build.step.contains("COPY nothing"), "{build:?}");
}
