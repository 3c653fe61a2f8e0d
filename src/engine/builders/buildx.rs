//! The builders of `docker buildx create`, from the files in which buildx keeps them.
//!
//! Each is a file in the folder `instances`, with its driver and its nodes (github.com/docker/buildx, `store`). No Rust
//! crate reads these files.

use std::fs;
use std::path::PathBuf;

use tokio_util::task::TaskTracker;

use crate::engine::builders::node::Node;
use crate::engine::builders::source;
use crate::engine::connect::address::{self, Address, PLAIN_PORT};
use crate::engine::connect::config::is_absent;
use crate::engine::connect::docker_context::{self, NO_CONTEXT};
use crate::engine::connect::endpoint::{self, Endpoint};
use crate::engine::connect::invalid;
use crate::engine::go_json::{self, Json, WrongType};
use crate::error::{Error, Result};
use crate::options::{BuilderSettings, BuilderTls, EngineSettings};
use crate::process::{limits, outside_file};

/// The largest file. One node takes a few hundred bytes.
const MAX_FILE: usize = 1 << 20;

/// The most nodes of a builder.
const MAX_NODES: usize = 100;

/// How buildx names the container of a node.
const CONTAINER_PREFIX: &str = "buildx_buildkit_";

/// The most names that an error lists.
const MAX_LISTED: usize = 20;

/// The hint for a docker context that cannot be used.
const HINT_CONTEXT: &str = "see docker context ls, or create the builder anew: docker buildx rm, then docker buildx create";

/// The daemons of a buildx builder.
pub(super) fn nodes(
    settings: &EngineSettings,
    builder: &BuilderSettings,
    tasks: &TaskTracker,
) -> Result<Vec<Node>> {
    let instance = Instance::of(settings, builder)?;
    let text = instance.read(settings)?;
    let json = go_json::first(&text)
        .map_err(|why| instance.unusable(&format!("cannot be read ({why})")))?;
    let json = json.unwrap_or(Json::Null);
    let wrong = |why| instance.wrong_type(why);
    let driver = json.text("Driver").map_err(wrong)?;
    if driver != "remote" && driver != "docker-container" {
        return Err(wrong_driver(&instance.named_by, driver));
    }
    let listed = json.list("Nodes").map_err(wrong)?;
    match listed.len() {
        0 => return Err(instance.unusable("has no nodes")),
        1..=MAX_NODES => {}
        more => return Err(instance.unusable(&format!("has {more} nodes, more than {MAX_NODES}"))),
    }
    let node = |node| match driver {
        "remote" => instance.remote(settings, node),
        _ => instance.in_container(settings, node, tasks),
    };
    listed.iter().map(node).collect()
}

/// A builder's file.
struct Instance {
    folder: PathBuf,
    name: String,
    /// The option and its value, for errors.
    named_by: String,
}

impl Instance {
    /// Checks the name. The file may not exist.
    fn of(settings: &EngineSettings, builder: &BuilderSettings) -> Result<Self> {
        let named_by = format!("{} {:?}", builder.option, builder.value);
        let folder = builder.buildx_config.clone();
        let folder = folder.or_else(|| Some(settings.config_dir.as_ref()?.join("buildx")));
        let Some(folder) = folder else {
            let what = "cannot be looked up: HOME, DOCKER_CONFIG and BUILDX_CONFIG are unset";
            return Err(invalid(&named_by, what).hint("set one of them, or use an address"));
        };
        // As buildx compares names.
        let name = builder.value.to_ascii_lowercase();
        let is_name = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if !name.starts_with(|c: char| c.is_ascii_alphabetic()) || !name.chars().all(is_name) {
            let what = "is neither an address nor a valid name of a buildx builder";
            return Err(invalid(&named_by, what)
                .hint("use unix:///path, tcp://host:port, or a name that docker buildx ls shows"));
        }
        Ok(Self {
            folder: folder.join("instances"),
            name,
            named_by,
        })
    }

    fn path(&self) -> PathBuf {
        self.folder.join(&self.name)
    }

    fn read(&self, settings: &EngineSettings) -> Result<Vec<u8>> {
        outside_file::read(&self.path(), MAX_FILE).map_err(|error| {
            if let Some(limit) = limits::reached(&error) {
                return limit;
            }
            if is_absent(&error) {
                return self.unknown(settings);
            }
            invalid(
                &self.named_by,
                &format!("cannot be read: {}: {error}", self.path().display()),
            )
            .hint("check who may read buildx's files")
        })
    }

    /// A node of the driver `remote`.
    fn remote(&self, settings: &EngineSettings, node: &Json) -> Result<Node> {
        let wrong = |why| self.wrong_type(why);
        let endpoint = node.text("Endpoint").map_err(wrong)?;
        let options = node.map("DriverOpts").map_err(wrong)?;
        let option = |name: &str| -> Result<Option<String>> {
            let text = options.get(name).map(|value| value.as_text()).transpose();
            let text = text.map_err(wrong)?.flatten();
            Ok(text.filter(|text| !text.is_empty()).map(str::to_owned))
        };
        let tls = BuilderTls {
            ca: option("cacert")?.map(PathBuf::from),
            cert: option("cert")?.map(PathBuf::from),
            key: option("key")?.map(PathBuf::from),
            server_name: option("servername")?,
        };
        if let Some(missing) = missing(&tls) {
            return Err(self.unusable(&format!(
                "has a node without {missing}, but with other options for TLS"
            )));
        }
        source::node(settings, endpoint, &tls, &self.named_by)
    }

    /// A node of the driver `docker-container`.
    fn in_container(
        &self,
        settings: &EngineSettings,
        node: &Json,
        tasks: &TaskTracker,
    ) -> Result<Node> {
        let text = |name| node.text(name).map_err(|why| self.wrong_type(why));
        let endpoint = text("Endpoint")?;
        let container = format!("{CONTAINER_PREFIX}{}", text("Name")?);
        let mut engine = engine(settings, endpoint, &self.named_by)?;
        engine.track_in(tasks);
        source::refuse_plain_tcp(
            &engine,
            &self.named_by,
            "create the builder with a docker context that has TLS or an ssh:// address",
        )?;
        Ok(Node::In { engine, container })
    }

    /// The error for a name that buildx does not know.
    fn unknown(&self, settings: &EngineSettings) -> Error {
        // buildx has a builder for each docker context, without a file.
        if docker_context::exists(settings, &self.name) {
            return wrong_driver(&self.named_by, "docker");
        }
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> = names
            .filter(|name| !name.starts_with('.'))
            .take(MAX_LISTED)
            .collect();
        names.sort();
        let hint = match names.is_empty() {
            true => "create one (docker buildx create --driver remote --name …), or set MOLECULE_LOCAL_BUILDER=default \
                     for the engine's own"
                .to_owned(),
            false => format!(
                "buildx has these: {}; MOLECULE_LOCAL_BUILDER=default is the engine's own",
                names.join(", ")
            ),
        };
        let what = format!(
            "is not a buildx builder: there is no such file in {}",
            self.folder.display()
        );
        invalid(&self.named_by, &what).hint(hint)
    }

    fn wrong_type(&self, why: WrongType) -> Error {
        self.unusable(&format!("has a field that {why}"))
    }

    fn unusable(&self, why: &str) -> Error {
        invalid(&self.named_by, &format!("{why}: {}", self.path().display()))
            .hint("create the builder anew: docker buildx rm, then docker buildx create")
    }
}

/// The option that is missing for TLS, as buildx itself checks it.
fn missing(tls: &BuilderTls) -> Option<&'static str> {
    match (&tls.ca, &tls.cert, &tls.key, &tls.server_name) {
        (_, Some(_), None, _) => Some("key"),
        (_, None, Some(_), _) => Some("cert"),
        (None, Some(_), ..) | (None, .., Some(_)) => Some("cacert"),
        _ => None,
    }
}

/// The engine with the container of a node: an address, or the name of a docker context.
fn engine(settings: &EngineSettings, endpoint: &str, named_by: &str) -> Result<Address> {
    if endpoint.contains("://") {
        return address::parse(endpoint, None, PLAIN_PORT, named_by, settings);
    }
    if !endpoint.is_empty() && endpoint != NO_CONTEXT {
        let named_by = format!("{named_by} has a node whose docker context");
        let loaded = docker_context::load(settings, endpoint, &named_by, HINT_CONTEXT);
        return loaded.map(|(address, _)| address);
    }
    // As buildx does: DOCKER_HOST counts for the default context, DOCKER_CONTEXT does not.
    let without_context = EngineSettings {
        context: Some(NO_CONTEXT.to_owned()),
        ..settings.clone()
    };
    let engines = endpoint::candidates(&without_context)?;
    let exists = |engine: &&Endpoint| match &engine.address {
        Address::Unix(socket) => socket.exists(),
        _ => true,
    };
    let found = engines.iter().find(exists).or(engines.first());
    let found = found.map(|engine| engine.address.clone());
    found.ok_or_else(|| invalid(named_by, "has no engine"))
}

/// The error for a builder whose driver cannot be used.
fn wrong_driver(named_by: &str, driver: &str) -> Error {
    let hint = match driver {
        "docker" => {
            "that builder is the engine's own: set MOLECULE_LOCAL_BUILDER=default (DOCKER_HOST or DOCKER_CONTEXT chooses \
             the engine)"
        }
        "kubernetes" => {
            "name each pod as a node: docker buildx create --driver remote tcp://… (docs/farm.md)"
        }
        _ => {
            "use a builder of the driver remote or docker-container, or the address of a buildkitd"
        }
    };
    let what = format!("has the driver {driver:?}, which libmol cannot use");
    invalid(named_by, &what).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_docker_context_of_a_node_names_the_builder() {
        let dir = tempfile::tempdir().unwrap();
        let settings = EngineSettings {
            config_dir: Some(dir.path().to_owned()),
            host: Some("tcp://engine:1".to_owned()),
            ..EngineSettings::default()
        };
        let engine = |endpoint| engine(&settings, endpoint, "MOLECULE_LOCAL_BUILDER \"farm\"");
        assert_eq!(engine(NO_CONTEXT).unwrap().to_string(), "tcp://engine:1");
        let error = engine("gone").unwrap_err();
        let message = "MOLECULE_LOCAL_BUILDER \"farm\" has a node whose docker context \"gone\" does not exist: ";
        assert!(error.message().starts_with(message), "{error:?}");
        assert_eq!(error.hint, HINT_CONTEXT);
    }
}
