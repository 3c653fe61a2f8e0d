//! What the classic builder tells of a build: a text, in which `Step 2/5 : RUN make` begins a step.

use std::time::Instant;

use super::lines::Lines;
use super::watch::{AT_ONCE, MAX_STEPS, Outcome, Step, Watch};

/// The text so far.
#[derive(Default)]
pub(super) struct Transcript {
    lines: Lines,
    current: Option<(Step, Instant)>,
    cached: bool,
    /// How many steps have begun.
    begun: usize,
}

impl Transcript {
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
        if let Some(step) = step(&line) {
            self.step_done(None, watch);
            watch.context_done();
            self.begun += 1;
            if self.begun > MAX_STEPS {
                return;
            }
            watch.step_started(&step);
            self.current = Some((step, Instant::now()));
        } else if line.trim_start() == "---> Using cache" {
            self.cached = true;
        } else if !is_bookkeeping(&line) {
            let step = self.current.as_ref().map(|(step, _)| step);
            watch.log(line, step);
        }
    }

    fn step_done(&mut self, error: Option<String>, watch: &mut Watch<'_>) {
        if let Some((step, begun)) = self.current.take() {
            let outcome = Outcome {
                cached: std::mem::take(&mut self.cached),
                took: begun.elapsed(),
                error,
            };
            watch.step_done(&step, outcome);
        }
    }
}

/// Docker writes `Step 2/5 : RUN make`, Podman `STEP 2/5: RUN make`, and `[1/2] STEP 2/5: RUN make`
/// where there are two stages.
fn step(line: &str) -> Option<Step> {
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
    Some(Step { number, of, name })
}

fn fraction(text: &str) -> Option<(u32, u32)> {
    let (number, of) = text.split_once('/')?;
    Some((number.parse().ok()?, of.parse().ok()?))
}

/// The names of intermediate containers and layers, which say nothing to anybody.
fn is_bookkeeping(line: &str) -> bool {
    let line = line.trim_start();
    [
        "--->",
        "-->",
        "Removing intermediate container",
        "Successfully ",
    ]
    .iter()
    .any(|start| line.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_told_from_output_that_looks_like_it() {
        let found = step("Step 2/5 : RUN make").unwrap();
        assert_eq!((found.number, found.of), (2, 5));
        assert_eq!(found.name, "[2/5] RUN make");
        assert_eq!(
            step("STEP 1/2: FROM scratch").unwrap().name,
            "[1/2] FROM scratch"
        );
        assert_eq!(
            step("[2/3] STEP 1/2: FROM scratch").unwrap().name,
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
}
