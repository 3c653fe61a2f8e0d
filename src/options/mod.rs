//! The options of a client, by name and as text; `settings` checks them.
//!
//! The core never reads the environment, because another thread's `setenv` would race with it. The entry points
//! (the Go package, `mol_options_from_env`) read it and pass the values on as text. The rules for each value are
//! therefore written down once, here.

mod repository;
mod settings;
mod shared_cache;

use zeroize::Zeroizing;

pub(crate) use repository::{RepoPrefix, Repository};
pub use settings::Settings;
pub(crate) use settings::{
    BuilderSettings, BuilderTls, EngineSettings, NetworkSettings, PlatformChoice,
};
pub(crate) use shared_cache::RuntimeCache;

use crate::error::{Code, Error};
use crate::redact::{MIN_TOKEN, Masker, Secret};

/// Declares each option once, with its name: that of the environment variable, if there is one.
macro_rules! options {
    ($($(#[doc = $doc:literal])+ $option:ident = $name:literal;)+) => {
        /// An option. Most are named after an environment variable, and have its syntax.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum OptionName { $($(#[doc = $doc])+ $option,)+ }

        impl OptionName {
            /// All options.
            pub const ALL: &'static [Self] = &[$(Self::$option),+];

            /// The option's name: that of the environment variable, if there is one.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$option => $name),+ }
            }
        }
    };
}

options! {
    /// The URL prefix of the template repositories; the runtime's name is appended.
    RepoPrefix = "MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX";
    /// The branch to build from.
    Branch = "MOLECULE_LOCAL_TEMPLATE_BRANCH";
    /// The token for the template server, of 8 to 1024 visible ASCII characters.
    Token = "MOLECULE_GITEA_TOKEN";
    /// The cache folder. A relative path starts at the working directory.
    CacheDir = "MOLECULE_LOCAL_BUILD_CACHE";
    /// `os/arch[/variant]`, or `native`.
    Platform = "MOLECULE_IMAGE_PLATFORM";
    /// A suffix for the tags.
    Isolation = "MOLECULE_LOCAL_IMAGE_ISOLATION";
    /// `1`: do not use the network.
    Offline = "MOLECULE_LOCAL_OFFLINE";
    /// `1`: the template's `.runtime-version` is passed as a build argument.
    RuntimeVersionPin = "MOLECULE_LOCAL_RUNTIME_VERSION_PIN";
    /// The longest time without progress in a fetch or a build: seconds, or a duration such as `4m`.
    StallGrace = "MOLECULE_BUILD_STALL_GRACE_S";
    /// The time limit of a call without a deadline: seconds, or a duration such as `30m`.
    Ceiling = "MOLECULE_BUILD_CEILING_S";
    /// The address of the engine.
    DockerHost = "DOCKER_HOST";
    /// The name of the docker context to use.
    DockerContext = "DOCKER_CONTEXT";
    /// The folder of docker's `config.json`.
    DockerConfig = "DOCKER_CONFIG";
    /// Not empty: `tcp://` uses TLS, and the server certificate is verified.
    DockerTlsVerify = "DOCKER_TLS_VERIFY";
    /// The folder of `ca.pem`, `cert.pem` and `key.pem`.
    DockerCertPath = "DOCKER_CERT_PATH";
    /// `0`: use the classic builder.
    DockerBuildkit = "DOCKER_BUILDKIT";
    /// Where images are built, if not in the engine: the address of a BuildKit daemon, or the name of a buildx builder.
    Builder = "MOLECULE_LOCAL_BUILDER";
    /// A PEM file of the certificates to trust for a builder at a `tcp://` address: the CA's, or the builder's own.
    BuilderCa = "MOLECULE_LOCAL_BUILDER_CA";
    /// A PEM file with this client's certificate for the builder.
    BuilderCert = "MOLECULE_LOCAL_BUILDER_CERT";
    /// A PEM file with the key of that certificate.
    BuilderKey = "MOLECULE_LOCAL_BUILDER_KEY";
    /// The name in the builder's certificate, if it is not the host of its address.
    BuilderServerName = "MOLECULE_LOCAL_BUILDER_SERVER_NAME";
    /// A build cache in a registry, such as `registry.example/team/cache`.
    SharedCache = "MOLECULE_LOCAL_SHARED_CACHE";
    /// `ro`: the shared cache is only read; `rw`: every build also writes it, and the image goes through its registry.
    SharedCacheMode = "MOLECULE_LOCAL_SHARED_CACHE_MODE";
    /// The name of a buildx builder, if `MOLECULE_LOCAL_BUILDER` is not set.
    BuildxBuilder = "BUILDX_BUILDER";
    /// The folder of buildx's files.
    BuildxConfig = "BUILDX_CONFIG";
    /// The proxy for `https://` addresses.
    HttpsProxy = "HTTPS_PROXY";
    /// The proxy for `http://` addresses.
    HttpProxy = "HTTP_PROXY";
    /// The hosts that are reached without a proxy.
    NoProxy = "NO_PROXY";
    /// A file with trusted certificates.
    SslCertFile = "SSL_CERT_FILE";
    /// A folder with trusted certificates.
    SslCertDir = "SSL_CERT_DIR";
    /// The home folder.
    Home = "HOME";
    /// The folder for caches.
    XdgCacheHome = "XDG_CACHE_HOME";
    /// The folder for sockets.
    XdgRuntimeDir = "XDG_RUNTIME_DIR";
    /// The folder for temporary files.
    Tmpdir = "TMPDIR";
    /// The folders to search for credential helpers and `ssh`.
    SearchPath = "PATH";
    /// The most memory that the library may use, in MiB.
    Memory = "MOLECULE_BUILD_MEMORY_MIB";
    /// The allowlist that replaces the default one: names separated by commas.
    Runtimes = "runtimes";
    /// `auto` or `always`, see `TagArch` in docs/local-development.md.
    TagArch = "tag_arch";
    /// Commits to build instead of the head of the branch: `runtime=commit`, separated by commas.
    Pins = "pins";
}

impl OptionName {
    /// The option with this exact name.
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|option| option.name() == name)
    }

    /// Whether the option is read from the environment. The allowlist, the form of the tags and the pins are set in code
    /// only.
    const fn is_in_the_environment(self) -> bool {
        !matches!(self, Self::Runtimes | Self::TagArch | Self::Pins)
    }
}

/// The options that a caller has set, as text that is not checked yet.
#[derive(Clone, Default)]
pub struct Options {
    values: Vec<(OptionName, Secret)>,
}

impl Options {
    /// Sets an option. An empty text unsets it.
    pub fn set(&mut self, name: OptionName, value: &str) {
        self.values.retain(|(set, _)| *set != name);
        if !value.is_empty() {
            self.values.push((name, Secret::new(value)));
        }
    }

    /// Sets each option that has an environment variable to the value that `lookup` returns, and unsets it if there is
    /// none. For the proxies, the lower-case name takes precedence, as in curl; if it is set but empty, there is no
    /// proxy.
    pub fn set_all_from(&mut self, lookup: impl Fn(&str) -> Option<String>) {
        let from_env = |name: &&OptionName| name.is_in_the_environment();
        for &name in OptionName::ALL.iter().filter(from_env) {
            let env = name.name();
            let value = match name {
                OptionName::HttpsProxy | OptionName::HttpProxy | OptionName::NoProxy => {
                    lookup(&env.to_ascii_lowercase()).or_else(|| lookup(env))
                }
                _ => lookup(env),
            };
            self.set(name, &Zeroizing::new(value.unwrap_or_default()));
        }
    }

    fn get(&self, name: OptionName) -> Option<&str> {
        self.values
            .iter()
            .find(|(set, _)| *set == name)
            .map(|(_, value)| value.expose())
    }

    /// The masker for the token. It ignores a token that is too short: the options will be refused, and the
    /// message could contain such a token by accident.
    pub fn masker(&self) -> Masker {
        match self.get(OptionName::Token) {
            Some(token) if token.len() >= MIN_TOKEN => Masker::new(&Secret::new(token)),
            _ => Masker::default(),
        }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set()
            .entries(self.values.iter().map(|(name, _)| name))
            .finish()
    }
}

/// The error for an option whose value cannot be used. `what` completes the sentence that starts with its name.
fn invalid(name: OptionName, what: &str) -> Error {
    let option = if name.is_in_the_environment() {
        ""
    } else {
        "option "
    };
    Error::new(
        Code::InvalidOption,
        format!("{option}{} {what}", name.name()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_is_found_by_its_exact_name() {
        for option in OptionName::ALL {
            assert_eq!(OptionName::find(option.name()), Some(*option));
        }
        assert_eq!(OptionName::find("docker_host"), None);
        assert_eq!(OptionName::find(""), None);
    }

    #[test]
    fn a_token_that_is_too_short_is_not_masked() {
        for (token, shown) in [("1234567", "1234567"), ("12345678", "***")] {
            let mut options = Options::default();
            options.set(OptionName::Token, token);
            assert_eq!(options.masker().text(token), shown);
        }
    }

    #[test]
    fn the_environment_sets_options_by_name_and_proxies_in_lower_case_too() {
        let mut options = Options::default();
        let environment = [
            (OptionName::Branch.name(), "next"),
            ("HTTPS_PROXY", "upper"),
            ("https_proxy", "lower"),
            ("HTTP_PROXY", "set"),
            ("http_proxy", ""),
            ("NO_PROXY", "localhost"),
            ("docker_host", "unix:///run/docker.sock"),
        ];
        options.set_all_from(|asked| {
            let found = environment.iter().find(|(name, _)| *name == asked);
            found.map(|(_, value)| (*value).to_owned())
        });
        for (name, value) in [
            (OptionName::Branch, Some("next")),
            (OptionName::HttpsProxy, Some("lower")),
            (OptionName::HttpProxy, None),
            (OptionName::NoProxy, Some("localhost")),
            (OptionName::DockerHost, None),
        ] {
            assert_eq!(options.get(name), value, "{name:?}");
        }
    }

    #[test]
    fn debug_shows_which_options_are_set_and_no_value() {
        let mut options = Options::default();
        options.set(OptionName::Token, "s3cr3t-t0ken");
        assert_eq!(format!("{options:?}"), "{Token}");
    }

    #[test]
    fn runtimes_tag_form_and_pins_are_not_read_from_the_environment() {
        let mut options = Options::default();
        options.set_all_from(|_| Some("hermes=".into()));
        for name in [OptionName::Runtimes, OptionName::TagArch, OptionName::Pins] {
            assert_eq!(options.get(name), None, "{name:?}");
        }
    }
}
