//! A build cache that machines share in a registry.

use crate::names::platform::Platform;
use crate::names::runtimes::Runtime;

/// A build cache in a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SharedCache {
    /// The registry and a path, such as `registry.example/team/cache`.
    prefix: String,
    pub(crate) write: bool,
}

/// The build cache of one runtime and platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RuntimeCache {
    pub(crate) repository: String,
    /// Each platform has a tag of its own, because a write replaces all of it.
    tag: String,
    pub(crate) write: bool,
}

/// `registry.example/team/cache (ro)`
impl std::fmt::Display for SharedCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mode = if self.write { "rw" } else { "ro" };
        write!(f, "{} ({mode})", self.prefix)
    }
}

impl SharedCache {
    /// `None` if `prefix` is not a registry with a path.
    pub(super) fn new(prefix: &str, write: bool) -> Option<Self> {
        is_repository(prefix).then(|| Self {
            prefix: prefix.to_owned(),
            write,
        })
    }

    /// The cache of a runtime and a platform.
    pub(crate) fn of(&self, runtime: &Runtime, platform: &Platform) -> RuntimeCache {
        RuntimeCache {
            repository: format!("{}/{runtime}", self.prefix),
            tag: platform.as_str().replace('/', "-"),
            write: self.write,
        }
    }
}

impl RuntimeCache {
    pub(crate) fn reference(&self) -> String {
        format!("{}:{}", self.repository, self.tag)
    }
}

/// Whether it is a registry with a path, by the grammar of github.com/distribution/reference.
fn is_repository(text: &str) -> bool {
    let Some((host, path)) = text.split_once('/') else {
        return false;
    };
    let (name, port) = host
        .split_once(':')
        .map_or((host, None), |(name, port)| (name, Some(port)));
    let is_label = |label: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(plain)
    };
    // Without a dot or a port it would be a path on Docker Hub.
    let is_host =
        name.split('.').all(is_label) && (name == "localhost" || host.contains(['.', ':']));
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let is_part = |part: &str| {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let is_separator =
            |run: &str| matches!(run, "." | "_" | "__") || run.bytes().all(|byte| byte == b'-');
        part.starts_with(plain) && part.ends_with(plain) && part.split(plain).all(is_separator)
    };
    is_host && port.is_none_or(is_port) && path.split('/').all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::runtimes::known;

    #[test]
    fn a_shared_cache_is_a_registry_with_a_path() {
        for good in [
            "registry.example/cache",
            "localhost/a/b",
            "127.0.0.1:5000/team/a_b-c.d",
            "registry.example/a__b---c",
        ] {
            assert!(is_repository(good), "{good}");
        }
        for bad in [
            "",
            "cache",
            "team/cache",
            "registry.example",
            "registry.example/",
            "https://registry.example/cache",
            "registry.example/Cache",
            "registry.example/cache:tag",
            "registry-.example/cache",
            "-registry.example/cache",
            "registry..example/cache",
            "registry.example:/cache",
            "registry.example:x/cache",
            "registry.example/../cache",
            "registry.example/a//b",
            "registry.example/a..b",
            "registry.example/a._b",
            "registry.example/a___b",
            "registry.example/a-_b",
            "registry.example/-a",
            "registry.example/a.",
            "user@registry.example/cache",
        ] {
            assert!(!is_repository(bad), "{bad}");
        }
    }

    #[test]
    fn a_shared_cache_is_shown_with_its_mode() {
        for (write, shown) in [(false, "r.example/c (ro)"), (true, "r.example/c (rw)")] {
            let cache = SharedCache::new("r.example/c", write).unwrap();
            assert_eq!(cache.to_string(), shown);
        }
    }

    #[test]
    fn each_runtime_and_platform_has_a_cache_of_its_own() {
        let cache = SharedCache::new("registry.example/cache", false).unwrap();
        let reference = |platform| {
            let platform = Platform::parse(platform).unwrap();
            cache.of(&known("hermes"), &platform).reference()
        };
        assert_eq!(
            reference("linux/amd64"),
            "registry.example/cache/hermes:linux-amd64"
        );
        assert_eq!(
            reference("linux/arm/v7"),
            "registry.example/cache/hermes:linux-arm-v7"
        );
    }
}
