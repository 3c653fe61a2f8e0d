//! The template repositories: their common URL prefix, and the URLs of each.

use url::Url;

use crate::error::Result;
use crate::names::runtimes::Runtime;
use crate::options::{OptionName, invalid};

/// Stands for a runtime when the prefix is checked.
const SAMPLE: &str = "runtime";

/// The URL prefix of the template repositories: the runtime's name is appended to it.
///
/// It is parsed once, here. The URLs of a repository are put together from its parts and need no check of their
/// own: a [`Runtime`] has only characters that a URL path takes as they are, and the prefix ends in no character
/// that could combine with them.
#[derive(Clone, Debug)]
pub(crate) struct RepoPrefix {
    given: String,
    /// A repository on the server, for its origin and its host.
    server: Url,
    /// `/<sub-path>`, or nothing.
    sub_path: String,
    owner: String,
    /// The first part of a repository's name.
    name: String,
}

impl RepoPrefix {
    pub(super) const DEFAULT: &'static str =
        "https://git.moleculesai.app/molecule-ai/molecule-ai-workspace-template-";

    pub(super) fn parse(given: &str) -> Result<Self> {
        let refuse = |what: &str| {
            invalid(OptionName::RepoPrefix, what).hint(format!(
                "give the URL of a template repository without the runtime's name, as in {}",
                Self::DEFAULT
            ))
        };
        if given
            .chars()
            .any(|c| c.is_whitespace() || c.is_control() || c == '\\')
        {
            return Err(refuse(
                "contains white space, a control character or a backslash",
            ));
        }
        if given.contains('@') {
            return Err(refuse("contains a user name or a password")
                .hint("remove it, and set MOLECULE_GITEA_TOKEN instead"));
        }
        if given.contains('?') || given.contains('#') {
            return Err(refuse("contains a query or a fragment"));
        }
        let prefix = Self::split(given)
            .ok_or_else(|| refuse("is not a valid URL of an organisation and a repository"))?;
        if !matches!(prefix.server.scheme(), "http" | "https") {
            return Err(refuse("is neither an http:// nor an https:// address"));
        }
        Ok(prefix)
    }

    /// The parts of a prefix; `None` if it does not name an organisation and a repository.
    fn split(given: &str) -> Option<Self> {
        // A name could complete a percent escape, as in `%2` and `e`.
        let incomplete = given.bytes().rev().take(2).any(|byte| byte == b'%');
        let server = Url::parse(&format!("{given}{SAMPLE}")).ok()?;
        server.host_str()?;
        let mut segments: Vec<&str> = server.path_segments()?.collect();
        let name = segments.pop()?.strip_suffix(SAMPLE)?.to_owned();
        let owner = segments.pop()?.to_owned();
        if incomplete || owner.is_empty() || segments.contains(&"") {
            return None;
        }
        let sub_path = segments.iter().map(|segment| format!("/{segment}"));
        Some(Self {
            given: given.to_owned(),
            sub_path: sub_path.collect(),
            owner,
            name,
            server,
        })
    }

    /// The template repository of `runtime`.
    pub(crate) fn repository(&self, runtime: &Runtime) -> Repository {
        let Self { owner, name, .. } = self;
        Repository {
            url: self.url(&format!("/{owner}/{name}{runtime}")),
            api: self.api(&format!("repos/{owner}/{name}{runtime}")),
        }
    }

    /// An endpoint of Gitea's API: `<server>[/<sub-path>]/api/v1/<endpoint>`.
    pub(crate) fn api(&self, endpoint: &str) -> Url {
        self.url(&format!("/api/v1/{endpoint}"))
    }

    fn url(&self, path: &str) -> Url {
        let mut url = self.server.clone();
        url.set_path(&format!("{}{path}", self.sub_path));
        url
    }

    /// A URL on the template server. Only its origin means something.
    pub(crate) fn server(&self) -> &Url {
        &self.server
    }

    /// The prefix as it was given.
    pub(crate) fn as_str(&self) -> &str {
        &self.given
    }

    /// Whether requests go to another machine without TLS. The name localhost, and those below it, are this machine
    /// (RFC 6761).
    pub(crate) fn is_plain_text(&self) -> bool {
        let local = match self.server.host() {
            Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
            Some(url::Host::Ipv4(address)) => address.is_loopback(),
            Some(url::Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        };
        self.server.scheme() == "http" && !local
    }
}

/// The URLs of one template repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Repository {
    /// What git fetches from, and what errors name.
    pub(crate) url: Url,
    /// The repository in Gitea's API: `<server>[/<sub-path>]/api/v1/repos/<owner>/<name>`.
    pub(crate) api: Url,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use crate::names::runtimes;

    #[test]
    fn a_repository_has_a_url_for_git_and_one_for_the_api() {
        for (prefix, url, api) in [
            (
                "https://host/org/tpl-",
                "https://host/org/tpl-hermes",
                "https://host/api/v1/repos/org/tpl-hermes",
            ),
            (
                "https://host/org/",
                "https://host/org/hermes",
                "https://host/api/v1/repos/org/hermes",
            ),
            (
                "https://host:8443/git/org/tpl-",
                "https://host:8443/git/org/tpl-hermes",
                "https://host:8443/git/api/v1/repos/org/tpl-hermes",
            ),
            (
                "http://Host:80/a/b/./x/../or%20g/t\u{e9}.",
                "http://host/a/b/or%20g/t%C3%A9.hermes",
                "http://host/a/b/api/v1/repos/or%20g/t%C3%A9.hermes",
            ),
            (
                "https://host/org/.",
                "https://host/org/.hermes",
                "https://host/api/v1/repos/org/.hermes",
            ),
        ] {
            let repository = RepoPrefix::parse(prefix)
                .unwrap()
                .repository(&runtimes::known("hermes"));
            assert_eq!(repository.url.as_str(), url);
            assert_eq!(repository.api.as_str(), api);
            // The same as parsing the whole text.
            let whole = format!("{prefix}hermes");
            assert_eq!(repository.url, Url::parse(&whole).unwrap());
        }
    }

    #[test]
    fn a_refused_prefix_is_told_what_is_wrong_with_it() {
        for (prefix, what) in [
            ("https://host/org/tpl-?x=", "query"),
            ("https://host/org/tpl-#x", "fragment"),
            ("https://user@host/org/tpl-", "user name"),
            ("https://:secret@host/org/tpl-", "password"),
            ("https://host/org/tpl\u{1}", "control character"),
            ("https://host\\org/tpl-", "backslash"),
            ("ftp://host/org/tpl-", "http://"),
            ("https://host/tpl-", "organisation"),
        ] {
            let error = RepoPrefix::parse(prefix).unwrap_err();
            assert!(error.message().contains(what), "{prefix}: {error}");
        }
        let prefix = "https://HOST/org/tpl-";
        assert_eq!(RepoPrefix::parse(prefix).unwrap().as_str(), prefix);
    }

    #[test]
    fn a_prefix_that_names_no_repository_is_refused() {
        for prefix in [
            "https://host/",
            "https://host/tpl-",
            "https://host",
            "https://host//tpl-",
            "https://host//org/tpl-",
            "org/tpl-",
            "ftp://host/org/tpl-",
            "file:///org/tpl-",
            "https://host/org/tpl-?x=",
            "https://host/org/tpl-#",
            "https://host/org/ tpl-",
            "https://host/org/%2",
            "https://host/org/%",
            "https://user@host/org/tpl-",
        ] {
            let error = RepoPrefix::parse(prefix).unwrap_err();
            assert_eq!(error.code, Code::InvalidOption, "{prefix}");
            let variable = OptionName::RepoPrefix.name();
            assert!(error.message().contains(variable), "{error:?}");
        }
        let error = RepoPrefix::parse("https://u:hunter2@host/org/tpl-").unwrap_err();
        assert!(!format!("{error:?}").contains("hunter2"));
    }

    #[test]
    fn http_to_another_machine_is_plain_text() {
        for (server, expected) in [
            ("http://localhost", false),
            ("http://gitea.localhost:3000", false),
            ("http://127.0.0.2:3000", false),
            ("http://[::1]:3000", false),
            ("http://localhost.example", true),
            ("HTTP://10.0.0.1", true),
            ("https://10.0.0.1", false),
        ] {
            let prefix = RepoPrefix::parse(&format!("{server}/org/tpl-")).unwrap();
            assert_eq!(prefix.is_plain_text(), expected, "{server}");
        }
    }
}
