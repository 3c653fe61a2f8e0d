//! What a caller may set, and the settings that come of it.
//!
//! The core never reads the environment: another thread's `setenv` would race with it. Whoever
//! stands at the edge (the Go package, `mol_options_from_env`) reads it and hands the values over as
//! text, so that the rules for them stand here once.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use url::Url;
use zeroize::Zeroizing;

use crate::error::{Code, Error, Result};
use crate::names::reference::{CommitSha, Isolation, Platform, TagArch, TagRules};
use crate::names::runtimes::{self, Runtime, Runtimes};
use crate::process::memory;
use crate::redact::{MAX_TOKEN, MIN_TOKEN, Masker, Secret};

/// Declares the options once, with their names: the environment variable's, if there is one.
macro_rules! options {
    ($($(#[doc = $doc:literal])+ $option:ident = $name:literal;)+) => {
        /// One thing that can be set. Most have the syntax of the environment variable they are named after.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum OptionName { $($(#[doc = $doc])+ $option,)+ }

        impl OptionName {
            /// Every option.
            pub const ALL: &'static [Self] = &[$(Self::$option),+];

            /// Its name: that of the environment variable, if there is one.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$option => $name),+ }
            }
        }
    };
}

options! {
    /// Where the template repositories are; the runtime's name is appended.
    RepoPrefix = "MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX";
    /// The branch to build from.
    Branch = "MOLECULE_LOCAL_TEMPLATE_BRANCH";
    /// The token for the template server, of 8 to 1024 visible ASCII characters.
    Token = "MOLECULE_GITEA_TOKEN";
    /// The cache folder; a relative path begins at the working directory.
    CacheDir = "MOLECULE_LOCAL_BUILD_CACHE";
    /// `os/arch[/variant]`, or `native`.
    Platform = "MOLECULE_IMAGE_PLATFORM";
    /// A suffix for the tags.
    Isolation = "MOLECULE_LOCAL_IMAGE_ISOLATION";
    /// `1`: no network.
    Offline = "MOLECULE_LOCAL_OFFLINE";
    /// `1`: the template's `.runtime-version` is sent as a build argument.
    RuntimeVersionPin = "MOLECULE_LOCAL_RUNTIME_VERSION_PIN";
    /// How long a fetch or a build may go on without any output: seconds, or a duration such as `4m`.
    StallGrace = "MOLECULE_BUILD_STALL_GRACE_S";
    /// How long a call may take when its caller sets no deadline: seconds, or a duration such as `30m`.
    Ceiling = "MOLECULE_BUILD_CEILING_S";
    /// The engine's address.
    DockerHost = "DOCKER_HOST";
    /// The name of the docker context to use.
    DockerContext = "DOCKER_CONTEXT";
    /// The folder of docker's `config.json`.
    DockerConfig = "DOCKER_CONFIG";
    /// Not empty: TLS for `tcp://`, with the peer verified.
    DockerTlsVerify = "DOCKER_TLS_VERIFY";
    /// The folder of `ca.pem`, `cert.pem` and `key.pem`.
    DockerCertPath = "DOCKER_CERT_PATH";
    /// `0`: the classic builder.
    DockerBuildkit = "DOCKER_BUILDKIT";
    /// The proxy for `https://` addresses.
    HttpsProxy = "HTTPS_PROXY";
    /// The proxy for `http://` addresses.
    HttpProxy = "HTTP_PROXY";
    /// The hosts that no proxy is used for.
    NoProxy = "NO_PROXY";
    /// A file of trusted certificates.
    SslCertFile = "SSL_CERT_FILE";
    /// A folder of trusted certificates.
    SslCertDir = "SSL_CERT_DIR";
    /// The home folder.
    Home = "HOME";
    /// The folder for caches.
    XdgCacheHome = "XDG_CACHE_HOME";
    /// The folder for sockets.
    XdgRuntimeDir = "XDG_RUNTIME_DIR";
    /// The folder for temporary files.
    Tmpdir = "TMPDIR";
    /// The folders of credential helpers and of `ssh`.
    SearchPath = "PATH";
    /// The memory that the library takes at most, in MiB.
    Memory = "MOLECULE_BUILD_MEMORY_MIB";
    /// The allowlist, in place of the default one: names, separated by commas.
    Runtimes = "runtimes";
    /// `auto` or `always`, see [`TagArch`].
    TagArch = "tag_arch";
    /// Commits to build in place of the branch's head: `runtime=commit`, separated by commas.
    Pins = "pins";
}

impl OptionName {
    /// The option of this name.
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|option| option.name() == name)
    }

    /// Whether it is read from the environment. Which runtimes there are, and how tags look, is set in code only.
    const fn is_in_the_environment(self) -> bool {
        !matches!(self, Self::Runtimes | Self::TagArch | Self::Pins)
    }
}

/// What a caller has set: texts, not yet checked.
#[derive(Clone, Default)]
pub struct Options {
    values: Vec<(OptionName, Secret)>,
}

impl Options {
    /// Sets an option. The empty text unsets it.
    pub fn set(&mut self, name: OptionName, value: &str) {
        self.values.retain(|(set, _)| *set != name);
        if !value.is_empty() {
            self.values.push((name, Secret::new(value)));
        }
    }

    /// Sets every option for which `lookup` finds the value of its environment variable. The proxies
    /// are found under their lower-case names too, and first, as curl and Go have it.
    pub fn set_all_from(&mut self, lookup: impl Fn(&str) -> Option<String>) {
        let read = |name: &&OptionName| name.is_in_the_environment();
        for &name in OptionName::ALL.iter().filter(read) {
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

    /// The masker for these options' token. One that is too short is refused, in words that it may be
    /// a part of, and is no use to anybody.
    pub fn masker(&self) -> Masker {
        match self.get(OptionName::Token) {
            Some(token) if token.len() >= MIN_TOKEN => Masker::new(&Secret::new(token)),
            _ => Masker::default(),
        }
    }

    /// Checks every value and fills in the defaults.
    ///
    /// # Errors
    ///
    /// [`Code::InvalidOption`], naming the environment variable. A wrong value is never taken for
    /// "unset".
    pub fn settings(&self) -> Result<Settings> {
        let text = |name| self.get(name).map(str::to_owned);
        let path = |name| self.get(name).map(PathBuf::from);
        // First, because what else is wrong is told with the token masked.
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
                classic_builder: self.get(OptionName::DockerBuildkit) == Some("0"),
                home: path(OptionName::Home),
                runtime_dir: path(OptionName::XdgRuntimeDir),
                search_path: text(OptionName::SearchPath),
            },
            network: NetworkSettings {
                https_proxy: text(OptionName::HttpsProxy),
                http_proxy: text(OptionName::HttpProxy),
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
        // Every error and every image names the repository.
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
                "use lower-case letters, digits and '-', a letter or digit first and last, at most {} of them",
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

    /// The commits to build in place of the branch's head. A runtime that is not on the allowlist is an error: it may
    /// be a mistyped name, whose pin would be ignored.
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
                invalid("an invalid commit").hint("give all 40 or 64 hexadecimal digits of it")
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

    /// The folder in the option; else below the user's cache folder; else below the folder for
    /// temporary files (XDG base directory specification: a relative `XDG_CACHE_HOME` is ignored).
    fn cache_dir(&self) -> Result<PathBuf> {
        if let Some(dir) = self.get(OptionName::CacheDir) {
            if dir.starts_with('~') {
                let hint =
                    "write the home folder out: ~ is for shells, and this is not read by one";
                return Err(invalid(OptionName::CacheDir, "begins with ~").hint(hint));
            }
            return std::path::absolute(dir).map_err(|error| {
                let what =
                    format!("is relative, and the working directory cannot be found: {error}");
                invalid(OptionName::CacheDir, &what)
                    .hint("give an absolute path: /var/cache/molecule, for example")
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
                    invalid(
                        OptionName::Platform,
                        &format!("is no platform: {:?}", self.printable(text)),
                    )
                    .hint("use os/arch or os/arch/variant, linux/arm64 for example, or native")
                })?;
                self.without_token(OptionName::Platform, text)?;
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

    /// A path is shown as it is given, and masked. Of any other address the parts are, where a token that is cut
    /// by them would not be known.
    fn engine_host(&self) -> Result<Option<String>> {
        let host = self.get(OptionName::DockerHost);
        if let Some(host) = host.filter(|host| !host.trim().starts_with("unix://")) {
            self.without_token(OptionName::DockerHost, host)?;
        }
        Ok(host.map(str::to_owned))
    }

    /// For what is in the name of an image or in every error: that is never masked.
    fn without_token(&self, name: OptionName, value: &str) -> Result<()> {
        if !self.masker().finds_token_in(value) {
            return Ok(());
        }
        Err(invalid(name, "holds the token").hint("take it out: MOLECULE_GITEA_TOKEN is enough"))
    }

    /// A branch name as git allows it (git-check-ref-format), and no longer than what Gitea takes.
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
            let what = format!("is no branch name: {:?}", self.printable(branch));
            return Err(invalid(OptionName::Branch, &what)
                .hint("give the branch as git shows it, feature/x for example"));
        }
        Ok(branch.to_owned())
    }

    /// A value as it may be quoted.
    fn printable(&self, text: &str) -> String {
        self.masker().shown(text, 64)
    }

    /// A token goes into a header, which can hold visible ASCII only.
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
            return Err(invalid(OptionName::Token, &what).hint("see whether it is really a token"));
        }
        if token.bytes().all(|b| b.is_ascii_graphic()) {
            return Ok(Secret::new(token));
        }
        Err(invalid(
            OptionName::Token,
            "holds a character that no token has (a space, a line break or a letter outside ASCII)",
        )
        .hint("copy the token once more from the template server, without white space around it"))
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

    /// Seconds, or what Go's `time.ParseDuration` and humantime both take; `tests/vectors/durations.json`.
    fn duration(&self, name: OptionName, default_seconds: u64) -> Result<Duration> {
        /// A year: longer is a typing error, and keeps deadlines within what a clock can hold.
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
                    .hint("use seconds or a duration, 600 or 10m for example, of at most a year")
            })
    }
}

impl Options {
    /// In bytes.
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
            .hint("use a whole number, 1024 for example")),
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

/// Everything a call needs to know, checked.
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

/// What an image is built for.
#[derive(Clone, Debug)]
pub(crate) enum PlatformChoice {
    Fixed(Platform),
    /// What the engine itself runs on.
    Native,
}

/// What decides which engine is used, as for the docker CLI.
#[derive(Clone, Debug)]
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
}

/// How the template server is reached.
#[derive(Clone, Debug)]
pub(crate) struct NetworkSettings {
    pub(crate) https_proxy: Option<String>,
    pub(crate) http_proxy: Option<String>,
    pub(crate) no_proxy: Option<String>,
    pub(crate) cert_file: Option<PathBuf>,
    pub(crate) cert_dir: Option<PathBuf>,
}

/// Where the template repositories are: a URL to which a runtime's name is appended.
#[derive(Clone, Debug)]
pub(crate) struct RepoPrefix(String);

impl RepoPrefix {
    const DEFAULT: &'static str =
        "https://git.moleculesai.app/molecule-ai/molecule-ai-workspace-template-";

    fn parse(text: &str) -> Result<Self> {
        let refuse = |what: &str| {
            invalid(OptionName::RepoPrefix, what).hint(format!(
                "give the address of a template repository without the runtime's name, as in {}",
                Self::DEFAULT
            ))
        };
        if text
            .chars()
            .any(|c| c.is_whitespace() || c.is_control() || c == '\\')
        {
            return Err(refuse(
                "holds white space, a control character or a backslash",
            ));
        }
        let prefix = Self(text.to_owned());
        // Any runtime will do: what is checked is the shape that they all share.
        let repository = prefix
            .try_repository("runtime")
            .ok_or_else(|| refuse("is no URL of an organisation and a repository"))?;
        let url = &repository.url;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(refuse("is neither an http:// nor an https:// address"));
        }
        if !url.username().is_empty() || url.password().is_some() || text.contains('@') {
            return Err(refuse("holds a user name or a password")
                .hint("take it out, and set MOLECULE_GITEA_TOKEN instead"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(refuse("holds a query or a fragment"));
        }
        Ok(prefix)
    }

    /// The template repository of `runtime`.
    pub(crate) fn repository(&self, runtime: &Runtime) -> Result<Repository> {
        self.checked_repository(runtime.as_str())
    }

    /// A repository on the server, for what is the same for all of them.
    pub(crate) fn any_repository(&self) -> Result<Repository> {
        self.checked_repository("runtime")
    }

    fn checked_repository(&self, runtime: &str) -> Result<Repository> {
        self.try_repository(runtime)
            .ok_or_else(|| Error::new(Code::Internal, "the repository prefix was not checked"))
    }

    /// The address of the template repository of `runtime`.
    pub(crate) fn url(&self, runtime: &Runtime) -> String {
        format!("{}{runtime}", self.0)
    }

    /// As it was given.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Does nothing that is sent there leave the machine?
    pub(crate) fn is_on_this_machine(&self) -> bool {
        let url = Url::parse(&self.0).ok();
        match url.as_ref().and_then(Url::host) {
            Some(url::Host::Domain(name)) => name == "localhost",
            Some(url::Host::Ipv4(address)) => address.is_loopback(),
            Some(url::Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        }
    }

    fn try_repository(&self, runtime: &str) -> Option<Repository> {
        let url = Url::parse(&format!("{}{runtime}", self.0)).ok()?;
        url.host_str()?;
        let mut segments: Vec<&str> = url.path_segments()?.collect();
        let name = segments.pop().filter(|s| s.ends_with(runtime))?.to_owned();
        let owner = segments.pop().filter(|s| !s.is_empty())?.to_owned();
        if segments.iter().any(|s| s.is_empty()) {
            return None;
        }
        let mut api = url.clone();
        api.set_path(&format!(
            "{}/api/v1/repos/{owner}/{name}",
            segments.iter().map(|s| format!("/{s}")).collect::<String>()
        ));
        Some(Repository { url, api })
    }
}

/// One template repository.
#[derive(Clone, Debug)]
pub(crate) struct Repository {
    /// What git fetches from, and what errors name.
    pub(crate) url: Url,
    /// The repository in Gitea's API: `<server>[/<sub-path>]/api/v1/repos/<owner>/<name>`.
    pub(crate) api: Url,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: OptionName, value: &str) -> Result<Settings> {
        let mut options = Options::default();
        options.set(OptionName::Home, "/home/u");
        options.set(name, value);
        options.settings()
    }

    #[test]
    fn an_option_is_found_by_its_exact_name() {
        for option in OptionName::ALL {
            assert_eq!(OptionName::find(option.name()), Some(*option));
        }
        assert_eq!(OptionName::find("docker_host"), None);
        assert_eq!(OptionName::find(""), None);
    }

    #[test]
    fn the_defaults_are_those_of_the_contract() {
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
    fn a_prefix_may_have_a_sub_path() {
        let settings = with(OptionName::RepoPrefix, "https://host:8443/git/org/tpl-").unwrap();
        let repository = settings
            .repo_prefix
            .repository(&runtimes::known("hermes"))
            .unwrap();
        assert_eq!(
            repository.url.as_str(),
            "https://host:8443/git/org/tpl-hermes"
        );
        assert_eq!(
            repository.api.as_str(),
            "https://host:8443/git/api/v1/repos/org/tpl-hermes"
        );
    }

    #[test]
    fn a_prefix_that_names_no_repository_is_refused() {
        for prefix in [
            "https://host/",
            "https://host/tpl-",
            "https://host",
            "https://host//tpl-",
            "org/tpl-",
            "ftp://host/org/tpl-",
            "file:///org/tpl-",
            "https://host/org/tpl-?x=",
            "https://host/org/tpl-#",
            "https://host/org/ tpl-",
            "https://user@host/org/tpl-",
        ] {
            let error = with(OptionName::RepoPrefix, prefix).unwrap_err();
            assert_eq!(error.code, Code::InvalidOption, "{prefix}");
            assert!(
                error
                    .message
                    .contains("MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX")
            );
        }
        let error = with(OptionName::RepoPrefix, "https://u:hunter2@host/org/tpl-").unwrap_err();
        assert!(!format!("{error:?}").contains("hunter2"));
    }

    #[test]
    fn a_wrong_value_is_an_error_and_never_unset() {
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
            assert!(error.message.contains(name.name()), "{error}");
            assert!(!error.hint.is_empty());
        }
    }

    #[test]
    fn durations_are_those_of_the_vectors() {
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
    fn white_space_around_the_isolation_is_dropped() {
        let isolation = |text| with(OptionName::Isolation, text).unwrap().tags.isolation;
        assert_eq!(isolation(" ci-1\n"), Isolation::parse("ci-1").unwrap());
        assert_eq!(isolation(" \t"), Isolation::default());
    }

    #[test]
    fn a_relative_cache_folder_begins_at_the_working_directory() {
        let settings = with(OptionName::CacheDir, "some/cache").unwrap();
        let expected = std::env::current_dir().unwrap().join("some/cache");
        assert_eq!(settings.cache_dir, expected);
    }

    #[test]
    fn the_allowlist_and_the_pins_are_set_in_code_and_never_by_the_environment() {
        let mut options = Options::default();
        options.set_all_from(|_| Some("hermes=".into()));
        for name in [OptionName::Runtimes, OptionName::TagArch, OptionName::Pins] {
            assert_eq!(options.get(name), None, "{name:?}");
        }
        options = Options::default();
        options.set(OptionName::Runtimes, "zeta,google-adk");
        options.set(OptionName::Pins, &format!("zeta={}", "A".repeat(40)));
        let settings = options.settings().unwrap();
        let zeta = settings.runtimes.parse("zeta").unwrap();
        assert_eq!(settings.pins[&zeta].as_str(), "a".repeat(40));
        assert_eq!(settings.pins.len(), 1);
        let error = settings.runtimes.parse("hermes").unwrap_err();
        assert_eq!(error.code, Code::UnknownRuntime);
    }

    #[test]
    fn branch_names_may_have_slashes_and_letters_of_any_script() {
        for branch in ["main", "feature/x", "größe", "日本/語"] {
            with(OptionName::Branch, branch).unwrap();
        }
    }
}
