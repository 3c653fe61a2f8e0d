//! Where images come from: pulled from a registry, or built here.

/// Where the server gets its images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegistryMode {
    /// No registry is set: images are built on this machine.
    Local,
    /// A registry is set: the engine pulls from it, and this library does nothing.
    Saas,
}

/// The prefix of the references of images that are built here.
///
/// It has no dot and no port, so that an engine never parses it as a registry host.
pub const LOCAL_IMAGE_PREFIX: &str = "molecule-local";

/// Where images come from, and what their references begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegistrySource<'a> {
    /// Whether images are pulled or built.
    pub mode: RegistryMode,
    /// The prefix of all image references.
    pub prefix: &'a str,
}

/// Reads the value of `MOLECULE_IMAGE_REGISTRY`.
///
/// Every non-empty value selects [`RegistryMode::Saas`] and is the prefix, verbatim. An invalid value fails at the pull.
/// If it counted as unset, a typing error in production would build images from source.
pub fn resolve(image_registry: Option<&str>) -> RegistrySource<'_> {
    match image_registry {
        Some(prefix) if !prefix.is_empty() => RegistrySource {
            mode: RegistryMode::Saas,
            prefix,
        },
        _ => RegistrySource {
            mode: RegistryMode::Local,
            prefix: LOCAL_IMAGE_PREFIX,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unset_and_empty_build_locally() {
        for value in [None, Some("")] {
            let source = resolve(value);
            assert_eq!(source.mode, RegistryMode::Local);
            assert_eq!(source.prefix, "molecule-local");
        }
    }

    #[test]
    fn any_other_value_is_a_registry_verbatim() {
        for value in [
            "registry.example/org",
            "not-a-url",
            "http://",
            "   ",
            "\t\n",
        ] {
            let source = resolve(Some(value));
            assert_eq!(source.mode, RegistryMode::Saas, "{value:?}");
            assert_eq!(source.prefix, value);
        }
    }
}
