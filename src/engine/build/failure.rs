//! Turns a failed build into an error.
//!
//! The builders' APIs have no error codes, so some decisions depend on a builder's text. Each function that
//! compares text says why a template cannot imitate it, or what happens then.

use crate::context::Dockerfile;
use crate::engine::build::base_image::BaseImage;
use crate::engine::build::buildkit::is_internal;
use crate::engine::build::full::{FullDisk, HINT_FULL_DISK};
use crate::engine::build::monitor::{End, FailedStep};
use crate::engine::build::place::Place;
use crate::engine::build::step::is_base_image;
use crate::engine::build::{Builder, HINT_BASE_IMAGE_ONLY_HERE};
use crate::engine::connect::request::Failure;
use crate::engine::platforms::unsupported_hint;
use crate::engine::refusal::Refusal;
use crate::error::{Code, Error, FailedBuild, Result};
use crate::names::platform::Platform;

/// The builder's reason for a failed build.
pub(super) struct Reason {
    pub(super) message: String,
    /// The exit code of the failed command, if the builder has a field for it.
    exit_code: Option<i32>,
}

impl Reason {
    fn new(builder: Builder, mut message: String, exit_code: Option<i32>) -> Self {
        // Older versions of Buildah begin the reason with `error `.
        if builder == Builder::Buildah && message.starts_with("error ") {
            message.drain(.."error ".len());
        }
        Self { message, exit_code }
    }

    /// The reason of the failed step, where that of the build is only a consequence.
    pub(super) fn of(self, failed: &FailedStep) -> Self {
        Self {
            message: failed.reason(&self.message).to_owned(),
            ..self
        }
    }
}

/// The cause of a failed build.
enum Cause {
    /// The build is for the engine's own platform, but starts a program for another one.
    ForeignProgram,
    /// The engine cannot run programs of the build's platform.
    UnsupportedPlatform,
    FullDisk(FullDisk),
    /// A base image cannot be pulled.
    BaseImage {
        image: BaseImage,
        /// The engine has it, but another builder needs it.
        only_in_engine: bool,
    },
    /// Everything else.
    Template,
}

impl Place<'_> {
    /// Extracts the builder's reason from the failure of a request.
    ///
    /// # Errors
    ///
    /// If the reason is not the builder's: the connection, a proxy, or this library failed.
    pub(super) fn reason(&self, failure: Failure) -> Result<Reason> {
        let unreachable = |text: String| Error::new(self.unreachable(), text);
        Err(match failure {
            Failure::Reported { message, exit_code } => {
                return Ok(Reason::new(self.builder(), message, exit_code));
            }
            // The classic builder's response to an invalid Dockerfile.
            Failure::Refused(Refusal {
                status: 400 | 500,
                upgrade: false,
                has_engine_form: true,
                message,
                ..
            }) => return Ok(Reason::new(self.builder(), message, None)),
            Failure::Refused(refusal) => {
                unreachable(format!("{self} {refusal}")).hint(refusal.hint())
            }
            Failure::Broken(why) => self.connection_lost(&why),
            Failure::InvalidAnswer(what) => {
                let noun = self.noun();
                unreachable(format!("the build was stopped: {self} sent {what}")).hint(format!(
                    "fix the template if its build has thousands of steps; else read the {noun}'s log"
                ))
            }
            Failure::Local(error) => error,
        })
    }

    pub(super) fn connection_lost(&self, why: &str) -> Error {
        let text = format!("the connection to {self} was lost during the build: {why}");
        let noun = self.noun();
        Error::new(self.unreachable(), text).hint(format!(
            "check whether the {noun} was restarted, and try again"
        ))
    }

    /// The error of a failed build.
    pub(super) async fn build_error(
        &self,
        platform: &Platform,
        reason: &Reason,
        dockerfile: &Dockerfile,
        end: End,
    ) -> Error {
        let exit_code = reason
            .exit_code
            .or_else(|| exit_code(self.builder(), &reason.message));
        let cause = self.cause(platform, reason, &end, exit_code).await;
        let End { failed, log_tail } = end;
        let step = failed.name;
        let line = match (&cause, step.as_str()) {
            (Cause::BaseImage { image, .. }, step) => dockerfile
                .line_of_image(image.image())
                .or_else(|| dockerfile.line_of(step)),
            (_, "") => parse_error_line(&reason.message),
            (_, step) => dockerfile.line_of(step),
        };
        let place = match (step.as_str(), line) {
            ("", _) => String::new(),
            (internal, Some(line)) if is_internal(internal) => {
                format!(" (line {line} of the Dockerfile)")
            }
            (step, None) => format!(" in the step {step}"),
            (step, Some(line)) => format!(" in the step {step} (line {line} of the Dockerfile)"),
        };
        let short = exit_code
            .filter(|_| !step.is_empty())
            .map(|code| format!("exit code {code}"));
        let why = short
            .as_deref()
            .unwrap_or_else(|| without_step(self.builder(), reason.message.trim(), &step));
        self.describe(cause, platform, &place, why)
            .in_build(FailedBuild {
                exit_code: exit_code.unwrap_or(0),
                line: line.unwrap_or(0),
                step,
                log_tail,
                excerpt: line.map_or_else(String::new, |line| dockerfile.excerpt(line)),
            })
    }

    async fn cause(
        &self,
        platform: &Platform,
        reason: &Reason,
        end: &End,
        exit_code: Option<i32>,
    ) -> Cause {
        let native = self.native_platform();
        let native = native.as_ref().map(Platform::os_arch);
        let foreign_program = is_foreign_program(&end.failed, exit_code);
        let foreign_os = native.is_some_and(|(os, _)| os != platform.os_arch().0);
        if foreign_program && native == Some(platform.os_arch()) {
            Cause::ForeignProgram
        } else if foreign_program || foreign_os {
            Cause::UnsupportedPlatform
        } else {
            let full = self.full_disk(&reason.message, &end.log_tail).await;
            if let Some(full) = full {
                return Cause::FullDisk(full);
            }
            let Some(image) = BaseImage::of(&end.failed.name, &reason.message) else {
                return Cause::Template;
            };
            let only_in_engine = match self.worker {
                Some(_) => matches!(self.engine.find(image.image()).await, Ok(Some(_))),
                None => false,
            };
            Cause::BaseImage {
                image,
                only_in_engine,
            }
        }
    }

    fn describe(&self, cause: Cause, platform: &Platform, place: &str, why: &str) -> Error {
        const HINT_TEMPLATE: &str =
            "fix the template's Dockerfile, or what it needs, and try again";
        let noun = self.noun();
        let failed = format!("the build failed{place}: {why}");
        match cause {
            Cause::ForeignProgram => Error::new(
                Code::PlatformUnsupported,
                format!(
                    "{self} runs {platform} and cannot run a program for another \
                     architecture{place}: {why}"
                ),
            )
            .hint(format!(
                "use a base image and programs for {platform} in the Dockerfile; a script needs a first line such \
                 as #!/bin/sh"
            )),
            Cause::UnsupportedPlatform => Error::new(
                Code::PlatformUnsupported,
                format!("{self} cannot build for {platform}{place}: {why}"),
            )
            .hint(unsupported_hint(noun, platform)),
            Cause::FullDisk(FullDisk::Engine { folder, free }) => Error::new(
                Code::BuildFailed,
                format!(
                    "{failed}; the disk of {self} is full: {} ({free})",
                    folder.display()
                ),
            )
            .hint(HINT_FULL_DISK),
            Cause::FullDisk(FullDisk::Unknown) => Error::new(Code::BuildFailed, failed).hint(format!(
                "{HINT_TEMPLATE}; if the disk of the {noun} is full ({}), free some space there",
                match self.worker {
                    None => "docker system df",
                    Some(_) => "buildctl du",
                }
            )),
            Cause::BaseImage {
                image,
                only_in_engine,
            } => {
                let error = Error::new(Code::BuildFailed, image.describe(noun, place, why));
                match only_in_engine {
                    true => error.hint(format!("the engine has it, but the builder needs it too: {HINT_BASE_IMAGE_ONLY_HERE}")),
                    false => error.hint(image.hint(noun, platform)),
                }
            }
            Cause::Template => Error::new(Code::BuildFailed, failed).hint(HINT_TEMPLATE),
        }
    }
}

/// Whether the build used a result of another build that was cancelled or removed at that moment. A second attempt
/// works.
///
/// The builders have no code for it. The whole text is compared; the error of a failed command has another
/// form, so a template cannot cause a match.
pub(super) fn is_lost_race(builder: Builder, end: &End, reason: &Reason) -> bool {
    match builder {
        Builder::BuildKit => {
            let error = end.failed.error.as_str();
            // For a step that copies files or makes a folder (moby/buildkit issue 3748).
            let output = error.strip_prefix("duplicate output ");
            // For any step, with the containerd image store (seen with Docker 28.5).
            let commit = error.strip_prefix("failed to commit ");
            output.is_some_and(|output| output.parse::<u32>().is_ok())
                || commit.is_some_and(|rest| rest.ends_with(" does not exist: not found"))
        }
        // The result of the previous step was removed after it was found in the build cache.
        Builder::Classic => {
            let id = reason
                .message
                .strip_prefix("unable to find image \"sha256:");
            let id = id.and_then(|id| id.strip_suffix('"'));
            id.is_some_and(|id| id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
        }
        // An image was removed while all images were searched for a result of this step. The reason of a step that
        // failed begins with the step.
        Builder::Buildah => {
            (reason.message).starts_with("checking if cached image exists from a previous build: ")
        }
    }
}

/// Whether the command could not be started because it is for another architecture (execve, ENOEXEC).
///
/// No builder has a code for it. The OCI runtime (runc before and after 1.0, and crun, each in its own words) writes it
/// instead of the command's output, as the only line, to standard error, and exits with its own exit code. A command
/// that imitates all that fails anyway, but with the wrong error code. Podman does not tell standard error from
/// standard output.
fn is_foreign_program(failed: &FailedStep, exit_code: Option<i32>) -> bool {
    let line = failed.only_line().unwrap_or_default().to_ascii_lowercase();
    let runtime = line.starts_with("exec ") || line.contains("exec user process caused: ");
    runtime && line.ends_with(": exec format error") && matches!(exit_code, Some(1 | 255))
}

/// The line that a builder's parser refuses: `dockerfile parse error on line 3: unknown instruction: FOO`. Only asked for
/// if no step ran, so that no command can write it.
fn parse_error_line(reason: &str) -> Option<u32> {
    let (_, rest) = reason.split_once("parse error ")?;
    let rest = rest.strip_prefix("on ").unwrap_or(rest);
    let (number, _) = rest.strip_prefix("line ")?.split_once(':')?;
    number.parse().ok()
}

/// The reason without the step, which some builders repeat in it.
fn without_step<'r>(builder: Builder, mut reason: &'r str, step: &str) -> &'r str {
    // Prefixes that name an internal phase of BuildKit, which does not help users.
    for solver in [
        "failed to solve with frontend dockerfile.v0: ",
        "failed to solve: ",
        "failed to create LLB definition: ",
    ] {
        reason = reason.strip_prefix(solver).unwrap_or(reason);
    }
    let (_, instruction) = step.split_once("] ").unwrap_or_default();
    if instruction.is_empty() {
        return reason;
    }
    let rest = match builder {
        Builder::BuildKit => {
            let ends = ["]: ", "\" did not complete successfully: "];
            let mut forms = COMMAND_FAILED.iter().zip(ends);
            forms.find_map(|(beginning, end)| {
                let (_, rest) = reason.strip_prefix(beginning)?.rsplit_once(end)?;
                Some(rest)
            })
        }
        Builder::Classic => None,
        Builder::Buildah => {
            let rest = reason.strip_prefix("building at STEP \"");
            rest.and_then(|rest| rest.strip_prefix(instruction)?.strip_prefix("\": "))
        }
    };
    rest.unwrap_or(reason)
}

/// How BuildKit's reason begins if a command failed: before 0.9, and since.
const COMMAND_FAILED: [&str; 2] = ["executor failed running [", "process \""];

/// BuildKit's reason if a file that `COPY` or `ADD` names does not exist. A registry that imitates it only prevents a
/// second attempt.
const FILE_MISSING: &str = "failed to calculate checksum of ref";

/// Whether a build that used a shared cache may have failed because of it: if BuildKit cannot download a result, it
/// fails, and does not run the step instead. `step` is the failed step, or empty if it is not known.
pub(super) fn may_be_cache_failure(step: &str, reason: &Reason) -> bool {
    let of_command = COMMAND_FAILED
        .iter()
        .any(|beginning| reason.message.starts_with(beginning));
    !of_command && !reason.message.contains(FILE_MISSING) && !is_base_image(step)
}

/// The exit code of the failed command, for builders that report it only in the text: the builder writes it at
/// the end, after the command. Other failures may end with text from the Dockerfile, a registry or a server, but begin
/// differently.
fn exit_code(builder: Builder, reason: &str) -> Option<i32> {
    let (beginnings, label) = match builder {
        Builder::BuildKit => (&COMMAND_FAILED[..], "exit code: "),
        Builder::Classic => (&["The command '"][..], "non-zero code: "),
        Builder::Buildah => (&["building at STEP \"RUN "][..], "exit status "),
    };
    // Podman quotes the instruction as it is written: run, too.
    let starts_with = |text: &&str| {
        let start = reason.get(..text.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(text))
    };
    let of_command = beginnings.iter().any(starts_with);
    let (_, code) = reason.trim_end().rsplit_once(label)?;
    code.parse().ok().filter(|_| of_command)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::engine::build::monitor::{BuildMonitor, Outcome};
    use crate::engine::build::step::Step;

    #[test]
    fn a_failed_command_or_missing_file_is_not_a_cache_failure() {
        let may = |step, message: &str| {
            let reason = Reason::new(Builder::BuildKit, message.to_owned(), None);
            may_be_cache_failure(step, &reason)
        };
        let download = "failed to copy: httpReadSeeker: failed open: unexpected status: 500";
        assert!(may("", download));
        assert!(may("[2/3] RUN make", download));
        assert!(!may("[1/3] FROM base", download));
        for killed in [
            r#"process "/bin/sh -c make" did not complete successfully: cannot allocate memory"#,
            "executor failed running [/bin/sh -c make]: exit code: 2",
        ] {
            assert!(!may("[2/3] RUN make", killed));
        }
        let missing = r#"failed to compute cache key: failed to calculate checksum of ref a::b: "/x": not found"#;
        assert!(!may("[3/3] COPY x /", missing));
    }

    #[test]
    fn the_exit_code_is_read_from_the_end_of_the_reason() {
        use Builder::{BuildKit, Buildah, Classic};
        for (builder, reason, expected) in [
            (
                BuildKit,
                "executor failed running [/bin/sh -c exit 3]: exit code: 3",
                Some(3),
            ),
            (
                BuildKit,
                r#"process "/bin/sh -c echo exit code: 7; exit 3" did not complete successfully: exit code: 3"#,
                Some(3),
            ),
            (
                BuildKit,
                r#"executor failed running [/bin/sh -c echo "exit code: 7"]: runc died"#,
                None,
            ),
            (BuildKit, "failed to solve: alpine: not found", None),
            (
                BuildKit,
                "failed to authorize: the registry's own words: exit code: 5",
                None,
            ),
            (
                Classic,
                "The command '/bin/sh -c echo exit code: 7; exit 3' returned a non-zero code: 3",
                Some(3),
            ),
            (Classic, "Invalid signal: non-zero code: 5", None),
            (
                Buildah,
                "building at STEP \"STOPSIGNAL exit status 5\": invalid signal: exit status 5",
                None,
            ),
            (
                Buildah,
                "building at STEP \"run exit 4\": while running runtime: exit status 4",
                Some(4),
            ),
            (
                Buildah,
                "building at STEP \"RUN echo exit status 7; exit 3\": while running runtime: exit status 3\n",
                Some(3),
            ),
            (
                Buildah,
                "building at STEP \"RUN echo exit status 7\": no such file",
                None,
            ),
        ] {
            assert_eq!(exit_code(builder, reason), expected, "{reason}");
        }
    }

    #[test]
    fn a_reason_does_not_repeat_the_step() {
        use Builder::{BuildKit, Buildah, Classic};
        let run = "[2/2] RUN echo \": \"; ./x";
        for (builder, reason, step, expected) in [
            (
                BuildKit,
                "executor failed running [/bin/sh -c echo \": \"; ./x]: runc died",
                run,
                "runc died",
            ),
            (
                BuildKit,
                "process \"/bin/sh -c echo \": \"; ./x\" did not complete successfully: killed",
                run,
                "killed",
            ),
            (
                BuildKit,
                "failed to solve with frontend dockerfile.v0: failed to create LLB definition: unexpected EOF",
                "[internal] load metadata for docker.io/library/x:1",
                "unexpected EOF",
            ),
            (
                BuildKit,
                "failed to compute cache key: \"/no\" not found",
                "[2/2] COPY no /",
                "failed to compute cache key: \"/no\" not found",
            ),
            (
                Buildah,
                "building at STEP \"COPY no /\": no items matching",
                "[2/2] COPY no /",
                "no items matching",
            ),
            (
                Buildah,
                "building at STEP \"COPY other /\": no items matching",
                "[2/2] COPY no /",
                "building at STEP \"COPY other /\": no items matching",
            ),
            (
                Classic,
                "COPY failed: no",
                "[2/2] COPY no /",
                "COPY failed: no",
            ),
            (
                Buildah,
                "building at STEP \"\": x",
                "",
                "building at STEP \"\": x",
            ),
        ] {
            assert_eq!(without_step(builder, reason, step), expected, "{reason}");
        }
    }

    fn end_of_step(error: &str, lines: &[&str]) -> End {
        let emit = |_| {};
        let mut monitor = BuildMonitor::new(Arc::default(), None, Duration::from_secs(240), &emit);
        let step = Step {
            number: 1,
            ..Step::default()
        };
        monitor.step_started(&step);
        for line in lines {
            monitor.log((*line).to_owned(), Some(&step));
        }
        let outcome = Outcome {
            error: Some(error.to_owned()),
            ..Outcome::default()
        };
        monitor.step_done(&step, outcome);
        monitor.end()
    }

    #[test]
    fn a_lost_race_matches_the_whole_builder_message() {
        let id = "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945";
        let lost = |builder, error: &str| {
            let reason = Reason::new(builder, error.to_owned(), None);
            is_lost_race(builder, &end_of_step(error, &[]), &reason)
        };
        use Builder::{BuildKit, Buildah, Classic};
        assert!(lost(BuildKit, "duplicate output 0"));
        assert!(lost(
            BuildKit,
            "failed to commit rew3 to xp99 during finalize: failed to stat active key during commit: \
             snapshot rew3 does not exist: not found"
        ));
        assert!(lost(
            Classic,
            &format!("unable to find image \"sha256:{id}\"")
        ));
        // Older versions add the prefix `error `.
        for error in ["", "error "] {
            let said = "checking if cached image exists from a previous build: getting top layer info: \
                        layer not known";
            assert!(lost(Buildah, &format!("{error}{said}")));
        }
        for (builder, error) in [
            (
                BuildKit,
                "process \"/bin/sh -c echo duplicate output 0\" did not complete: exit code: 1",
            ),
            (BuildKit, "duplicate output files"),
            (
                BuildKit,
                "process \"/bin/sh -c failed to commit x: x does not exist: not found\" did not complete \
                 successfully: exit code: 1",
            ),
            (BuildKit, "no duplicate output 0"),
            (Classic, "unable to find image \"sha256:x\""),
            (
                Classic,
                "The command 'unable to find image \"sha256:\"' returned a non-zero code: 1",
            ),
            (Buildah, "duplicate output 0"),
            (
                Buildah,
                "building at STEP \"RUN checking if cached image exists from a previous build: \": exit status 1",
            ),
        ] {
            assert!(!lost(builder, error), "{error}");
        }
    }

    #[test]
    fn a_foreign_program_matches_the_only_output_line() {
        let foreign =
            |lines: &[&str], code| is_foreign_program(&end_of_step("no", lines).failed, Some(code));
        for line in [
            "exec /bin/sh: exec format error",
            "exec container process `/prog`: Exec format error",
            "standard_init_linux.go:228: exec user process caused: exec format error",
        ] {
            assert!(foreign(&[line], 1) && foreign(&[line], 255), "{line}");
            assert!(!foreign(&[line], 3), "{line}");
            assert!(!foreign(&["before", line], 1), "{line}");
            assert!(!foreign(&[line, "after"], 1), "{line}");
        }
        for line in [
            "exec format error",
            "exec /bin/sh: exec format error?",
            "sh: exec format error",
        ] {
            assert!(!foreign(&[line], 1), "{line}");
        }
    }
}
