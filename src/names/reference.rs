//! The references of an image, and what their tags contain.

use crate::error::{Code, Error, Result};
use crate::names::commit::{CommitSha, is_short};
use crate::names::platform::{Platform, is_platform_part};
use crate::names::registry::LOCAL_IMAGE_PREFIX;
use crate::names::runtimes::{Runtime, Runtimes};

/// Which tags contain the architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TagArch {
    /// Both tags of each platform except the default one: `-arch[-variant]`. So a call never hits an image for another
    /// platform.
    #[default]
    Auto,
    /// All pinned tags, without the variant; never the moving tag. The workspace server of 2026 tags like this.
    /// Platforms that differ only in the variant have the same tags; the image's label distinguishes them.
    Always,
}

impl TagArch {
    /// The part after the commit in the pinned tag.
    fn pinned_suffix(self, platform: &Platform) -> String {
        match self {
            Self::Auto if platform.as_str() == Platform::DEFAULT => String::new(),
            Self::Auto => platform
                .as_str()
                .split('/')
                .skip(1)
                .map(|part| format!("-{part}"))
                .collect(),
            Self::Always => format!("-{}", platform.os_arch().1),
        }
    }

    /// The part after `latest` in the moving tag.
    fn latest_suffix(self, platform: &Platform) -> String {
        match self {
            Self::Auto => self.pinned_suffix(platform),
            Self::Always => String::new(),
        }
    }
}

/// A tag suffix that separates the images of several servers on one engine.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Isolation(String);

impl Isolation {
    /// Upper bound in bytes. With it the tag stays within the 128 bytes of the OCI distribution specification.
    const MAX_LEN: usize = 48;

    /// Accepts `[a-z0-9][a-z0-9_.-]*` and trims white space. The empty text means "no isolation".
    ///
    /// # Errors
    ///
    /// [`Code::InvalidOption`] for any other value.
    pub fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        let first = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let rest = |b: u8| first(b) || matches!(b, b'_' | b'.' | b'-');
        let ok = text.is_empty()
            || (text.len() <= Self::MAX_LEN
                && text.bytes().take(1).all(first)
                && text.bytes().all(rest));
        if ok {
            return Ok(Self(text.to_owned()));
        }
        Err(Error::new(
            Code::InvalidOption,
            "the image isolation (MOLECULE_LOCAL_IMAGE_ISOLATION) cannot be part of an image tag",
        )
        .hint(format!(
            "use lower-case letters, digits, '_', '.' and '-', a letter or digit first, at most {} of them",
            Self::MAX_LEN
        )))
    }

    /// The last part of both tags.
    fn tag_suffix(&self) -> String {
        match self.0.as_str() {
            "" => String::new(),
            isolation => format!("--{isolation}"),
        }
    }
}

/// How a client tags its images.
#[derive(Clone, Debug, Default)]
pub struct TagRules {
    /// Which tags contain the architecture.
    pub arch: TagArch,
    /// The suffix that separates them from the tags of other servers.
    pub isolation: Isolation,
}

/// The two references of one image.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct References {
    /// Pinned to the commit: `molecule-local/workspace-template-<runtime>:<sha12>…`.
    pub pinned: String,
    /// Moves with the branch: `molecule-local/workspace-template-<runtime>:latest…`.
    pub latest: String,
}

impl References {
    /// The references for a commit of a runtime's template.
    pub fn new(
        runtime: &Runtime,
        commit: &CommitSha,
        platform: &Platform,
        rules: &TagRules,
    ) -> Self {
        Self::of_short(runtime, commit.short(), platform, rules)
    }

    fn of_short(runtime: &Runtime, short: &str, platform: &Platform, rules: &TagRules) -> Self {
        let repository = repository(runtime);
        let isolation = rules.isolation.tag_suffix();
        let pinned = rules.arch.pinned_suffix(platform);
        let latest = rules.arch.latest_suffix(platform);
        Self {
            pinned: format!("{repository}:{short}{pinned}{isolation}"),
            latest: format!("{repository}:latest{latest}{isolation}"),
        }
    }

    /// The first twelve digits of the commit.
    pub(crate) fn short(&self) -> &str {
        let tag = self.pinned.rsplit_once(':').map_or("", |(_, tag)| tag);
        tag.get(..12).unwrap_or(tag)
    }

    /// The references of an image that the engine lists under its pinned reference; `None` if that does not belong to
    /// the runtime, the platform and the rules.
    pub(crate) fn of_pinned(
        listed: &str,
        runtime: &Runtime,
        platform: &Platform,
        rules: &TagRules,
    ) -> Option<Self> {
        let listed = without_default_host(listed);
        let tag = listed
            .strip_prefix(&repository(runtime))?
            .strip_prefix(':')?;
        let short = tag.get(..12).filter(|short| is_short(short))?;
        let references = Self::of_short(runtime, short, platform, rules);
        (references.pinned == listed).then_some(references)
    }
}

/// A parsed reference of this library, of any runtime and platform, within one isolation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LocalName {
    pub(crate) runtime: Runtime,
    /// The first twelve digits of the commit; `None` for the reference that moves with the branch.
    pub(crate) commit: Option<String>,
    /// `-arch[-variant]`; empty for the default platform.
    pub(crate) platform: String,
}

impl LocalName {
    /// `None` for a reference that [`References::new`] never makes for these runtimes and this isolation, with any
    /// platform and [`TagArch`].
    pub(crate) fn parse(listed: &str, runtimes: &Runtimes, isolation: &Isolation) -> Option<Self> {
        let (repository, tag) = without_default_host(listed).rsplit_once(':')?;
        let runtime = repository
            .strip_prefix(LOCAL_IMAGE_PREFIX)?
            .strip_prefix("/workspace-template-")?;
        let runtime = runtimes.find(runtime)?.clone();
        // No part of a platform is empty, so the isolation starts at the first "--".
        let (tag, found) = match tag.split_once("--") {
            Some((tag, found)) if !found.is_empty() => (tag, found),
            Some(_) => return None,
            None => (tag, ""),
        };
        if found != isolation.0 {
            return None;
        }
        let (version, platform) = tag.split_at(tag.find('-').unwrap_or(tag.len()));
        let commit = match version {
            "latest" => None,
            short if is_short(short) => Some(short.to_owned()),
            _ => return None,
        };
        let mut parts = platform.split('-').skip(1);
        (platform.split('-').count() <= 3 && parts.all(is_platform_part)).then(|| Self {
            runtime,
            commit,
            platform: platform.to_owned(),
        })
    }
}

/// Removes the host that Podman adds to a reference without one (containers-registries.conf, short names). A reference
/// with any other host names another image.
pub(crate) fn without_default_host(listed: &str) -> &str {
    ["docker.io/", "localhost/"]
        .iter()
        .find_map(|host| listed.strip_prefix(host))
        .unwrap_or(listed)
}

/// A runtime's image repository, without a tag.
fn repository(runtime: &Runtime) -> String {
    format!("{LOCAL_IMAGE_PREFIX}/workspace-template-{runtime}")
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::names::runtimes::known;

    fn sha() -> CommitSha {
        CommitSha::parse("0123456789abcdef0123456789abcdef01234567").unwrap()
    }

    fn rules(arch: TagArch, isolation: &str) -> TagRules {
        let isolation = Isolation::parse(isolation).unwrap();
        TagRules { arch, isolation }
    }

    fn refs_with(arch: TagArch, platform: &str, isolation: &str) -> References {
        let platform = Platform::parse(platform).unwrap();
        References::new(&known("hermes"), &sha(), &platform, &rules(arch, isolation))
    }

    fn refs(platform: &str, isolation: &str) -> References {
        refs_with(TagArch::Auto, platform, isolation)
    }

    #[test]
    fn the_tag_is_the_first_twelve_digits() {
        let refs = refs("linux/amd64", "");
        assert_eq!(refs.short(), "0123456789ab");
        assert_eq!(
            refs.pinned,
            "molecule-local/workspace-template-hermes:0123456789ab"
        );
        assert_eq!(
            refs.latest,
            "molecule-local/workspace-template-hermes:latest"
        );
    }

    #[test]
    fn both_tags_contain_another_platform_and_the_isolation() {
        let refs = refs("linux/arm/v7", "ci-1");
        assert!(refs.pinned.ends_with(":0123456789ab-arm-v7--ci-1"));
        assert!(refs.latest.ends_with(":latest-arm-v7--ci-1"));
    }

    #[test]
    fn tag_arch_always_adds_the_architecture_to_each_pinned_tag() {
        for (platform, pinned, latest) in [
            ("linux/amd64", ":0123456789ab-amd64--ci-1", ":latest--ci-1"),
            ("linux/arm/v7", ":0123456789ab-arm--ci-1", ":latest--ci-1"),
        ] {
            let refs = refs_with(TagArch::Always, platform, "ci-1");
            assert!(refs.pinned.ends_with(pinned), "{}", refs.pinned);
            assert!(refs.latest.ends_with(latest), "{}", refs.latest);
        }
        let refs = refs_with(TagArch::Always, "linux/arm64", "");
        assert!(refs.pinned.ends_with(":0123456789ab-arm64"));
        assert!(refs.latest.ends_with(":latest"));
    }

    #[test]
    fn a_listed_reference_is_parsed_back() {
        let of = |name: &str| {
            let rules = rules(TagArch::Auto, "ci");
            References::of_pinned(name, &known("hermes"), &Platform::default(), &rules)
        };
        let name = "molecule-local/workspace-template-hermes:0123456789ab--ci";
        for listed in [
            name,
            &format!("docker.io/{name}"),
            &format!("localhost/{name}"),
        ] {
            assert_eq!(of(listed).unwrap().pinned, name);
        }
        for other in [
            "molecule-local/workspace-template-hermes:latest--ci",
            "molecule-local/workspace-template-hermes:0123456789ab",
            "molecule-local/workspace-template-hermes-2:0123456789ab--ci",
            "molecule-local/workspace-template-hermes:0123456789ab-arm64--ci",
            "evil.example/molecule-local/workspace-template-hermes:0123456789ab--ci",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn only_references_of_this_library_are_parsed() {
        let parse = |name: &str, isolation: &str| {
            let isolation = Isolation::parse(isolation).unwrap();
            LocalName::parse(name, &Runtimes::default(), &isolation)
        };
        for platform in ["linux/amd64", "linux/arm64", "linux/arm/v7"] {
            for isolation in ["", "ci", "a--b", "arm64"] {
                for arch in [TagArch::Auto, TagArch::Always] {
                    let refs = refs_with(arch, platform, isolation);
                    let pinned = parse(&format!("localhost/{}", refs.pinned), isolation).unwrap();
                    let latest = parse(&refs.latest, isolation).unwrap();
                    assert_eq!(pinned.commit.as_deref(), Some("0123456789ab"));
                    assert_eq!(latest.commit, None);
                    assert_eq!(parse(&refs.pinned, "another"), None);
                }
            }
        }
        let ours = "molecule-local/workspace-template-hermes";
        for other in [
            format!("{ours}:0123456789ab--b"),
            format!("{ours}:0123456789a"),
            format!("{ours}:0123456789ab-"),
            format!("{ours}:0123456789ab--"),
            format!("{ours}:0123456789ab-arm-v7-x"),
            format!("{ours}:mine"),
            format!("{ours}-2:latest"),
            format!("evil.example/{ours}:latest"),
            ours.to_owned(),
            "<none>:<none>".to_owned(),
        ] {
            assert_eq!(parse(&other, ""), None, "{other}");
        }
        assert_eq!(parse(&format!("{ours}:0123456789ab--a--b"), "b"), None);
    }

    #[test]
    fn an_isolation_that_does_not_fit_into_a_tag_is_an_error() {
        for text in ["-a", "A", "a b", "ä", ".x", "a\0", &"a".repeat(49)] {
            assert_eq!(
                Isolation::parse(text).unwrap_err().code,
                Code::InvalidOption,
                "{text:?}"
            );
        }
        Isolation::parse(&"a".repeat(48)).unwrap();
    }
}
