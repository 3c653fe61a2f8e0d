//! Why a base image cannot be pulled.
//!
//! The failed step shows that the problem is a base image. The exact cause is only in the engine's error text, which
//! quotes the registry. A registry that imitates another cause can do no more than give its users the wrong hint.

use crate::context::{DOCKER_HUB, registry};
use crate::engine::build::buildkit::LOAD_METADATA;
use crate::names::platform::Platform;

/// A base image that cannot be pulled.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BaseImage {
    image: String,
    problem: Problem,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Problem {
    RateLimit,
    /// The image exists, but not for this platform.
    Platform,
    /// The name has no registry, and Podman is configured not to guess one.
    ShortName,
    Proxy,
    Dns,
    Tls,
    Unreachable,
    /// A registry does not tell a missing image from one that needs a login.
    Denied,
    NotFound,
    Other,
}

/// What engines and registries write, in lower case. The first match counts: a proxy that refuses connections is a
/// problem of the proxy.
const WORDS: &[(Problem, &[&str])] = &[
    (
        Problem::RateLimit,
        &["toomanyrequests", "too many requests"],
    ),
    (
        Problem::Platform,
        &[
            "no match for platform",
            "no matching manifest for",
            "no image found in manifest list for",
            "no image found in image index for",
        ],
    ),
    (Problem::ShortName, &["short-name"]),
    (Problem::Proxy, &["proxyconnect"]),
    (
        Problem::Dns,
        &[
            "no such host",
            "server misbehaving",
            "temporary failure in name resolution",
        ],
    ),
    (
        Problem::Tls,
        &["x509:", "tls:", "server gave http response to https client"],
    ),
    (
        Problem::Denied,
        &[
            "denied",
            "unauthorized",
            "no basic auth credentials",
            "authentication required",
            "authorization failed",
            "insufficient_scope",
            "forbidden",
        ],
    ),
    (
        Problem::NotFound,
        &["manifest unknown", "name unknown", "not found"],
    ),
    (
        Problem::Unreachable,
        &[
            "connection refused",
            "connection reset",
            "no route to host",
            "network is unreachable",
            "timeout",
            "timed out",
            "deadline exceeded",
            "unexpected eof",
            ": eof",
        ],
    ),
];

impl BaseImage {
    /// The base image that `step` needs; `None` if the step is about something else.
    pub(super) fn of(step: &str, reason: &str) -> Option<Self> {
        let image = image_of(step, reason)?;
        // Remove the image's name, also from URLs: it comes from the template, and may contain any of the words.
        let mut said = without(reason, image);
        for part in [repository(image), registry(image)] {
            said = without(&said, part);
        }
        let said = said.to_ascii_lowercase();
        let problem = WORDS
            .iter()
            .find(|(_, words)| words.iter().any(|word| said.contains(word)));
        Some(Self {
            image: image.to_owned(),
            problem: problem.map_or(Problem::Other, |(problem, _)| *problem),
        })
    }

    /// The image's name, as the engine reports it.
    pub(super) fn image(&self) -> &str {
        &self.image
    }

    /// The registry, as people call it.
    fn registry(&self) -> &str {
        match registry(&self.image) {
            DOCKER_HUB => "Docker Hub (docker.io)",
            host => host,
        }
    }

    /// `noun` is what pulls it, `engine` or `builder`; `place` is the step, ` in the step FROM x`.
    pub(super) fn describe(&self, noun: &str, place: &str, why: &str) -> String {
        let (image, registry) = (&self.image, self.registry());
        let what = match self.problem {
            Problem::RateLimit => format!("{registry} limits how often images are pulled"),
            Problem::Platform => format!("{registry} does not have it for this platform"),
            Problem::ShortName => "its name has no registry".to_owned(),
            Problem::Proxy => format!("the {noun}'s proxy for {registry} cannot be reached"),
            Problem::Dns => format!("the {noun} cannot find the host of {registry} (DNS)"),
            Problem::Tls => format!("there is no trusted TLS connection to {registry}"),
            Problem::Unreachable => format!("the {noun} cannot reach {registry}"),
            Problem::Denied => format!("{registry} denies access, or has no such image"),
            Problem::NotFound => format!("{registry} has no such image"),
            Problem::Other => format!("the {noun} cannot get it from {registry}"),
        };
        format!("the base image {image} cannot be pulled: {what}{place}: {why}")
    }

    pub(super) fn hint(&self, noun: &str, platform: &Platform) -> String {
        let registry = self.registry();
        let login = match registry_argument(&self.image) {
            "" => "docker login".to_owned(),
            host => format!("docker login {host}"),
        };
        match self.problem {
            Problem::RateLimit => {
                format!("log in for a higher limit ({login}), or try again later")
            }
            Problem::Platform => format!(
                "use a base image that exists for {platform} in the template's Dockerfile, or choose another platform \
                 with MOLECULE_IMAGE_PLATFORM"
            ),
            Problem::ShortName => {
                "write the registry into the FROM line of the template's Dockerfile, such as \
                 docker.io/library/python:3"
                    .to_owned()
            }
            Problem::Proxy => {
                let shown = if noun == "engine" {
                    ": docker info shows it"
                } else {
                    ""
                };
                format!(
                    "check the proxy of the {noun}, which is not the one of this process{shown}"
                )
            }
            Problem::Dns => format!(
                "check the network, the VPN and the DNS of the {noun}'s machine, and the name of {registry} in the \
                 template's Dockerfile"
            ),
            Problem::Tls => format!(
                "let the {noun} trust the certificate of {registry}, or, if that registry has no TLS, add it to the \
                 {noun}'s insecure registries"
            ),
            Problem::Unreachable => format!(
                "check that {registry} is up, and that the {noun}'s machine may reach it (network, VPN, firewall, \
                 proxy)"
            ),
            Problem::Denied => format!(
                "log in ({login}); if you are logged in, check the name of the image in the template's Dockerfile"
            ),
            Problem::NotFound => {
                "check the name and the tag of the image in the template's Dockerfile".to_owned()
            }
            Problem::Other => {
                format!(
                    "try again; if it fails again, read the log of the {noun} and of {registry}"
                )
            }
        }
    }
}

/// The name of an image without its registry, tag and digest.
fn repository(image: &str) -> &str {
    let (name, _) = image.split_once('@').unwrap_or((image, ""));
    let path = match name.split_once('/') {
        Some((host, path)) if registry(image) == host => path,
        _ => name,
    };
    path.split_once(':').map_or(path, |(path, _)| path)
}

/// Removes a name from a text where it is a whole word: `x` is removed from `repository%3Ax`, but not from `x509`.
fn without(text: &str, name: &str) -> String {
    let continues = |word: Option<char>| word.is_some_and(char::is_alphanumeric);
    let (mut kept, mut from) = (String::new(), 0);
    for (at, _) in text.match_indices(name) {
        let (end, before) = (at + name.len(), &text[..at]);
        let after_escape = before.rfind('%').is_some_and(|percent| percent + 3 == at);
        if (after_escape || !continues(before.chars().next_back()))
            && !continues(text[end..].chars().next())
        {
            kept.push_str(&text[from..at]);
            from = end;
        }
    }
    kept + &text[from..]
}

/// The argument of `docker login`.
fn registry_argument(image: &str) -> &str {
    match registry(image) {
        DOCKER_HUB => "",
        host => host,
    }
}

/// The image that the step pulls.
fn image_of<'t>(step: &'t str, reason: &'t str) -> Option<&'t str> {
    // BuildKit's own steps.
    for beginning in [LOAD_METADATA, "resolve image config for "] {
        if let Some(image) = step.strip_prefix(beginning) {
            return Some(image.strip_prefix("docker-image://").unwrap_or(image));
        }
    }
    let (_, instruction) = step.split_once("] ").unwrap_or(("", step));
    let mut words = instruction.split_whitespace();
    let keyword = words.next()?;
    if keyword.eq_ignore_ascii_case("FROM") {
        // Flags come first: `FROM --platform=linux/amd64 python`.
        return words.find(|word| !word.starts_with("--"));
    }
    // `COPY --from=image`, with the classic builder, which pulls the image in this step.
    let rest = reason.strip_prefix("invalid from flag value ")?;
    let (image, _) = rest.split_once(": ")?;
    keyword.eq_ignore_ascii_case("COPY").then_some(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(reason: &str) -> Problem {
        let step = "[1/2] FROM registry.example/team/not-found:1";
        BaseImage::of(step, reason).unwrap().problem
    }

    #[test]
    fn the_image_is_the_one_of_the_step() {
        let image = |step| image_of(step, "");
        assert_eq!(
            image("[internal] load metadata for docker.io/library/x:1"),
            Some("docker.io/library/x:1")
        );
        assert_eq!(
            image("resolve image config for docker-image://docker.io/docker/dockerfile:1"),
            Some("docker.io/docker/dockerfile:1")
        );
        assert_eq!(
            image("[1/2] FROM --platform=linux/arm64 python:3 AS x"),
            Some("python:3")
        );
        assert_eq!(
            image("FROM docker.io/library/x:1"),
            Some("docker.io/library/x:1")
        );
        for other in [
            "",
            "[2/2] RUN echo FROM x",
            "[internal] load build context",
            "[1/2] COPY a b",
        ] {
            assert_eq!(image(other), None, "{other}");
        }
        let classic = "invalid from flag value team/x: pull access denied for team/x";
        assert_eq!(
            image_of("[2/2] COPY --from=team/x a b", classic),
            Some("team/x")
        );
        assert_eq!(image_of("[2/2] RUN x", classic), None);
    }

    #[test]
    fn a_short_image_name_is_not_taken_out_of_words() {
        let says = "x: failed to do request: Head \"https://registry-1.docker.io/v2/library/x/manifests/1\": x509: \
                    certificate signed by unknown authority";
        let step = "[internal] load metadata for docker.io/library/x";
        for image in ["x", "docker.io/library/x"] {
            assert_eq!(without(says, image).matches("x509:").count(), 1, "{image}");
        }
        assert_eq!(without("x: no x/x", "x"), ": no /");
        assert_eq!(
            without("repository%3Ax%3Apull", "x"),
            "repository%3A%3Apull"
        );
        let found = BaseImage::of(step, says).unwrap();
        assert_eq!(found.problem, Problem::Tls);
    }

    #[test]
    fn words_in_an_image_name_do_not_change_the_problem() {
        for (reason, expected) in [
            (
                "registry.example/team/not-found:1: failed to do request: Head \"https://registry.example/v2/\": dial \
                 tcp: lookup registry.example on 10.0.0.1:53: no such host",
                Problem::Dns,
            ),
            (
                "Get \"https://registry.example/v2/\": proxyconnect tcp: dial tcp 10.0.0.1:3128: connect: connection \
                 refused",
                Problem::Proxy,
            ),
            (
                "Get \"https://registry.example/v2/\": http: server gave HTTP response to HTTPS client",
                Problem::Tls,
            ),
            (
                "toomanyrequests: You have reached your pull rate limit",
                Problem::RateLimit,
            ),
            (
                "pull access denied, repository does not exist or may require authorization: server message: \
                 insufficient_scope: authorization failed",
                Problem::Denied,
            ),
            (
                "Get \"https://registry.example/v2/team/not-found/manifests/1\": EOF",
                Problem::Unreachable,
            ),
            (
                "registry.example/team/not-found:1: manifest unknown",
                Problem::NotFound,
            ),
            (
                "no match for platform in manifest: not found",
                Problem::Platform,
            ),
            (
                "Get \"https://registry.example/v2/\": net/http: request canceled (Client.Timeout exceeded)",
                Problem::Unreachable,
            ),
            (
                "registry.example/team/not-found:1: received unexpected HTTP status: 503",
                Problem::Other,
            ),
        ] {
            assert_eq!(problem(reason), expected, "{reason}");
        }
    }
}
