//! The image equals the one that `docker build --platform=linux/amd64` makes of a clean checkout of the
//! same commit (promise P8), with every builder. docs/fidelity.md lists the differences and their reasons.
//!
//! Each test is a template with one feature that is easy to get wrong. Each builder builds it twice:
//! through libmol, and with the builder's own CLI on a checkout made by git. The layers are compared one by
//! one, so that the root file system is the same and was built in the same steps: every path with its kind,
//! content, mode, owner, link, hard link, device and extended attributes, and the whiteouts. Times follow a
//! rule: files from the context have the time of the commit. The configuration is compared too, including
//! the history.

mod checkout;
mod ignore_files;
mod image;
mod instructions;
mod paths;
mod reference;
mod template;

use std::path::{Path, PathBuf};

use mol::{Code, OptionName};

use crate::support::child::text;
use crate::support::{self, Engine, TestEnv, unique};
use image::SavedImage;
use template::{Outcome, Template};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Builder {
    BuildKit,
    Classic,
    Podman,
    /// A BuildKit daemon of its own, which sends the image to the engine.
    Daemon,
}

const RUNTIME: &str = "hermes";
const ALL: [Builder; 4] = [
    Builder::BuildKit,
    Builder::Classic,
    Builder::Podman,
    Builder::Daemon,
];

/// The builders to compare with: the ones in `MOL_TEST_BUILDERS` ("BuildKit Classic"), or those of the engines if not
/// set.
fn builders() -> Vec<Builder> {
    let Ok(names) = std::env::var("MOL_TEST_BUILDERS") else {
        return vec![Builder::BuildKit, Builder::Classic, Builder::Podman];
    };
    let named = |name| {
        let found = ALL
            .into_iter()
            .find(|builder| format!("{builder:?}") == name);
        found.unwrap_or_else(|| panic!("MOL_TEST_BUILDERS: there is no builder {name}"))
    };
    names.split_whitespace().map(named).collect()
}

/// Every builder makes the same image of the template through libmol and without it.
fn assert_same(template: &Template) {
    assert_same_in(&TestEnv::new(), template);
}

fn assert_same_in(env: &TestEnv, template: &Template) {
    let checkout = commit(env, template);
    assert_same_as(env, template, &checkout);
}

/// Commits the template to the test runtime's repository, and returns git's own checkout of it.
fn commit(env: &TestEnv, template: &Template) -> PathBuf {
    let repository = env.server.bare_repository(RUNTIME);
    template.commit(&repository, &env.isolation);
    let checkout = env.scratch().join(unique());
    reference::check_out(&repository, &checkout);
    checkout
}

fn assert_same_as(env: &TestEnv, template: &Template, checkout: &Path) {
    let mut found = Vec::new();
    let mut builders = builders();
    builders.retain(|builder| *builder != Builder::Daemon || !template.needs_an_engine());
    for builder in builders {
        for difference in differences(env, template, builder, checkout) {
            found.push(format!("{builder:?}: {difference}"));
        }
    }
    assert!(
        found.is_empty(),
        "libmol (\"here\") and the builder's own CLI (\"there\") make different images:\n{}",
        found.join("\n")
    );
}

fn differences(
    env: &TestEnv,
    template: &Template,
    builder: Builder,
    checkout: &Path,
) -> Vec<String> {
    let engine = match builder {
        Builder::Podman => Engine::podman_of_the_tests(),
        Builder::BuildKit | Builder::Classic | Builder::Daemon => Engine::of_the_tests(),
    };
    let daemon =
        (builder == Builder::Daemon).then(|| support::Builder::unix(&env.scratch().join("b")));
    let address = daemon
        .as_ref()
        .map(support::Builder::address)
        .unwrap_or_default();
    let isolation = format!("{}-{}", env.isolation, builder as u8);
    let reference = format!("libmol-test/reference:of--{isolation}");
    let buildkit = if builder == Builder::Classic {
        "0"
    } else {
        "1"
    };
    let mut cleanup = Cleanup::in_engine(&engine);

    let client = env.client_with(&[
        (OptionName::DockerHost, &engine.url),
        (OptionName::Isolation, &isolation),
        (OptionName::DockerBuildkit, buildkit),
        (OptionName::Builder, &address),
    ]);
    let searches_images = matches!(builder, Builder::Classic | Builder::Podman);
    let images = searches_images.then(|| engine.keep_images());
    let here = client.ensure(RUNTIME);
    drop(images);
    if let Ok(image) = &here {
        cleanup.add(&image.reference);
        cleanup.add(&image.latest_reference);
    }
    let there = reference::build(
        builder,
        &engine.url,
        &address,
        checkout,
        &reference,
        env.scratch(),
    );
    let said = text(&there);
    if there.status.success() {
        cleanup.add(&reference);
    }

    let found = match (&here, there.status.success()) {
        (Ok(image), true) => {
            let saved = |reference: &str| {
                let archive = env.scratch().join("image.tar");
                engine.save(reference, &archive);
                SavedImage::read(&archive)
            };
            saved(&image.reference).differences(&saved(&reference))
        }
        (Err(_), false) => Vec::new(),
        (Ok(_), false) => vec![format!("built here; there: {said}")],
        (Err(error), true) => vec![format!("built there; here: {error:?}")],
    };
    let outcome = match template.outcome(builder) {
        Outcome::DiffersBefore(version) if daemon.is_none() && engine.version() < version => {
            Outcome::Differs
        }
        Outcome::DiffersBefore(_) => Outcome::Builds,
        outcome => outcome,
    };
    match (outcome, here) {
        (Outcome::Builds, Ok(_)) | (Outcome::VersionDependent, _) => found,
        (Outcome::Differs, _) if found.is_empty() => {
            vec!["there is no difference any more: remove it from docs/fidelity.md".to_owned()]
        }
        (Outcome::Differs, _) => Vec::new(),
        (Outcome::Fails(why), Err(error))
            if error.code == Code::BuildFailed
                && error.message().contains(why)
                && !error.hint.is_empty()
                && said.contains(why) =>
        {
            found
        }
        (outcome, here) => vec![format!("not {outcome:?}: here: {here:?}; there: {said}")],
    }
}

/// Removes the images from the engine when it is dropped.
struct Cleanup<'a> {
    engine: &'a Engine,
    references: Vec<String>,
}

impl<'a> Cleanup<'a> {
    fn in_engine(engine: &'a Engine) -> Self {
        let references = Vec::new();
        Self { engine, references }
    }

    fn add(&mut self, reference: &str) {
        self.references.push(reference.to_owned());
    }
}

impl Drop for Cleanup<'_> {
    fn drop(&mut self) {
        self.engine.untag_all(&self.references);
    }
}
