//! Platforms of images.

use std::fmt;

/// The systems and architectures of containers, by Go's names (`go tool dist list`).
const SYSTEMS: [&str; 4] = ["linux", "windows", "freebsd", "darwin"];
const ARCHITECTURES: [&str; 15] = [
    "amd64", "arm64", "arm", "386", "riscv64", "ppc64le", "ppc64", "s390x", "loong64", "mips64le",
    "mips64", "mipsle", "mips", "sparc64", "wasm",
];

/// A platform: `os/arch[/variant]`, as in the OCI image index specification.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Platform {
    text: String,
}

impl Platform {
    /// The default platform: that of the images in the registry.
    pub const DEFAULT: &'static str = "linux/amd64";

    /// Accepts `os/arch[/variant]` in lower case, with Go's names of architectures.
    pub fn parse(text: &str) -> Option<Self> {
        if Self::go_arch(text).is_some() {
            return None;
        }
        let parts: Vec<&str> = text.split('/').collect();
        (matches!(parts.len(), 2 | 3) && parts.iter().all(|part| is_platform_part(part))).then(
            || Self {
                text: text.to_owned(),
            },
        )
    }

    /// Go's name of the architecture, if the text has another one, such as the kernel's. Docker accepts those too
    /// (containerd, `platforms.Normalize`), but tags have Go's.
    pub(crate) fn go_arch(text: &str) -> Option<&'static str> {
        match text.split('/').nth(1)? {
            "aarch64" => Some("arm64"),
            "x86_64" | "x86-64" => Some("amd64"),
            "i386" => Some("386"),
            "armhf" => Some("arm/v7"),
            "armel" => Some("arm/v6"),
            _ => None,
        }
    }

    /// The nearest platform with known names, if the system or the architecture of this one is unknown.
    pub(crate) fn nearest_known(&self) -> Option<String> {
        let nearest = |name: &str, known: &'static [&'static str]| {
            let similarity = |known: &&str| strsim::jaro_winkler(known, name);
            let best = known
                .iter()
                .max_by(|a, b| similarity(a).total_cmp(&similarity(b)));
            best.copied().unwrap_or_default()
        };
        let (os, arch) = self.os_arch();
        let known = (nearest(os, &SYSTEMS), nearest(arch, &ARCHITECTURES));
        (known != (os, arch)).then(|| format!("{}/{}", known.0, known.1))
    }

    /// `os/arch[/variant]`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether engines treat the two as equal: an architecture without a variant means its default one: v1 for amd64,
    /// v8 for arm64, v7 for arm (containerd, `platforms.Normalize`).
    pub(crate) fn is_same_as(&self, other: &str) -> bool {
        let normalized = |platform: &str| match platform.split_once('/') {
            Some((os, "amd64/v1")) => format!("{os}/amd64"),
            Some((os, "arm64/v8")) => format!("{os}/arm64"),
            Some((os, "arm/v7")) => format!("{os}/arm"),
            _ => platform.to_owned(),
        };
        normalized(&self.text) == normalized(other)
    }

    /// `os` and `arch`, which is all that an engine reports for an image.
    pub(crate) fn os_arch(&self) -> (&str, &str) {
        let mut parts = self.text.split('/');
        (
            parts.next().unwrap_or_default(),
            parts.next().unwrap_or_default(),
        )
    }
}

impl Default for Platform {
    fn default() -> Self {
        Self {
            text: Self::DEFAULT.to_owned(),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whether the text can be one part of a platform.
pub(super) fn is_platform_part(text: &str) -> bool {
    (1..=32).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_have_two_or_three_lower_case_parts() {
        for text in ["linux/amd64", "linux/arm/v7"] {
            let platform = Platform::parse(text).unwrap();
            assert_eq!((platform.as_str(), &*platform.to_string()), (text, text));
        }
        for (text, usual) in [
            ("linux/aarch64", "arm64"),
            ("linux/aarch64/v8", "arm64"),
            ("linux/x86_64", "amd64"),
            ("linux/x86-64", "amd64"),
            ("linux/i386", "386"),
            ("linux/armhf", "arm/v7"),
            ("linux/armel", "arm/v6"),
        ] {
            assert_eq!(Platform::parse(text), None, "{text}");
            assert_eq!(Platform::go_arch(text), Some(usual));
        }
        for text in [
            "",
            "linux",
            "linux/",
            "/amd64",
            "linux/amd64/",
            "Linux/amd64",
            "a/b/c/d",
            "linux/amd64,linux/arm64",
        ] {
            assert!(Platform::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn a_missing_variant_means_the_default_one() {
        let same = |a: &str, b: &str| Platform::parse(a).unwrap().is_same_as(b);
        for (short, full, other) in [
            ("linux/amd64", "linux/amd64/v1", "linux/amd64/v2"),
            ("linux/arm64", "linux/arm64/v8", "linux/arm64/v9"),
            ("linux/arm", "linux/arm/v7", "linux/arm/v6"),
        ] {
            assert!(same(short, full) && same(full, short), "{short}");
            assert!(!same(short, other) && !same(other, full), "{short}");
        }
    }

    #[test]
    fn a_mistyped_platform_has_a_nearest_known_one() {
        for (text, nearest) in [
            ("linux/amd", Some("linux/amd64")),
            ("linux/amd46/v2", Some("linux/amd64")),
            ("linux/arm46", Some("linux/arm64")),
            ("linus/amd64", Some("linux/amd64")),
            ("linux/riscv", Some("linux/riscv64")),
            ("linux/amd64", None),
            ("linux/arm/v7", None),
            ("windows/arm64", None),
        ] {
            let platform = Platform::parse(text).unwrap();
            assert_eq!(platform.nearest_known().as_deref(), nearest, "{text}");
        }
    }
}
