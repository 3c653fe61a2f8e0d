//! The settings of a client: its [`Options`], checked, with the defaults filled in.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::Result;
use crate::names::commit::CommitSha;
use crate::names::platform::Platform;
use crate::names::reference::{Isolation, TagArch, TagRules};
use crate::names::runtimes::{self, Runtime, Runtimes};
use crate::options::shared_cache::SharedCache;
use crate::options::{OptionName, Options, RepoPrefix, invalid};
use crate::process::memory;
use crate::redact::{MAX_TOKEN, MIN_TOKEN, Secret};

/// The checked options.
#[derive(Clone, Debug)]
pub struct Settings {
    pub(crate) repo_prefix: RepoPrefix,
    pub(crate) branch: Option<String>,
    pub(crate) token: Secret,
    pub(crate) cache_dir: PathBuf,
    pub(crate) platform: PlatformChoice,
    pub(crate) tags: TagRules,
    pub(crate) runtimes: Runtimes,
    pub(crate) pins: HashMap<Runtime, CommitSha>,
    pub(crate) offline: bool,
    pub(crate) runtime_version_pin: bool,
    pub(crate) stall_grace: Duration,
    pub(crate) ceiling: Duration,
    /// In bytes.
    pub(crate) memory: u64,
    pub(crate) engine: EngineSettings,
    pub(crate) network: NetworkSettings,
}

/// The platform of the images.
#[derive(Clone, Debug)]
pub(crate) enum PlatformChoice {
    Fixed(Platform),
    /// The platform of the engine.
    Native,
}

/// The options that select the engine, as for the docker CLI.
#[derive(Clone, Debug, Default)]
pub(crate) struct EngineSettings {
    pub(crate) host: Option<String>,
    pub(crate) context: Option<String>,
    pub(crate) config_dir: Option<PathBuf>,
    pub(crate) tls_verify: bool,
    pub(crate) cert_path: Option<PathBuf>,
    pub(crate) classic_builder: bool,
    pub(crate) home: Option<PathBuf>,
    pub(crate) runtime_dir: Option<PathBuf>,
    pub(crate) search_path: Option<String>,
    pub(crate) builder: Option<BuilderSettings>,
    pub(crate) shared_cache: Option<SharedCache>,
}

/// The options of a builder other than the engine's own.
#[derive(Clone, Debug)]
pub(crate) struct BuilderSettings {
    /// An address, or the name of a buildx builder.
    pub(crate) value: String,
    /// The option with the value.
    pub(crate) option: &'static str,
    pub(crate) tls: BuilderTls,
    /// The folder of buildx's files, if it is not below that of docker's configuration.
    pub(crate) buildx_config: Option<PathBuf>,
}

/// The files and the name for the TLS connection to a builder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BuilderTls {
    pub(crate) ca: Option<PathBuf>,
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) server_name: Option<String>,
}

/// Proxies and trusted certificates for the template server. The address of a proxy may contain a password.
#[derive(Clone, Debug)]
pub(crate) struct NetworkSettings {
    pub(crate) https_proxy: Option<Secret>,
    pub(crate) http_proxy: Option<Secret>,
    pub(crate) no_proxy: Option<String>,
    pub(crate) cert_file: Option<PathBuf>,
    pub(crate) cert_dir: Option<PathBuf>,
}

impl Options {
    /// Checks every value and fills in the defaults.
    ///
    /// # Errors
    ///
    /// [`Code::InvalidOption`](crate::error::Code::InvalidOption), with the name of the option. An invalid value
    /// is never treated as unset.
    pub fn settings(&self) -> Result<Settings> {
        let text = |name| self.get(name).map(str::to_owned);
        let path = |name| self.get(name).map(PathBuf::from);
        // First: the other errors quote values, in which a token that is too short would not be masked.
        let token = self.token()?;
        let runtimes = self.runtimes()?;
        Ok(Settings {
            token,
            pins: self.pins(&runtimes)?,
            runtimes,
            repo_prefix: self.repo_prefix()?,
            branch: self
                .get(OptionName::Branch)
                .map(|branch| self.branch(branch))
                .transpose()?,
            cache_dir: self.cache_dir()?,
            platform: self.platform()?,
            tags: TagRules {
                arch: self.tag_arch()?,
                isolation: self.isolation()?,
            },
            offline: self.flag(OptionName::Offline)?,
            runtime_version_pin: self.flag(OptionName::RuntimeVersionPin)?,
            stall_grace: self.duration(OptionName::StallGrace, 240)?,
            ceiling: self.duration(OptionName::Ceiling, 1800)?,
            memory: self.memory()?,
            engine: EngineSettings {
                host: self.engine_host()?,
                context: text(OptionName::DockerContext),
                config_dir: path(OptionName::DockerConfig)
                    .or_else(|| Some(path(OptionName::Home)?.join(".docker"))),
                tls_verify: self.get(OptionName::DockerTlsVerify).is_some(),
                cert_path: path(OptionName::DockerCertPath),
                classic_builder: self.classic_builder()?,
                home: path(OptionName::Home),
                runtime_dir: path(OptionName::XdgRuntimeDir),
                search_path: text(OptionName::SearchPath),
                builder: self.builder()?,
                shared_cache: self.shared_cache()?,
            },
            network: NetworkSettings {
                https_proxy: text(OptionName::HttpsProxy).map(Secret::new),
                http_proxy: text(OptionName::HttpProxy).map(Secret::new),
                no_proxy: text(OptionName::NoProxy),
                cert_file: path(OptionName::SslCertFile),
                cert_dir: path(OptionName::SslCertDir),
            },
        })
    }

    fn repo_prefix(&self) -> Result<RepoPrefix> {
        let prefix = self
            .get(OptionName::RepoPrefix)
            .unwrap_or(RepoPrefix::DEFAULT);
        let parsed = RepoPrefix::parse(prefix)?;
        // Every error and every image contains the URL of the repository.
        self.without_token(OptionName::RepoPrefix, prefix)?;
        Ok(parsed)
    }

    fn runtimes(&self) -> Result<Runtimes> {
        let Some(list) = self.get(OptionName::Runtimes) else {
            return Ok(Runtimes::default());
        };
        let mut names = Vec::new();
        for name in list.split(',') {
            let hint = format!(
                "use at most {} lower-case letters, digits and '-', with a letter or digit at both ends",
                runtimes::MAX_NAME
            );
            if !runtimes::is_valid_name(name) {
                let what = format!("has an invalid name: {:?}", self.printable(name));
                return Err(invalid(OptionName::Runtimes, &what).hint(hint));
            }
            if names.contains(&name) {
                let what = format!("has a duplicate name: {name:?}");
                return Err(invalid(OptionName::Runtimes, &what).hint("remove one of them"));
            }
            self.without_token(OptionName::Runtimes, name)?;
            names.push(name);
        }
        Ok(Runtimes::new(names))
    }

    /// The commits to build instead of the head of the branch. An unknown runtime is an error: it may be a typo,
    /// and ignoring its pin would build another commit.
    fn pins(&self, runtimes: &Runtimes) -> Result<HashMap<Runtime, CommitSha>> {
        let list = self.get(OptionName::Pins).unwrap_or_default();
        let mut pins = HashMap::new();
        for pin in list.split(',').filter(|_| !list.is_empty()) {
            let invalid = |what: &str| {
                let what = format!("has {what}: {:?}", self.printable(pin));
                invalid(OptionName::Pins, &what)
            };
            let Some((name, commit)) = pin.split_once('=') else {
                return Err(invalid("an entry without \"=\"").hint("use runtime=commit"));
            };
            let Some(runtime) = runtimes.find(name) else {
                let hint = runtimes.unknown(&self.printable(name)).hint;
                return Err(invalid("an unknown runtime").hint(hint));
            };
            let commit = CommitSha::given(commit).ok_or_else(|| {
                invalid("an invalid commit")
                    .hint("give all 40 or 64 hexadecimal digits of the commit")
            })?;
            self.without_token(OptionName::Pins, commit.as_str())?;
            if pins.insert(runtime.clone(), commit).is_some() {
                let hint = "remove one of them";
                return Err(invalid("two commits for one runtime").hint(hint));
            }
        }
        Ok(pins)
    }

    fn tag_arch(&self) -> Result<TagArch> {
        match self.get(OptionName::TagArch) {
            None | Some("auto") => Ok(TagArch::Auto),
            Some("always") => Ok(TagArch::Always),
            Some(other) => {
                let what = format!("is neither auto nor always: {:?}", self.printable(other));
                Err(invalid(OptionName::TagArch, &what).hint("leave it unset for auto"))
            }
        }
    }

    /// The folder in the option, or one below the user's cache folder, or one below the folder for temporary files
    /// (XDG base directory specification: a relative `XDG_CACHE_HOME` is ignored).
    fn cache_dir(&self) -> Result<PathBuf> {
        if let Some(dir) = self.get(OptionName::CacheDir) {
            if dir.starts_with('~') {
                let hint = "write out the path of the home folder: only a shell expands ~";
                return Err(invalid(OptionName::CacheDir, "starts with ~").hint(hint));
            }
            return std::path::absolute(dir).map_err(|error| {
                let what = format!("is relative, and the working directory is unknown: {error}");
                invalid(OptionName::CacheDir, &what)
                    .hint("give an absolute path, for example /var/cache/molecule")
            });
        }
        let absolute = |name| {
            self.get(name)
                .map(Path::new)
                .filter(|dir| dir.is_absolute())
        };
        let base = absolute(OptionName::XdgCacheHome)
            .map(Path::to_path_buf)
            .or_else(|| Some(absolute(OptionName::Home)?.join(".cache")))
            .or_else(|| absolute(OptionName::Tmpdir).map(Path::to_path_buf))
            .unwrap_or_else(|| PathBuf::from("/tmp"));
        Ok(base.join("molecule/workspace-template-build"))
    }

    fn platform(&self) -> Result<PlatformChoice> {
        match self.get(OptionName::Platform) {
            None => Ok(PlatformChoice::Fixed(Platform::default())),
            Some("native") => Ok(PlatformChoice::Native),
            Some(text) => {
                let platform = Platform::parse(text).ok_or_else(|| {
                    let what = format!("is not a valid platform: {:?}", self.printable(text));
                    let error = invalid(OptionName::Platform, &what);
                    match Platform::go_arch(text) {
                        Some(arch) => {
                            error.hint(format!("use Go's name of the architecture: {arch}"))
                        }
                        None => error.hint(
                            "use os/arch or os/arch/variant, for example linux/arm64, or native",
                        ),
                    }
                })?;
                self.without_token(OptionName::Platform, text)?;
                if let Some(nearest) = platform.nearest_known() {
                    let what = format!("is not a known platform: {text:?}");
                    let hint = format!(
                        "did you mean {nearest}? use Go's names: os/arch or os/arch/variant"
                    );
                    return Err(invalid(OptionName::Platform, &what).hint(hint));
                }
                Ok(PlatformChoice::Fixed(platform))
            }
        }
    }

    fn isolation(&self) -> Result<Isolation> {
        let text = self.get(OptionName::Isolation).unwrap_or_default();
        let isolation = Isolation::parse(text)?;
        self.without_token(OptionName::Isolation, text)?;
        Ok(isolation)
    }

    /// The address of the engine. Messages show a socket path as it was given, with the token masked. Other
    /// addresses are shown in parts, in which the token would not be recognised, so they must not contain it.
    fn engine_host(&self) -> Result<Option<String>> {
        let host = self.get(OptionName::DockerHost);
        if let Some(host) = host.filter(|host| !host.trim().starts_with("unix://")) {
            self.without_token(OptionName::DockerHost, host)?;
        }
        Ok(host.map(str::to_owned))
    }

    /// The builder, unless it is the engine's own, which buildx calls `default`.
    fn builder(&self) -> Result<Option<BuilderSettings>> {
        let path = |name| self.get(name).map(PathBuf::from);
        let tls = BuilderTls {
            ca: path(OptionName::BuilderCa),
            cert: path(OptionName::BuilderCert),
            key: path(OptionName::BuilderKey),
            server_name: self.get(OptionName::BuilderServerName).map(str::to_owned),
        };
        let named = [OptionName::Builder, OptionName::BuildxBuilder]
            .into_iter()
            .find_map(|name| Some((name, self.get(name)?.trim())))
            .filter(|(_, value)| *value != "default");
        let is_tcp = named.is_some_and(|(name, value)| {
            name == OptionName::Builder && value.starts_with("tcp://")
        });
        let tls_options = [
            (OptionName::BuilderCa, tls.ca.is_some()),
            (OptionName::BuilderCert, tls.cert.is_some()),
            (OptionName::BuilderKey, tls.key.is_some()),
            (OptionName::BuilderServerName, tls.server_name.is_some()),
        ];
        if let Some((name, _)) = tls_options.iter().find(|(_, set)| *set && !is_tcp) {
            let what = "is set, but MOLECULE_LOCAL_BUILDER is not a tcp:// address";
            return Err(invalid(*name, what).hint(
                "unset it: only a tcp:// address takes it, and a buildx builder has certificates of its own",
            ));
        }
        for (name, set, needed, with) in [
            (
                OptionName::BuilderCert,
                &tls.cert,
                &tls.key,
                OptionName::BuilderKey,
            ),
            (
                OptionName::BuilderKey,
                &tls.key,
                &tls.cert,
                OptionName::BuilderCert,
            ),
            (
                OptionName::BuilderCert,
                &tls.cert,
                &tls.ca,
                OptionName::BuilderCa,
            ),
        ] {
            if set.is_some() && needed.is_none() {
                let what = format!("is set, but {} is not", with.name());
                return Err(invalid(name, &what).hint("set both"));
            }
        }
        if tls.server_name.is_some() && tls.ca.is_none() {
            let what = format!("is set, but {} is not", OptionName::BuilderCa.name());
            return Err(invalid(OptionName::BuilderServerName, &what).hint("set both"));
        }
        let Some((name, value)) = named else {
            return Ok(None);
        };
        self.without_token(name, value)?;
        Ok(Some(BuilderSettings {
            value: value.to_owned(),
            option: name.name(),
            tls,
            buildx_config: path(OptionName::BuildxConfig),
        }))
    }

    fn shared_cache(&self) -> Result<Option<SharedCache>> {
        let mode = self.get(OptionName::SharedCacheMode);
        let write = match mode {
            None | Some("ro") => false,
            Some("rw") => true,
            Some(other) => {
                let what = format!("is neither ro nor rw: {:?}", self.printable(other));
                return Err(invalid(OptionName::SharedCacheMode, &what)
                    .hint("use rw where the cache is to be written, and ro everywhere else"));
            }
        };
        let Some(prefix) = self.get(OptionName::SharedCache) else {
            return match write {
                false => Ok(None),
                true => Err(invalid(
                    OptionName::SharedCacheMode,
                    "is rw, but MOLECULE_LOCAL_SHARED_CACHE is not set",
                )
                .hint("set it to registry.example/path, or unset the mode")),
            };
        };
        let Some(cache) = SharedCache::new(prefix, write) else {
            let what = format!(
                "is not a registry with a path: {:?}",
                self.printable(prefix)
            );
            return Err(invalid(OptionName::SharedCache, &what).hint(
                "use host/path or host:port/path in lower case, without a scheme or a tag, for example registry.example/team/cache",
            ));
        };
        self.without_token(OptionName::SharedCache, prefix)?;
        Ok(Some(cache))
    }

    /// Refuses a value that contains the token: image names are never masked, and a masked URL would make every error
    /// useless.
    fn without_token(&self, name: OptionName, value: &str) -> Result<()> {
        if !self.masker().finds_token_in(value) {
            return Ok(());
        }
        Err(invalid(name, "contains the token").hint("remove it: MOLECULE_GITEA_TOKEN is enough"))
    }

    /// A branch name that git allows (git-check-ref-format) and that is not too long for Gitea.
    fn branch(&self, branch: &str) -> Result<String> {
        let bad_part =
            |part: &str| part.is_empty() || part.starts_with('.') || part.ends_with(".lock");
        let refused = branch.len() > 255
            || branch == "@"
            || branch.starts_with('-')
            || branch.ends_with('.')
            || branch.contains("..")
            || branch.contains("@{")
            || branch
                .chars()
                .any(|c| c.is_ascii_control() || " ~^:?*[\\".contains(c))
            || branch.split('/').any(bad_part);
        if refused {
            let what = format!("is not a valid branch name: {:?}", self.printable(branch));
            return Err(invalid(OptionName::Branch, &what)
                .hint("give the branch as git shows it, for example feature/x"));
        }
        Ok(branch.to_owned())
    }

    /// A value as it is quoted in messages: masked and shortened.
    fn printable(&self, text: &str) -> String {
        self.masker().shown(text, 64)
    }

    /// The token is sent in a header, which can only contain visible ASCII.
    fn token(&self) -> Result<Secret> {
        let token = self.get(OptionName::Token).unwrap_or_default();
        if (1..MIN_TOKEN).contains(&token.len()) {
            let what = format!("is shorter than {MIN_TOKEN} characters");
            return Err(invalid(OptionName::Token, &what).hint(
                "copy the whole token from the template server, or unset it for public repositories",
            ));
        }
        if token.len() > MAX_TOKEN {
            let what = format!("is longer than {MAX_TOKEN} characters");
            return Err(invalid(OptionName::Token, &what).hint("check that the value is a token"));
        }
        if token.bytes().all(|b| b.is_ascii_graphic()) {
            return Ok(Secret::new(token));
        }
        Err(invalid(
            OptionName::Token,
            "contains an invalid character (a space, a line break or a character outside ASCII)",
        )
        .hint("copy the token from the template server again, without white space around it"))
    }

    fn flag(&self, name: OptionName) -> Result<bool> {
        match self.get(name) {
            None | Some("0" | "false") => Ok(false),
            Some("1" | "true") => Ok(true),
            Some(other) => Err(invalid(
                name,
                &format!("is neither 1 nor 0: {:?}", self.printable(other)),
            )
            .hint("set it to 1, or leave it unset")),
        }
    }

    /// As the docker CLI reads it, with Go's `strconv.ParseBool`.
    fn classic_builder(&self) -> Result<bool> {
        match self.get(OptionName::DockerBuildkit) {
            None | Some("1" | "t" | "T" | "TRUE" | "true" | "True") => Ok(false),
            Some("0" | "f" | "F" | "FALSE" | "false" | "False") => Ok(true),
            Some(other) => Err(invalid(
                OptionName::DockerBuildkit,
                &format!("is neither 1 nor 0: {:?}", self.printable(other)),
            )
            .hint("set it to 0 for the classic builder, or leave it unset")),
        }
    }

    /// Seconds, or hours, minutes, seconds and milliseconds in a form that Go's `time.ParseDuration` and humantime both
    /// accept; see `tests/vectors/durations.json`.
    fn duration(&self, name: OptionName, default_seconds: u64) -> Result<Duration> {
        /// A year. Longer values are typos, and could overflow a clock.
        const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
        const SHORTEST: Duration = Duration::from_millis(1);
        let Some(text) = self.get(name) else {
            return Ok(Duration::from_secs(default_seconds));
        };
        let digit = |b: u8| b.is_ascii_digit();
        let duration = if text.bytes().all(digit) {
            text.parse().ok().map(Duration::from_secs)
        } else if text.bytes().all(|b| digit(b) || b".hms".contains(&b)) {
            humantime::parse_duration(text).ok()
        } else {
            None
        };
        duration
            .filter(|duration| (SHORTEST..=LONGEST).contains(duration))
            .ok_or_else(|| {
                let what = format!("is not a valid duration: {:?}", self.printable(text));
                invalid(name, &what)
                    .hint("use seconds or a duration, for example 600 or 10m, of at most a year")
            })
    }

    /// The memory limit, in bytes.
    fn memory(&self) -> Result<u64> {
        const MOST_MIB: u64 = 1 << 20;
        let name = OptionName::Memory;
        let Some(text) = self.get(name) else {
            return Ok(memory::DEFAULT_MIB << 20);
        };
        match text.parse() {
            Ok(mib @ memory::LEAST_MIB..=MOST_MIB) => Ok(mib << 20),
            _ => Err(invalid(
                name,
                &format!(
                    "is not a number of MiB from {} to {MOST_MIB}: {:?}",
                    memory::LEAST_MIB,
                    self.printable(text)
                ),
            )
            .hint("use a whole number, for example 1024")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    fn with(name: OptionName, value: &str) -> Result<Settings> {
        with_all(&[(name, value)])
    }

    fn with_all(values: &[(OptionName, &str)]) -> Result<Settings> {
        let mut options = Options::default();
        options.set(OptionName::Home, "/home/u");
        for (name, value) in values {
            options.set(*name, value);
        }
        options.settings()
    }

    #[test]
    fn the_defaults_are_those_of_the_documentation() {
        let settings = with(OptionName::Home, "/home/u").unwrap();
        assert_eq!(
            settings.cache_dir,
            Path::new("/home/u/.cache/molecule/workspace-template-build")
        );
        assert_eq!(settings.stall_grace.as_secs(), 240);
        assert_eq!(settings.ceiling.as_secs(), 1800);
        assert!(settings.token.is_empty() && !settings.offline);
    }

    #[test]
    fn the_debug_output_shows_no_secret() {
        let proxy = "http://me:hunter2@proxy.example:3128";
        let settings = with_all(&[
            (OptionName::Token, "hunter2-token"),
            (OptionName::HttpsProxy, proxy),
            (OptionName::HttpProxy, proxy),
        ]);
        let shown = format!("{settings:?}");
        assert!(
            shown.starts_with("Ok(") && !shown.contains("hunter2"),
            "{shown}"
        );
    }

    #[test]
    fn the_classic_builder_is_chosen_as_the_docker_cli_reads_it() {
        for (value, classic) in [
            ("", false),
            ("1", false),
            ("true", false),
            ("0", true),
            ("false", true),
            ("F", true),
        ] {
            let settings = with(OptionName::DockerBuildkit, value).unwrap();
            assert_eq!(settings.engine.classic_builder, classic, "{value:?}");
        }
        let error = with(OptionName::DockerBuildkit, "off").unwrap_err();
        assert!(
            error
                .message()
                .contains("DOCKER_BUILDKIT is neither 1 nor 0"),
            "{error:?}"
        );
    }

    #[test]
    fn an_invalid_value_is_an_error_and_not_treated_as_unset() {
        for (name, value) in [
            (OptionName::StallGrace, "soon"),
            (OptionName::StallGrace, "0"),
            (OptionName::Ceiling, "-1"),
            (OptionName::Ceiling, "99999999999999999999"),
            (OptionName::Memory, "255"),
            (OptionName::Memory, "1 GiB"),
            (OptionName::Offline, "yes"),
            (OptionName::Platform, "amd64"),
            (OptionName::Isolation, "Not A Tag"),
            (OptionName::CacheDir, "~/cache"),
            (OptionName::Ceiling, "9000h"),
            (OptionName::Runtimes, "hermes,"),
            (OptionName::Runtimes, "hermes, codex"),
            (OptionName::Runtimes, "hermes,codex,hermes"),
            (OptionName::Runtimes, "Hermes"),
            (OptionName::Runtimes, "hermes-"),
            (OptionName::TagArch, "Always"),
            (OptionName::Pins, "hermes"),
            (OptionName::Pins, "hermes=0123456789ab"),
            (
                OptionName::Pins,
                "hermse=0123456789abcdef0123456789abcdef01234567",
            ),
            (
                OptionName::Pins,
                "hermes=0123456789abcdef0123456789abcdef01234567,hermes=0123456789abcdef0123456789abcdef01234567",
            ),
            (OptionName::Token, "two words"),
            (OptionName::Token, "seven77"),
            (OptionName::Branch, "a..b"),
        ] {
            let error = with(name, value).unwrap_err();
            assert_eq!(error.code, Code::InvalidOption, "{value}");
            assert!(error.message().contains(name.name()), "{error}");
            assert!(!error.hint.is_empty());
        }
    }

    #[test]
    fn durations_are_parsed_as_in_the_vectors() {
        let vectors = include_str!("../../tests/vectors/durations.json");
        let vectors: serde_json::Value = serde_json::from_str(vectors).unwrap();
        for case in vectors["cases"].as_array().unwrap() {
            let settings = with(OptionName::StallGrace, case["text"].as_str().unwrap());
            let ms = settings.map(|settings| settings.stall_grace.as_millis());
            match case["ms"].as_u64() {
                Some(want) => assert_eq!(ms.unwrap(), u128::from(want), "{case}"),
                None => assert_eq!(ms.unwrap_err().code, Code::InvalidOption, "{case}"),
            }
        }
    }

    #[test]
    fn white_space_around_the_isolation_is_ignored() {
        let isolation = |text| with(OptionName::Isolation, text).unwrap().tags.isolation;
        assert_eq!(isolation(" ci-1\n"), Isolation::parse("ci-1").unwrap());
        assert_eq!(isolation(" \t"), Isolation::default());
    }

    #[test]
    fn a_relative_cache_folder_starts_at_the_working_directory() {
        let settings = with(OptionName::CacheDir, "some/cache").unwrap();
        let expected = std::env::current_dir().unwrap().join("some/cache");
        assert_eq!(settings.cache_dir, expected);
    }

    #[test]
    fn a_custom_allowlist_replaces_the_default_and_can_be_pinned() {
        let mut options = Options::default();
        options.set(OptionName::Runtimes, "zeta,google-adk");
        options.set(OptionName::Pins, &format!("zeta={}", "A".repeat(40)));
        let settings = options.settings().unwrap();
        let zeta = settings.runtimes.find("zeta").unwrap();
        assert_eq!(settings.pins[zeta].as_str(), "a".repeat(40));
        assert_eq!(settings.pins.len(), 1);
        assert!(settings.runtimes.find("hermes").is_none());
    }

    #[test]
    fn branch_names_are_those_that_git_allows() {
        let longest = "a".repeat(255);
        for branch in [
            "main",
            "feature/x",
            "größe",
            "日本/語",
            "a@b",
            "a.b",
            "a-",
            &longest,
        ] {
            with(OptionName::Branch, branch).unwrap();
        }
        let too_long = "a".repeat(256);
        for branch in [
            "@", "-a", "a.", "a..b", "a@{b", "a b", "a~b", "a^b", "a:b", "a?b", "a*b", "a[b",
            "a\\b", "a\u{7f}b", "a//b", "/a", "a/", ".a", "a/.b", "a.lock", "a.lock/b", &too_long,
        ] {
            let error = with(OptionName::Branch, branch).unwrap_err();
            let start: String = branch.chars().take(8).collect();
            let start = start.replace('\\', "\\\\").replace('\u{7f}', "");
            assert!(error.message().contains(&start), "{branch}: {error}");
        }
    }

    #[test]
    fn memory_and_the_length_of_the_token_have_limits() {
        for (name, least, most, below, above) in [
            (OptionName::Memory, "256", "1048576", "255", "1048577"),
            (
                OptionName::Token,
                &*"t".repeat(MIN_TOKEN),
                &*"t".repeat(MAX_TOKEN),
                &*"t".repeat(MIN_TOKEN - 1),
                &*"t".repeat(MAX_TOKEN + 1),
            ),
        ] {
            for (value, allowed) in [(least, true), (most, true), (below, false), (above, false)] {
                let length = value.len();
                assert_eq!(
                    with(name, value).is_ok(),
                    allowed,
                    "{} {length}",
                    name.name()
                );
            }
        }
        let memory = |value| with(OptionName::Memory, value).unwrap().memory;
        assert_eq!(memory("1024"), 1 << 30);
        assert_eq!(memory(""), memory::DEFAULT_MIB << 20);
    }

    #[test]
    fn the_token_is_allowed_in_the_path_of_a_socket_only() {
        let token = (OptionName::Token, "s3cr3t-t0ken");
        for (name, value, allowed) in [
            (
                OptionName::DockerHost,
                "unix:///s3cr3t-t0ken/docker.sock",
                true,
            ),
            (OptionName::DockerHost, "tcp://s3cr3t-t0ken:2376", false),
            (OptionName::Builder, "tcp://s3cr3t-t0ken:1234", false),
            (OptionName::SharedCache, "r.example/s3cr3t-t0ken", false),
            (OptionName::Isolation, "s3cr3t-t0ken", false),
        ] {
            let found = with_all(&[token, (name, value)]);
            assert_eq!(found.is_ok(), allowed, "{value}");
            if let Err(error) = found {
                let expected = format!("{} contains the token", name.name());
                assert!(error.message().contains(&expected), "{error}");
            }
        }
        let host = with(OptionName::DockerHost, "unix:///run/docker.sock").unwrap();
        assert_eq!(host.engine.host.as_deref(), Some("unix:///run/docker.sock"));
    }

    #[test]
    fn certificates_belong_to_a_builder_at_a_tcp_address() {
        use OptionName::{
            Builder, BuilderCa, BuilderCert, BuilderKey, BuilderServerName, BuildxBuilder,
        };
        let tcp = (Builder, "tcp://builder:1234");
        let (ca, cert, key) = (
            (BuilderCa, "/ca"),
            (BuilderCert, "/cert"),
            (BuilderKey, "/key"),
        );
        let name = (BuilderServerName, "builder.example");
        for values in [
            &[tcp][..],
            &[tcp, ca],
            &[tcp, ca, name],
            &[tcp, ca, cert, key],
            &[(Builder, "unix:///run/buildkit.sock")],
            &[(BuildxBuilder, "mine")],
        ] {
            assert!(
                with_all(values).unwrap().engine.builder.is_some(),
                "{values:?}"
            );
        }
        assert!(with(Builder, "default").unwrap().engine.builder.is_none());
        for (values, wrong) in [
            (&[ca][..], BuilderCa),
            (&[(Builder, "unix:///run/buildkit.sock"), ca], BuilderCa),
            (&[(BuildxBuilder, "tcp://builder:1234"), ca], BuilderCa),
            (&[tcp, ca, cert], BuilderCert),
            (&[tcp, ca, key], BuilderKey),
            (&[tcp, cert, key], BuilderCert),
            (&[tcp, name], BuilderServerName),
        ] {
            let error = with_all(values).unwrap_err();
            let expected = format!("{} is set, but ", wrong.name());
            assert!(error.message().contains(&expected), "{values:?}: {error}");
        }
    }

    #[test]
    fn the_mode_of_the_shared_cache_needs_a_cache_to_write() {
        use OptionName::{SharedCache, SharedCacheMode};
        let cache = (SharedCache, "r.example/c");
        for (values, write) in [
            (&[cache][..], Some(false)),
            (&[cache, (SharedCacheMode, "ro")], Some(false)),
            (&[cache, (SharedCacheMode, "rw")], Some(true)),
            (&[(SharedCacheMode, "ro")], None),
        ] {
            let found = with_all(values).unwrap().engine.shared_cache;
            assert_eq!(found.map(|cache| cache.write), write, "{values:?}");
        }
        for values in [
            &[(SharedCacheMode, "rw")][..],
            &[cache, (SharedCacheMode, "w")],
            &[(SharedCache, "cache")],
        ] {
            assert!(with_all(values).is_err(), "{values:?}");
        }
    }
}
