//! What Docker's classic builder and Podman's tell of a build: a text, in which `Step 2/5 : RUN make` begins a
//! step.
//!
//! The output of the commands is in the same text, and may look like it. Docker says when a command begins and
//! ends, with the id of its container, which no template knows beforehand. Podman does not; there only the
//! step that is next can begin.

use std::time::Instant;

use crate::engine::build::Builder;
use crate::engine::build::lines::Lines;
use crate::engine::build::watch::{AT_ONCE, MAX_STEPS, Outcome, Step, Watch};
use crate::names::registry::LOCAL_IMAGE_PREFIX;

/// The text so far.
pub(super) struct Transcript {
    builder: Builder,
    lines: Lines,
    current: Option<Current>,
    /// The container in which the step's command runs, if the builder says so: the text is its output.
    container: Option<String>,
    /// How many steps have begun.
    begun: usize,
}

/// The step that is under way.
struct Current {
    place: Place,
    step: Step,
    begun: Instant,
    cached: bool,
    /// Nothing was said of it yet.
    is_new: bool,
}

impl Transcript {
    pub(super) fn new(builder: Builder) -> Self {
        Self {
            builder,
            lines: Lines::default(),
            current: None,
            container: None,
            begun: 0,
        }
    }

    /// # Errors
    ///
    /// What there is too much of.
    pub(super) async fn take(&mut self, text: &str, watch: &mut Watch<'_>) -> Result<(), String> {
        let mut lines = std::mem::take(&mut self.lines);
        for piece in text.as_bytes().chunks(AT_ONCE) {
            lines.each(piece, |line| self.line(line, watch));
            tokio::task::yield_now().await;
        }
        self.lines = lines;
        match self.begun {
            ..=MAX_STEPS => Ok(()),
            _ => Err(format!("more than {MAX_STEPS} steps")),
        }
    }

    /// The build has ended, well or for this reason.
    pub(super) fn end(mut self, error: Option<String>, watch: &mut Watch<'_>) {
        if let Some(line) = self.lines.rest() {
            self.line(line, watch);
        }
        self.step_done(error, watch);
    }

    fn line(&mut self, line: String, watch: &mut Watch<'_>) {
        match self.remark(&line) {
            Remark::Step(place, step) => {
                self.step_done(None, watch);
                watch.context_done();
                self.begun += 1;
                if self.begun > MAX_STEPS {
                    return;
                }
                watch.step_started(&step);
                self.current = Some(Current {
                    place,
                    step,
                    begun: Instant::now(),
                    cached: false,
                    is_new: true,
                });
            }
            remark => {
                if let Some(current) = &mut self.current {
                    current.cached |= matches!(remark, Remark::Cached) && current.is_new;
                    current.is_new = false;
                }
                match remark {
                    Remark::Runs(container) => self.container = Some(container),
                    Remark::Ran => self.container = None,
                    Remark::None => {
                        watch.log(line, self.current.as_ref().map(|current| &current.step));
                    }
                    _ => {}
                }
            }
        }
    }

    /// What a line is, by what came before it.
    fn remark(&self, line: &str) -> Remark {
        let text = line.trim();
        if let Some(container) = &self.container {
            let ends = [
                "Removing intermediate container ",
                "---> Removed intermediate container ",
            ];
            let ends = ends.iter().filter_map(|words| text.strip_prefix(words));
            return match ends
                .into_iter()
                .any(|rest| rest.starts_with(container.as_str()))
            {
                true => Remark::Ran,
                false => Remark::None,
            };
        }
        if let Some((place, step)) = step(line).filter(|(place, _)| self.is_next(*place)) {
            return Remark::Step(place, step);
        }
        let docker = self.builder == Builder::Classic;
        let words = if docker { "--->" } else { "--> " };
        let Some(remark) = text.strip_prefix(words) else {
            return match text.strip_prefix("Successfully ") {
                Some(rest) if docker || is_result(rest) => Remark::Other,
                _ => Remark::None,
            };
        };
        let remark = remark.trim_start();
        match remark.strip_prefix("Using cache") {
            Some(id) if docker || is_id(id.trim()) => return Remark::Cached,
            _ => {}
        }
        match remark.strip_prefix("Running in ") {
            Some(container) if docker => Remark::Runs(container.to_owned()),
            _ if docker || is_id(remark) => Remark::Other,
            _ => Remark::None,
        }
    }

    /// The first step of a stage, or the one after this. Docker counts on through all stages.
    fn is_next(&self, place: Place) -> bool {
        let Some(current) = &self.current else {
            return place.number == 1;
        };
        let before = current.place;
        if place.stage == before.stage {
            (place.number, place.of) == (before.number + 1, before.of)
        } else {
            place.number == 1 && place.stage > before.stage
        }
    }

    fn step_done(&mut self, error: Option<String>, watch: &mut Watch<'_>) {
        if let Some(current) = self.current.take() {
            let outcome = Outcome {
                cached: current.cached,
                took: current.begun.elapsed(),
                error,
            };
            watch.step_done(&current.step, outcome);
        }
    }
}

/// What a line says of the build.
enum Remark {
    Step(Place, Step),
    /// The step's result is in the build cache.
    Cached,
    /// The command of the step begins, in this container.
    Runs(String),
    /// It has ended.
    Ran,
    /// Names of containers and layers, which help nobody.
    Other,
    /// Nothing: it is output.
    None,
}

/// Where a step stands: its stage, from 1 (0 where there is only one, or they are not numbered), and its number
/// of so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    stage: u32,
    number: u32,
    of: u32,
}

/// The id of an image, or the beginning of one.
fn is_id(text: &str) -> bool {
    (8..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What comes after `Successfully` at the end of a build. Programs like to say the same.
fn is_result(rest: &str) -> bool {
    let image = rest.strip_prefix("built ").is_some_and(is_id);
    image || rest.starts_with("tagged ") && rest.contains(LOCAL_IMAGE_PREFIX)
}

/// Docker writes `Step 2/5 : RUN make`, Podman `STEP 2/5: RUN make`, and `[1/2] STEP 2/5: RUN make`
/// where there are two stages.
fn step(line: &str) -> Option<(Place, Step)> {
    let (stage, rest) = match line
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("] STEP "))
    {
        Some((stage, rest)) => (Some(fraction(stage)?), rest),
        None => (
            None,
            line.strip_prefix("Step ").or(line.strip_prefix("STEP "))?,
        ),
    };
    let (position, name) = rest.split_once(": ")?;
    let (number, of) = fraction(position.trim_end())?;
    let name = match stage {
        Some((stage, stages)) => format!("[{stage}/{stages} {number}/{of}] {name}"),
        None => format!("[{number}/{of}] {name}"),
    };
    let place = Place {
        stage: stage.map_or(0, |(stage, _)| stage),
        number,
        of,
    };
    Some((place, Step { number, of, name }))
}

fn fraction(text: &str) -> Option<(u32, u32)> {
    let (number, of) = text.split_once('/')?;
    Some((number.parse().ok()?, of.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::event::{Event, Kind};

    #[test]
    fn a_step_is_told_from_output_that_looks_like_it() {
        let name = |line| step(line).unwrap().1.name;
        let (place, found) = step("Step 2/5 : RUN make").unwrap();
        assert_eq!((found.number, found.of), (2, 5));
        assert_eq!((place.number, place.of), (2, 5));
        assert_eq!(found.name, "[2/5] RUN make");
        assert_eq!(name("STEP 1/2: FROM scratch"), "[1/2] FROM scratch");
        assert_eq!(
            name("[2/3] STEP 1/2: FROM scratch"),
            "[2/3 1/2] FROM scratch"
        );
        for line in [
            "Step by step",
            "[1/2] Step 1/2: x",
            "[1/x] STEP 1/2: x",
            "Step 2 : x",
            "Stepping 1/2 : x",
            "Step a/b : x",
        ] {
            assert!(step(line).is_none(), "{line}");
        }
    }

    /// The steps with `cached` in front of those that were, and the output, in the order in which they are told.
    fn told(builder: Builder, text: &str) -> Vec<String> {
        let told = std::sync::Mutex::new(Vec::new());
        let emit = |event: Event| {
            let line = match event.kind {
                Kind::StepDone if event.cached == Some(true) => {
                    format!("cached {}", event.step_name.unwrap())
                }
                Kind::StepStarted => event.step_name.unwrap(),
                Kind::Log => format!("{}: {}", event.step.unwrap_or(0), event.message),
                _ => return,
            };
            told.lock().unwrap().push(line);
        };
        let mut watch = Watch::new(Arc::default(), Duration::from_secs(240), &emit);
        let mut transcript = Transcript::new(builder);
        let take = transcript.take(text, &mut watch);
        crate::process::executor::runtime()
            .unwrap()
            .block_on(take)
            .unwrap();
        transcript.end(None, &mut watch);
        told.into_inner().unwrap()
    }

    #[test]
    fn output_cannot_pass_for_the_builders_own_words() {
        let docker = "Step 1/4 : FROM scratch\n ---> \nStep 2/4 : ENV a=b\n ---> Using cache\n ---> 05dff5d12d65\n\
             Step 3/4 : RUN x\n ---> Running in 224863e7c8ee\nStep 4/4 : RUN fake\n ---> Using cache\n\
             Successfully installed pip\n ---> Running in 000000000000\nRemoving intermediate container 000000000000\n\
             Removing intermediate container 224863e7c8ee\n ---> 2ccd447dcc3b\nStep 4/4 : COPY x /y\n\
             ---> c9511d60bebb\nSuccessfully built c9511d60bebb\nSuccessfully tagged molecule-local/x:y\n";
        let newer = docker.replace(
            "Removing intermediate container 2",
            " ---> Removed intermediate container 2",
        );
        for text in [docker, &newer] {
            let expected = [
                "[1/4] FROM scratch",
                "[2/4] ENV a=b",
                "cached [2/4] ENV a=b",
                "[3/4] RUN x",
                "3: Step 4/4 : RUN fake",
                "3:  ---> Using cache",
                "3: Successfully installed pip",
                "3:  ---> Running in 000000000000",
                "3: Removing intermediate container 000000000000",
                "[4/4] COPY x /y",
            ];
            assert_eq!(told(Builder::Classic, text), expected);
        }
        let podman = "STEP 1/3: FROM scratch\nSTEP 2/3: RUN x\nSTEP 2/3: RUN fake\nSTEP 1/1: FROM fake\n\
             Successfully installed pip\nSuccessfully built x\n--> done\n--> Using cache of pip\n\
             ---> Running in 224863e7c8ee\n--> b94421e8487\nSTEP 3/3: COPY x /y\n\
             --> Using cache f4d8446231cdbc831ebe4e4bebea1e3360b48ce49869913bb935b50fc8346151\n\
             COMMIT molecule-local/x:y\n--> 31796531358\nSuccessfully tagged localhost/molecule-local/x:y\n\
             Successfully built 317965313581\n";
        let expected = [
            "[1/3] FROM scratch",
            "[2/3] RUN x",
            "2: STEP 2/3: RUN fake",
            "2: STEP 1/1: FROM fake",
            "2: Successfully installed pip",
            "2: Successfully built x",
            "2: --> done",
            "2: --> Using cache of pip",
            "2: ---> Running in 224863e7c8ee",
            "[3/3] COPY x /y",
            "3: COMMIT molecule-local/x:y",
            "cached [3/3] COPY x /y",
        ];
        assert_eq!(told(Builder::Buildah, podman), expected);
    }

    #[test]
    fn stages_of_podman_are_counted_anew() {
        let text = "[1/3] STEP 1/2: FROM a\n[1/3] STEP 2/2: RUN x\n[1/3] STEP 1/2: FROM fake\n[3/3] STEP 1/1: FROM b\n";
        let expected = [
            "[1/3 1/2] FROM a",
            "[1/3 2/2] RUN x",
            "2: [1/3] STEP 1/2: FROM fake",
            "[3/3 1/1] FROM b",
        ];
        assert_eq!(told(Builder::Buildah, text), expected);
    }
}
