//! Builders other than the engine's own: BuildKit daemons that the user has named.
//!
//! A builder has one node or several. Each build asks them what they can run, and prefers some to others: see [`rank`].

mod buildx;
mod container;
mod node;
mod rank;
mod source;
mod trouble;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio_util::task::TaskTracker;

use crate::engine::Engine;
use crate::engine::platforms::unsupported_hint;
use crate::error::{Code, Error, Result};
use crate::event::{Event, Sink};
use crate::names::platform::Platform;
use crate::options::{BuilderSettings, EngineSettings};
use crate::process;
use crate::process::outside_file::within;
pub(super) use node::{Node, Worker};
#[cfg(feature = "internals")]
pub(crate) use rank::order_by_address;
pub(super) use trouble::Trouble;

/// How long a node that did not answer is skipped while another node can build the platform.
const RETRY_AFTER: Duration = Duration::from_secs(30);

/// What a client knows of its builder's nodes, by address.
#[derive(Clone, Debug, Default)]
pub(super) struct NodeStates(Arc<Mutex<HashMap<String, State>>>);

#[derive(Debug, Default)]
struct State {
    /// How many builds of this client run there.
    builds: usize,
    failed: Option<Instant>,
}

/// The nodes that can build a platform, in the order in which to try them.
#[derive(Debug)]
pub(crate) struct Nodes {
    pub(super) workers: Vec<Worker>,
    known: NodeStates,
}

/// Counts a build on a node while it exists.
pub(super) struct Running {
    known: NodeStates,
    address: String,
}

impl NodeStates {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, State>> {
        process::lock(&self.0)
    }

    fn failed_recently(&self, node: &Node) -> bool {
        let known = self.lock();
        let failed = known.get(&node.to_string()).and_then(|state| state.failed);
        failed.is_some_and(|failed| failed.elapsed() < RETRY_AFTER)
    }

    fn note(&self, node: &Node, failed: bool) {
        let mut known = self.lock();
        known.entry(node.to_string()).or_default().failed = failed.then(Instant::now);
    }

    /// Notes which nodes have answered.
    ///
    /// # Errors
    ///
    /// [`Code::ProcessLimit`] if a node could not be asked because of a limit of this process.
    fn note_all(&self, asked: &[NodeAnswer]) -> Result<()> {
        for (node, answer) in asked {
            if let Err(Trouble {
                limit: Some(limit), ..
            }) = answer
            {
                return Err((**limit).clone());
            }
            self.note(node, answer.is_err());
        }
        Ok(())
    }

    fn builds(&self, node: &Node) -> usize {
        self.lock()
            .get(&node.to_string())
            .map_or(0, |state| state.builds)
    }
}

impl Nodes {
    /// Notes that a build starts on a node.
    pub(super) fn start(&self, node: &Node) -> Running {
        let address = node.to_string();
        self.known.lock().entry(address.clone()).or_default().builds += 1;
        Running {
            known: self.known.clone(),
            address,
        }
    }

    /// Notes that a node was lost.
    pub(super) fn note_lost(&self, node: &Node) {
        self.known.note(node, true);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(state) = self.known.lock().get_mut(&self.address) {
            state.builds -= 1;
        }
    }
}

/// A node, and its answer or why it gave none.
pub(crate) type NodeAnswer = (Node, std::result::Result<Worker, Trouble>);

impl Engine {
    /// All nodes of the builder, if the user has named one, and what each answers.
    ///
    /// # Errors
    ///
    /// [`Code::InvalidOption`]; [`Code::ProcessLimit`].
    pub(crate) async fn ask_builder(&self, tasks: &TaskTracker) -> Result<Option<Vec<NodeAnswer>>> {
        let Some(builder) = &self.settings.builder else {
            return Ok(None);
        };
        let nodes = read(&self.settings, builder, tasks).await?;
        Ok(Some(ask(nodes, false).await))
    }

    /// The cache size of each node in bytes; `None` if the node did not answer, or does not report it in time.
    pub(crate) async fn cache_sizes(asked: &[NodeAnswer]) -> Vec<Option<u64>> {
        join_all(asked.iter().map(|(node, answer)| async move {
            match answer {
                Ok(_) => node.cache_size().await,
                Err(_) => None,
            }
        }))
        .await
    }

    /// Chooses where to build: on the nodes of the builder that the user has named, best first, or `None` for the engine
    /// itself. Checks that the platform can be built there and run in the engine, and warns if it is emulated. `start` is
    /// whether a container that is stopped may be started.
    ///
    /// # Errors
    ///
    /// [`Code::BuilderUnreachable`] if no node answers, with the reason of each; [`Code::PlatformUnsupported`];
    /// [`Code::InvalidOption`]; [`Code::ProcessLimit`].
    pub(crate) async fn choose_nodes(
        &self,
        runtime: &str,
        platform: &Platform,
        start: bool,
        tasks: &TaskTracker,
        emit: &Sink,
    ) -> Result<Option<Nodes>> {
        let Some(builder) = &self.settings.builder else {
            self.check_platform(platform, emit).await?;
            return Ok(None);
        };
        // The engine only has to run it, so emulation there does not make the build slow.
        let silent: Sink = Arc::new(|_| {});
        self.check_platform(platform, &silent).await?;
        let nodes = read(&self.settings, builder, tasks).await?;
        let (failed, fresh): (Vec<Node>, Vec<Node>) = nodes
            .into_iter()
            .partition(|node| self.known.failed_recently(node));
        let can_build = |answer: &std::result::Result<Worker, Trouble>| {
            answer
                .as_ref()
                .is_ok_and(|worker| worker.can_build(platform))
        };
        let mut asked = ask(fresh, start).await;
        if !asked.iter().any(|(_, answer)| can_build(answer)) {
            asked.extend(ask(failed, start).await);
        }
        self.known.note_all(&asked)?;
        let (mut workers, mut troubles) = (Vec::new(), Vec::new());
        for (node, answer) in asked {
            match answer {
                Ok(worker) => workers.push(worker),
                Err(trouble) => troubles.push((node, trouble)),
            }
        }
        let able: Vec<Worker> = workers
            .iter()
            .filter(|worker| worker.can_build(platform))
            .cloned()
            .collect();
        if able.is_empty() {
            // One that does not answer may have the platform.
            return Err(match troubles.is_empty() {
                true => unsupported(&workers, platform),
                false => unreachable(&troubles),
            });
        }
        for (node, trouble) in troubles {
            let message = format!(
                "the builder at {node} cannot be used: {}; another node is used",
                trouble.why
            );
            emit(Event {
                node: Some(node.to_string()),
                ..Event::warning(message, trouble.hint)
            });
        }
        let workers = rank::order(able, runtime, platform, |worker| {
            self.known.builds(&worker.node)
        });
        if let Some(first) = workers.first().filter(|worker| !worker.is_native(platform)) {
            let native = first
                .native()
                .map_or_else(String::new, |native| format!(" runs {native} and"));
            let message = format!(
                "the builder at {}{native} emulates {platform}: this will be slow",
                first.node
            );
            emit(Event::warning(
                message,
                "use a builder whose machine runs that platform",
            ));
        }
        Ok(Some(Nodes {
            workers,
            known: self.known.clone(),
        }))
    }
}

/// Reads which nodes the builder has.
async fn read(
    settings: &EngineSettings,
    builder: &BuilderSettings,
    tasks: &TaskTracker,
) -> Result<Vec<Node>> {
    let what = format!("the builder {}", builder.value);
    let (settings, builder) = (settings.clone(), builder.clone());
    let tracked = tasks.clone();
    let nodes = move || named(&settings, &builder, &tracked);
    within(tasks, Code::InvalidOption, &what, nodes).await
}

/// The daemons that the option names: by an address, or by the name of a buildx builder. Reads files.
///
/// # Errors
///
/// [`Code::InvalidOption`], [`Code::ProcessLimit`]
fn named(
    settings: &EngineSettings,
    builder: &BuilderSettings,
    tasks: &TaskTracker,
) -> Result<Vec<Node>> {
    if !builder.value.contains("://") {
        return buildx::nodes(settings, builder, tasks);
    }
    Ok(vec![source::node(
        settings,
        &builder.value,
        &builder.tls,
        builder.option,
    )?])
}

/// Asks all nodes at once. `start` is whether a container that is stopped may be started.
async fn ask(nodes: Vec<Node>, start: bool) -> Vec<NodeAnswer> {
    let ask = |node: Node| async move {
        let answer = node.ask(start).await;
        (node, answer)
    };
    join_all(nodes.into_iter().map(ask)).await
}

/// The error for a build that was lost on each node that it tried, with the reason of each.
pub(super) fn build_lost(nodes: &[(Node, String)]) -> Error {
    let reasons: Vec<String> = nodes
        .iter()
        .map(|(node, why)| format!("{node}: {why}"))
        .collect();
    let message = match &*reasons {
        [only] => format!("the builder was lost during the build: {only}"),
        all => format!(
            "the builder was lost on each node that was tried: {}",
            all.join("; ")
        ),
    };
    Error::new(Code::BuilderUnreachable, message)
        .hint("check whether the builder was restarted, and try again")
}

/// The error for a builder of which no node can be used.
pub(super) fn unreachable(troubles: &[(Node, Trouble)]) -> Error {
    let reasons: Vec<String> = troubles
        .iter()
        .map(|(node, trouble)| format!("{node}: {}", trouble.why))
        .collect();
    let message = match &*reasons {
        [only] => format!("the builder cannot be reached: {only}"),
        all => format!(
            "none of the builder's {} nodes can be reached: {}",
            all.len(),
            all.join("; ")
        ),
    };
    let hint = troubles.first().map_or("", |(_, trouble)| trouble.hint);
    Error::new(Code::BuilderUnreachable, message).hint(hint)
}

/// The error for a platform that no node can build.
fn unsupported(workers: &[Worker], platform: &Platform) -> Error {
    let runs = |worker: &Worker| {
        let native = worker
            .native()
            .map_or("an unknown platform", Platform::as_str);
        format!("the builder at {} runs {native}", worker.node)
    };
    let runs: Vec<String> = workers.iter().map(runs).collect();
    let message = format!(
        "{} and cannot run {platform}: there is no emulation for it",
        runs.join("; ")
    );
    Error::new(Code::PlatformUnsupported, message).hint(unsupported_hint("builder", platform))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::connect::address::Address;

    #[test]
    fn a_limit_of_this_process_is_not_a_failure_of_the_node() {
        let known = NodeStates::default();
        let node = Node::At(Address::Unix("/builder.sock".into()));
        let trouble = |code| {
            let error = std::io::Error::from_raw_os_error(code);
            [(node.clone(), Err(Trouble::of(&error)))]
        };
        let limit = known.note_all(&trouble(libc::EMFILE)).unwrap_err();
        assert_eq!(limit.code, Code::ProcessLimit);
        assert!(!known.failed_recently(&node));
        known.note_all(&trouble(libc::ENOENT)).unwrap();
        assert!(known.failed_recently(&node));
    }

    #[test]
    fn a_node_that_failed_is_asked_again_after_a_while() {
        let known = NodeStates::default();
        let node = Node::At(Address::Unix("/builder.sock".into()));
        known.note(&node, true);
        assert!(known.failed_recently(&node));
        let then = Instant::now().checked_sub(RETRY_AFTER).unwrap();
        known.lock().get_mut(&node.to_string()).unwrap().failed = Some(then);
        assert!(!known.failed_recently(&node));
    }
}
