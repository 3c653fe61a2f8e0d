//! Events: what a caller sees while a call runs.

use std::borrow::Cow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};
use url::Url;

use crate::names::commit::CommitSha;
use crate::names::reference::References;

/// Something that happened during a call: one flat JSON object. Fields that do not apply are absent.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Event {
    /// What happened.
    pub kind: Kind,
    /// The call. The events of a build that several calls of one client share have the call that started it.
    pub call: u64,
    /// The runtime the call is for.
    pub runtime: String,
    /// The time, in milliseconds since 1970-01-01T00:00:00Z.
    pub time_unix_ms: u64,
    /// One line for people.
    pub message: String,
    /// The OpenTelemetry span that the event belongs to. Its cardinality is low: it never contains a runtime, URL or
    /// commit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub span: Option<&'static str>,
    /// The URL that is requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The image reference that is pinned to the commit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#ref: Option<String>,
    /// The image reference that moves with the branch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latest_ref: Option<String>,
    /// The full commit id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit_sha: Option<String>,
    /// The branch whose head it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// Why it is a miss.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What the call waits for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
    /// `buildkit`, `classic` or, on Podman, `buildah`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub builder: Option<String>,
    /// The address of the engine, or of the builder. A user name in it is masked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The node of a builder that cannot be used, or that was lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// What to do about a warning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<Cow<'static, str>>,
    /// The number of the build step, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<u32>,
    /// How many build steps are known so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u32>,
    /// The build step, as in the Dockerfile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_name: Option<String>,
    /// True if the builder had the result of the step in its cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cached: Option<bool>,
    /// Why the build step failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// One line of the build's output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<String>,
    /// Files so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<u64>,
    /// Git objects so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub objects: Option<u64>,
    /// Git objects in total, once known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub objects_total: Option<u64>,
    /// The base image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The layer of the base image: its digest, or the start of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<String>,
    /// What the engine does with the layer: `download` or `extract`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<&'static str>,
    /// Bytes so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Bytes in total, once known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<u64>,
    /// The average rate of the layer's download or extraction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
    /// How many events were dropped because the reader was slow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropped: Option<u64>,
    /// How long it took, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
}

/// Declares each kind once: its doc, its name in JSON, and the name of its span, which is empty if it has none.
macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $kind:ident = $name:literal in $span:literal;)+) => {
        /// What happened.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        pub enum Kind {
            #[default]
            $($(#[doc = $doc])+ $kind,)+
        }

        impl Kind {
            /// Every kind, in the order in which they occur in a call.
            pub const ALL: &'static [Kind] = &[$(Kind::$kind),+];

            /// The name in JSON.
            pub const fn name(self) -> &'static str {
                match self { $(Kind::$kind => $name),+ }
            }

            /// The name of the span that it is in; the whole call is `mol.ensure`.
            pub fn span(self) -> Option<&'static str> {
                let span = match self { $(Kind::$kind => $span),+ };
                (!span.is_empty()).then_some(span)
            }
        }
    };
}

kinds! {
    /// The template server is asked for the head of the branch.
    LookupStarted = "lookup_started" in "mol.lookup";
    /// The template server has answered.
    LookupDone = "lookup_done" in "mol.lookup";
    /// The engine has the image.
    CacheHit = "cache_hit" in "mol.inspect";
    /// The engine does not have the image, or it cannot be used.
    CacheMiss = "cache_miss" in "mol.inspect";
    /// Another process or caller works on the same image.
    Waiting = "waiting" in "mol.wait";
    /// The fetch of the commit starts.
    FetchStarted = "fetch_started" in "mol.fetch";
    /// Progress of the fetch.
    FetchProgress = "fetch_progress" in "mol.fetch";
    /// The commit's tree is checked out.
    FetchDone = "fetch_done" in "mol.fetch";
    /// The build starts.
    BuildStarted = "build_started" in "mol.build";
    /// The builder looks up a base image, in the engine or at its registry.
    BaseImage = "base_image" in "mol.build";
    /// Progress of the upload of the build context.
    ContextProgress = "context_progress" in "mol.build.context";
    /// The whole build context was sent.
    ContextDone = "context_done" in "mol.build.context";
    /// A build step started.
    StepStarted = "step_started" in "mol.build.step";
    /// The builder starts to pull the base image of a step, or the result of a step from a shared cache.
    PullStarted = "pull_started" in "mol.build.pull";
    /// Progress of one layer of a pull.
    PullProgress = "pull_progress" in "mol.build.pull";
    /// The builder has pulled the base image or the result.
    PullDone = "pull_done" in "mol.build.pull";
    /// A build step ended.
    StepDone = "step_done" in "mol.build.step";
    /// A line of the build's output.
    Log = "log" in "mol.build.step";
    /// The engine starts to write the image, or the builder to send it to the engine. docs/events.md says when silence
    /// after this is a stall.
    ExportStarted = "export_started" in "mol.build.export";
    /// Progress of the transfer of the image from the builder to the engine.
    ExportProgress = "export_progress" in "mol.build.export";
    /// The engine has the image.
    ExportDone = "export_done" in "mol.build.export";
    /// The image has its tags.
    Tagged = "tagged" in "mol.tag";
    /// Something is wrong; the call goes on.
    Warning = "warning" in "";
    /// Events were dropped because the reader was slow.
    Thinned = "thinned" in "";
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl Kind {
    /// Events that may be dropped when the reader is slow.
    pub(crate) fn is_minor(self) -> bool {
        matches!(
            self,
            Kind::Log
                | Kind::FetchProgress
                | Kind::ContextProgress
                | Kind::PullProgress
                | Kind::ExportProgress
        )
    }
}

/// Progress of a fetch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Bytes received.
    pub(crate) bytes: u64,
    /// Git objects received.
    pub(crate) objects: u64,
    /// Git objects in total, once known.
    pub(crate) objects_total: Option<u64>,
}

impl Event {
    /// An event of this kind, now, with the line for people.
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            kind,
            span: kind.span(),
            message: message.into(),
            time_unix_ms: millis(now),
            ..Self::default()
        }
    }

    pub(crate) fn lookup_started(url: &Url) -> Self {
        Self {
            url: Some(url.to_string()),
            ..Self::new(Kind::LookupStarted, format!("looking up {url}"))
        }
    }

    pub(crate) fn lookup_done(url: &Url, branch: &str, commit: &CommitSha, took: Duration) -> Self {
        let message = format!("{branch} is at {}", commit.short());
        Self {
            url: Some(url.to_string()),
            commit_sha: Some(commit.to_string()),
            branch: Some(branch.to_owned()),
            duration_ms: Some(millis(took)),
            ..Self::new(Kind::LookupDone, message)
        }
    }

    pub(crate) fn cache_hit(reference: &str) -> Self {
        Self {
            r#ref: Some(reference.to_owned()),
            ..Self::new(Kind::CacheHit, format!("{reference} exists"))
        }
    }

    pub(crate) fn cache_miss(reference: &str, reason: &str) -> Self {
        Self {
            r#ref: Some(reference.to_owned()),
            reason: Some(reason.to_owned()),
            ..Self::new(
                Kind::CacheMiss,
                format!("{reference} must be built: {reason}"),
            )
        }
    }

    pub(crate) fn waiting(holder: &str) -> Self {
        Self {
            holder: Some(holder.to_owned()),
            ..Self::new(
                Kind::Waiting,
                format!("waiting for {holder}, which is building the same image"),
            )
        }
    }

    pub(crate) fn waiting_for_prune(reference: &str) -> Self {
        let holder = "a prune";
        Self {
            holder: Some(holder.to_owned()),
            ..Self::new(
                Kind::Waiting,
                format!("waiting for {holder}, which is removing {reference}"),
            )
        }
    }

    pub(crate) fn fetch_started(url: &Url, commit: &CommitSha) -> Self {
        Self {
            url: Some(url.to_string()),
            commit_sha: Some(commit.to_string()),
            ..Self::new(
                Kind::FetchStarted,
                format!("fetching {} from {url}", commit.short()),
            )
        }
    }

    pub(crate) fn fetch_progress(progress: Progress) -> Self {
        Self {
            objects: Some(progress.objects),
            objects_total: progress.objects_total,
            bytes: Some(progress.bytes),
            ..Self::new(
                Kind::FetchProgress,
                format!("{} received", human_bytes(progress.bytes)),
            )
        }
    }

    pub(crate) fn fetch_done(progress: Progress, files: u64, took: Duration) -> Self {
        Self {
            kind: Kind::FetchDone,
            message: format!(
                "fetched {}, {}",
                human_files(files),
                human_bytes(progress.bytes)
            ),
            files: Some(files),
            duration_ms: Some(millis(took)),
            ..Self::fetch_progress(progress)
        }
    }

    pub(crate) fn tagged(references: &References) -> Self {
        Self {
            r#ref: Some(references.pinned.clone()),
            latest_ref: Some(references.latest.clone()),
            ..Self::new(Kind::Tagged, format!("{} is ready", references.pinned))
        }
    }

    pub(crate) fn warning(message: impl Into<String>, hint: impl Into<Cow<'static, str>>) -> Self {
        Self {
            hint: Some(hint.into()),
            ..Self::new(Kind::Warning, message)
        }
    }

    /// The placeholder for `dropped` events. `before` is the previous placeholder, or the first dropped event. `call`
    /// is that of the event dropped last: if it is another call, the placeholder has call 0 and no runtime.
    pub(crate) fn thinned(before: &Self, call: u64, dropped: u64) -> Self {
        let (call, runtime) = match before.call == call {
            true => (call, before.runtime.clone()),
            false => (0, String::new()),
        };
        let events = if dropped == 1 {
            "event was"
        } else {
            "events were"
        };
        Self {
            call,
            runtime,
            dropped: Some(dropped),
            ..Self::new(
                Kind::Thinned,
                format!("{dropped} {events} dropped: the reader is too slow"),
            )
        }
    }

    /// A warning that programs that read only `DOCKER_HOST` do not find the engine in use. No other warning has
    /// `endpoint`.
    pub(crate) fn engine_elsewhere(endpoint: &str, tls: bool) -> Self {
        let message = format!(
            "the engine in use is at {endpoint}, and DOCKER_HOST is not set: a client that reads only the \
             environment does not find it"
        );
        // Without the address: a user name in it would be masked.
        let hint = match tls {
            true => {
                "create containers with the endpoint of the image, or set DOCKER_HOST to it, with DOCKER_TLS_VERIFY \
                 and DOCKER_CERT_PATH"
            }
            false => "create containers with the endpoint of the image, or set DOCKER_HOST to it",
        };
        Self {
            endpoint: Some(endpoint.to_owned()),
            ..Self::warning(message, hint)
        }
    }

    /// Names for an engine or git: references and the commit. They are never masked.
    pub(crate) fn names_mut(&mut self) -> impl Iterator<Item = &mut String> {
        [&mut self.r#ref, &mut self.latest_ref, &mut self.commit_sha]
            .into_iter()
            .flatten()
    }

    /// Every other text that may come from outside, except the hint. The pattern lists all fields, so that a new field
    /// does not compile until it is put in one of the groups.
    pub(crate) fn texts_mut(&mut self) -> impl Iterator<Item = &mut String> {
        #[rustfmt::skip]
        let Self {
            message, runtime, url, branch, reason, holder, builder, endpoint, node, step_name, error, line, image, layer,
            // The names, and the hint.
            r#ref: _, latest_ref: _, commit_sha: _, hint: _,
            // Texts of the library itself.
            kind: _, span: _, action: _,
            // Numbers.
            call: _, time_unix_ms: _, step: _, steps: _, cached: _, files: _, objects: _, objects_total: _, bytes: _,
            bytes_total: _, bytes_per_second: _, dropped: _, duration_ms: _,
        } = self;
        let optional = [
            url, branch, reason, holder, builder, endpoint, node, step_name, error, line, image,
            layer,
        ];
        [message, runtime]
            .into_iter()
            .chain(optional.into_iter().flatten())
    }
}

/// A number of files, for people.
pub(crate) fn human_files(files: u64) -> String {
    format!("{files} {}", if files == 1 { "file" } else { "files" })
}

/// A duration, for people.
pub(crate) fn human_duration(limit: Duration) -> String {
    match (limit.as_secs(), limit.subsec_nanos()) {
        (1, 0) => "1 second".to_owned(),
        (seconds, 0) => format!("{seconds} seconds"),
        _ => humantime::format_duration(limit).to_string(),
    }
}

/// A number of bytes, for people, in units of 1024 (IEC 80000-13).
pub(crate) fn human_bytes(bytes: u64) -> String {
    #[allow(clippy::cast_precision_loss)]
    let (mut size, mut unit) = (bytes as f64, "B");
    for larger in ["KiB", "MiB", "GiB", "TiB"] {
        if size < 1024.0 {
            break;
        }
        (size, unit) = (size / 1024.0, larger);
    }
    match unit {
        "B" => format!("{bytes} B"),
        _ => format!("{size:.1} {unit}"),
    }
}

/// A duration in milliseconds.
pub(crate) fn millis(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}

/// Takes events from any thread. It never blocks.
pub(crate) type Sink = std::sync::Arc<dyn Fn(Event) + Send + Sync>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redact::Masker;

    #[test]
    fn events_md_has_a_chapter_for_every_kind() {
        let document = include_str!("../docs/events.md");
        let chapters: Vec<&str> = document
            .lines()
            .filter_map(|line| line.strip_prefix("### "))
            .collect();
        let kinds: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!(chapters, kinds);
    }

    #[test]
    fn an_event_is_a_flat_object_of_the_fields_that_apply() {
        let event = Event::warning("careful", "fix it");
        let json = serde_json::to_value(&event).unwrap();
        let mut names: Vec<_> = json.as_object().unwrap().keys().cloned().collect();
        names.sort();
        assert_eq!(
            names,
            ["call", "hint", "kind", "message", "runtime", "time_unix_ms"]
        );
        assert_eq!(json["kind"], "warning");
    }

    #[test]
    fn masking_leaves_the_hint_about_docker_host_usable() {
        for tls in [false, true] {
            let event = Event::engine_elsewhere("ssh://me@host", tls);
            let hint = event.hint.clone();
            let masked = Masker::default().event(event);
            assert!(masked.message.contains("ssh://***@host"), "{masked:?}");
            assert_eq!(masked.hint, hint);
        }
    }

    #[test]
    fn sizes_and_counts_are_readable() {
        assert_eq!(human_bytes(1023), "1023 B");
        assert_eq!(human_bytes(5 << 20), "5.0 MiB");
        assert_eq!(human_files(1), "1 file");
        assert_eq!(human_files(0), "0 files");
    }
}
