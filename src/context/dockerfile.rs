//! The registries and the line numbers of a Dockerfile, for logins before a build and errors after it. The builder
//! parses the Dockerfile itself: nothing here affects the image.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::str::FromStr;

use parse_dockerfile::{Flag, Instruction, Span};

use crate::redact::{MAX_KEPT, whole_words};

/// The registry of image names without a registry.
pub(crate) const DOCKER_HUB: &str = "docker.io";

/// A parsed Dockerfile. The part after an invalid instruction is missing.
#[derive(Debug, Default)]
pub(crate) struct Dockerfile {
    text: String,
    /// The images that stages begin with, without `scratch` and earlier stages; with their lines.
    bases: Vec<(String, u32)>,
    registries: BTreeSet<String>,
    /// The names of the stages, in order; empty for a stage without a name.
    stages: Vec<String>,
    steps: Vec<Step>,
}

/// An instruction of the Dockerfile.
#[derive(Clone, Copy, Debug)]
struct Step {
    /// The index of its stage; `None` before the first `FROM`.
    stage: Option<usize>,
    /// In upper case, such as `RUN`.
    keyword: &'static str,
    /// Counted from 1.
    line: u32,
}

impl Dockerfile {
    /// Parses a Dockerfile. `build_args` are the arguments of the build.
    pub(crate) fn parse(text: &str, build_args: &HashMap<String, String>) -> Self {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut reader = Reader {
            text,
            args: build_args.clone(),
            build_args,
            file: Self {
                text: text.to_owned(),
                ..Self::default()
            },
            names: HashSet::new(),
            lines: Lines::default(),
            budget: MAX_EXPANDED,
        };
        if let Some(frontend) = frontend(text) {
            reader.image(&frontend);
        }
        parse_dockerfile::parse_iter(text)
            .into_iter()
            .flatten()
            .map_while(Result::ok)
            .for_each(|instruction| reader.read(&instruction));
        reader.file
    }

    /// The registries of the images that the build may pull, such as `docker.io` or
    /// `registry.example:5000`.
    pub(crate) fn registries(&self) -> &BTreeSet<String> {
        &self.registries
    }

    /// The line of a step, from the builder's name for it: `[2/5] RUN make`, `[build 2/3] COPY . .`. The first list of
    /// steps that fits decides; `None` if none does.
    pub(crate) fn line_of(&self, step: &str) -> Option<u32> {
        let (place, instruction) = step.strip_prefix('[')?.split_once("] ")?;
        let keyword = instruction.split_whitespace().next()?;
        let mut place = place.split_whitespace().rev();
        let (number, of) = fraction(place.next()?)?;
        let stage = match place.next() {
            Some(name) => Some(self.stage(name)?),
            None => None,
        };

        // Builders differ in which instructions they count as steps. A list of steps fits if it has as many steps as
        // the builder says, and the named instruction at the given position.
        let counted = |counts: &dyn Fn(&Step) -> bool| {
            let steps = self.steps.iter().filter(|step| counts(step)).copied();
            steps.collect::<Vec<Step>>()
        };
        let here = |step: &Step| match stage {
            Some(index) => step.stage == Some(index),
            None => self.stages.len() == 1 && step.stage.is_some(),
        };
        let makes_layer = |step: &Step| matches!(step.keyword, "RUN" | "COPY" | "ADD");
        let buildkit = [
            // With a base image or without, with WORKDIR or without.
            counted(&|s| here(s) && (makes_layer(s) || matches!(s.keyword, "FROM" | "WORKDIR"))),
            counted(&|s| here(s) && (makes_layer(s) || s.keyword == "WORKDIR")),
            counted(&|s| here(s) && (makes_layer(s) || s.keyword == "FROM")),
            counted(&|s| here(s) && makes_layer(s)),
        ];
        let buildah = counted(&here);
        let classic = counted(&|_| stage.is_none());
        let exactly = buildkit.iter().filter(|steps| steps.len() == of);
        // These builders add steps at the end for labels that are not in the Dockerfile.
        let at_most = [&buildah, &classic]
            .into_iter()
            .filter(|steps| steps.len() <= of);
        let index = number.checked_sub(1)?;
        exactly
            .chain(at_most)
            .filter_map(|steps| steps.get(index))
            .find(|step| step.keyword.eq_ignore_ascii_case(keyword))
            .map(|step| step.line)
    }

    /// The line of the first `FROM` with this image, which may be written in a shorter form: `python` for
    /// `docker.io/library/python:latest`.
    pub(crate) fn line_of_image(&self, image: &str) -> Option<u32> {
        let image = familiar(image);
        let mut bases = self.bases.iter();
        bases
            .find(|(base, _)| familiar(base) == image)
            .map(|(_, line)| *line)
    }

    /// The images that stages begin with, without `scratch` and earlier stages.
    pub(crate) fn base_images(&self) -> impl Iterator<Item = &str> {
        self.bases.iter().map(|(image, _)| image.as_str())
    }

    /// The lines around `line`, with their numbers. `line` begins with `>`, and so do the lines that continue it after
    /// a `\`. Empty if there is no such line.
    pub(crate) fn excerpt(&self, line: u32) -> String {
        const AROUND: usize = 2;
        const MOST: usize = 6;
        let lines: Vec<&str> = self.text.lines().collect();
        let Some(first) = (line as usize).checked_sub(1).filter(|i| *i < lines.len()) else {
            return String::new();
        };
        let continued = |index: &usize| lines[*index].trim_end().ends_with('\\');
        let marked = (first..lines.len()).take_while(continued).take(MOST - 1);
        let last = first + marked.count();
        let shown = first.saturating_sub(AROUND)..lines.len().min(last + AROUND + 1);
        let width = shown.end.to_string().len();
        let mut excerpt = String::new();
        for index in shown {
            let mark = if (first..=last).contains(&index) {
                '>'
            } else {
                ' '
            };
            let text = format!("{mark} {:>width$} | {}", index + 1, short(lines[index]));
            excerpt += text.trim_end();
            excerpt.push('\n');
        }
        excerpt
    }

    /// The index of a stage. BuildKit uses the stage's name or `stage-0`, Podman `1/2`.
    fn stage(&self, name: &str) -> Option<usize> {
        let named = |stage: &String| stage.eq_ignore_ascii_case(name);
        let numbered = || match name.strip_prefix("stage-") {
            Some(index) => index.parse().ok(),
            None => fraction::<usize>(name)?.0.checked_sub(1),
        };
        self.stages.iter().position(named).or_else(numbered)
    }
}

/// As much of a line as is shown.
fn short(line: &str) -> &str {
    match line.len() {
        // The cut may leave a fragment of a token, which masking would not recognise.
        MAX_KEPT.. => whole_words(&line[..line.floor_char_boundary(MAX_KEPT)]),
        _ => line,
    }
}

/// Parses `2/5`.
pub(crate) fn fraction<T: FromStr>(text: &str) -> Option<(T, T)> {
    let (number, of) = text.split_once('/')?;
    Some((number.parse().ok()?, of.parse().ok()?))
}

struct Reader<'a> {
    text: &'a str,
    build_args: &'a HashMap<String, String>,
    /// The arguments before the first stage. Image names can contain only these.
    args: HashMap<String, String>,
    file: Dockerfile,
    /// The lower-case names of the stages, in a set: there may be a hundred thousand of them, and as many images.
    names: HashSet<String>,
    lines: Lines,
    /// How many more bytes variables may expand to.
    budget: usize,
}

/// Counts line breaks incrementally, from instruction to instruction.
#[derive(Default)]
struct Lines {
    end: usize,
    count: usize,
}

impl Lines {
    fn before(&mut self, text: &str, end: usize) -> usize {
        let passed = &text.as_bytes()[self.end..end];
        self.count += passed.iter().filter(|byte| **byte == b'\n').count();
        self.end = end;
        self.count
    }
}

/// The most bytes that all variables together may expand to. Nested variables can turn a few lines into gigabytes;
/// image names are short.
const MAX_EXPANDED: usize = 1 << 20;

/// The longest value of a variable, and the deepest nesting of `${A:-${B:-…}}`.
const MAX_VALUE: usize = 4096;
const MAX_DEPTH: usize = 16;

/// The most base images whose lines are kept.
const MAX_BASES: usize = 1000;

/// The most registries, because a login is looked up for each.
const MAX_REGISTRIES: usize = 100;

impl Reader<'_> {
    fn read(&mut self, instruction: &Instruction<'_>) {
        let (keyword, span) = keyword(instruction);
        let lines_before = self.lines.before(self.text, span.start);
        let line = u32::try_from(lines_before + 1).unwrap_or(u32::MAX);
        match instruction {
            Instruction::Arg(arg) if self.file.stages.is_empty() => {
                words(&arg.arguments.value).for_each(|declared| self.arg(declared));
            }
            Instruction::From(from) => {
                let image = self.image(&from.image.value);
                let has_room = self.file.bases.len() < MAX_BASES;
                let base = image.filter(|_| has_room).map(|image| (image, line));
                self.file.bases.extend(base);
                let name = from.as_.as_ref().map(|(_, name)| name.value.to_string());
                let name = name.unwrap_or_default();
                self.names.insert(name.to_ascii_lowercase());
                self.file.stages.push(name);
            }
            Instruction::Copy(copy) => self.image_of_flag(&copy.options),
            Instruction::Run(run) => self.mounts(&run.options),
            _ => {}
        }
        self.file.steps.push(Step {
            stage: self.file.stages.len().checked_sub(1),
            keyword,
            line,
        });
    }

    fn arg(&mut self, declared: &str) {
        let (name, default) = declared.split_once('=').unwrap_or((declared, ""));
        if !self.build_args.contains_key(name) {
            let default = default.trim_matches(['"', '\'']);
            let value = self.expand(default);
            self.args.insert(name.to_owned(), value);
        }
    }

    fn image_of_flag(&mut self, flags: &[Flag<'_>]) {
        for flag in flags.iter().filter(|flag| flag.name.value == "from") {
            if let Some(image) = &flag.value {
                self.image(&image.value);
            }
        }
    }

    /// The images in `RUN --mount=type=bind,from=image`.
    fn mounts(&mut self, flags: &[Flag<'_>]) {
        for flag in flags.iter().filter(|flag| flag.name.value == "mount") {
            for option in flag.value.iter().flat_map(|value| value.value.split(',')) {
                if let Some(image) = option.trim().strip_prefix("from=") {
                    self.image(image);
                }
            }
        }
    }

    /// Expands the variables in a text, up to [`MAX_VALUE`] bytes. Empty if that exceeds what is left for all of them.
    fn expand(&mut self, text: &str) -> String {
        let mut expanded = String::new();
        expand(text, &self.args, MAX_DEPTH, &mut expanded);
        if !text.contains('$') {
            return expanded;
        }
        match self.budget.checked_sub(expanded.len()) {
            Some(left) => self.budget = left,
            None => expanded.clear(),
        }
        expanded
    }

    /// Adds the registry of an image. Returns the name without variables; `None` for `scratch` and earlier stages.
    fn image(&mut self, name: &str) -> Option<String> {
        let name = self.expand(name);
        let lower = name.to_ascii_lowercase();
        let is_stage = name.parse::<usize>().is_ok() || self.names.contains(&lower);
        if is_stage || name.is_empty() || lower == "scratch" {
            return None;
        }
        if self.file.registries.len() < MAX_REGISTRIES {
            self.file.registries.insert(registry(&name).to_owned());
        }
        Some(name)
    }
}

/// The image of the frontend that parses the Dockerfile (`# syntax=`). Only `parse` returns directives, and it fails on
/// instructions that a frontend adds. So it is given only the leading comments, where directives are.
fn frontend(text: &str) -> Option<String> {
    let comments = text.split_inclusive('\n');
    let comments: String = comments.take_while(|line| line.starts_with('#')).collect();
    let whole = comments + "\nFROM scratch";
    let file = parse_dockerfile::parse(&whole).ok()?;
    let syntax = file.parser_directives.syntax?;
    Some(syntax.value.value.to_owned())
}

/// The words of a text, with their quotes. A space in quotes does not end a word.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut quote = None;
    let words = text.split(move |c: char| {
        match quote {
            Some(open) if open == c => quote = None,
            None if matches!(c, '"' | '\'') => quote = Some(c),
            _ => {}
        }
        quote.is_none() && c.is_whitespace()
    });
    words.filter(|word| !word.is_empty())
}

/// The registry of an image, by the rule of github.com/distribution/reference: the part before the first `/`, if it
/// looks like a host. `registry-1.docker.io`, the address of Docker Hub's API, is not in that rule: it has the same
/// login.
pub(crate) fn registry(image: &str) -> &str {
    let is_host = |name: &str| {
        name == "localhost" || name.contains(['.', ':']) || name.contains(char::is_uppercase)
    };
    match image.split_once('/') {
        Some(("index.docker.io" | "registry-1.docker.io", _)) => DOCKER_HUB,
        Some((host, _)) if is_host(host) => host,
        _ => DOCKER_HUB,
    }
}

/// The shortest form of an image's name (github.com/distribution/reference).
fn familiar(image: &str) -> &str {
    // BuildKit adds the digest to a name with a tag. A colon before the last `/` is that of a registry's port.
    let has_tag = |name: &str| name.rsplit('/').next().unwrap_or(name).contains(':');
    let image = match image.split_once('@') {
        Some((name, _)) if has_tag(name) => name,
        _ => image,
    };
    let image = image.strip_prefix("docker.io/").unwrap_or(image);
    let image = image.strip_prefix("library/").unwrap_or(image);
    image.strip_suffix(":latest").unwrap_or(image)
}

/// Expands `$NAME`, `${NAME}`, `${NAME:-otherwise}` and `${NAME:+instead}`, up to [`MAX_VALUE`] bytes and `depth` levels
/// of nesting.
fn expand(text: &str, args: &HashMap<String, String>, depth: usize, expanded: &mut String) {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        append(expanded, before);
        let (expression, after) = match after.strip_prefix('{') {
            Some(inner) => match split_at_brace(inner) {
                Some(parts) => parts,
                // The builders reject it.
                None => return,
            },
            None => after.split_at(after.find(|c| !is_name(c)).unwrap_or(after.len())),
        };
        let (name, operator) = match expression.find(|c| !is_name(c)) {
            Some(end) => expression.split_at(end),
            None => (expression, ""),
        };
        let value = args.get(name).filter(|value| !value.is_empty());
        let otherwise = operator.strip_prefix(":-").or(operator.strip_prefix('-'));
        let instead = operator.strip_prefix(":+").or(operator.strip_prefix('+'));
        let text = match (value, otherwise, instead) {
            (Some(_), _, Some(instead)) => Some(instead),
            (Some(value), ..) => {
                append(expanded, value);
                None
            }
            (None, otherwise, _) => otherwise,
        };
        if let (Some(text), Some(depth)) = (text, depth.checked_sub(1)) {
            expand(text, args, depth, expanded);
        }
        if expanded.len() >= MAX_VALUE {
            return;
        }
        rest = after;
    }
    append(expanded, rest);
}

/// Splits the text after a `${` at the `}` that closes it.
fn split_at_brace(text: &str) -> Option<(&str, &str)> {
    let mut open = 1;
    let mut before = ' ';
    for (at, c) in text.char_indices() {
        match c {
            '{' if before == '$' => open += 1,
            '}' => open -= 1,
            _ => {}
        }
        if open == 0 {
            return Some((&text[..at], &text[at + 1..]));
        }
        before = c;
    }
    None
}

fn append(expanded: &mut String, text: &str) {
    let room = MAX_VALUE.saturating_sub(expanded.len());
    expanded.push_str(&text[..text.floor_char_boundary(room)]);
}

fn keyword(instruction: &Instruction<'_>) -> (&'static str, Span) {
    let (keyword, span) = match instruction {
        Instruction::Add(add) => ("ADD", &add.add.span),
        Instruction::Arg(arg) => ("ARG", &arg.arg.span),
        Instruction::Cmd(cmd) => ("CMD", &cmd.cmd.span),
        Instruction::Copy(copy) => ("COPY", &copy.copy.span),
        Instruction::Entrypoint(entrypoint) => ("ENTRYPOINT", &entrypoint.entrypoint.span),
        Instruction::Env(env) => ("ENV", &env.env.span),
        Instruction::Expose(expose) => ("EXPOSE", &expose.expose.span),
        Instruction::From(from) => ("FROM", &from.from.span),
        Instruction::Healthcheck(check) => ("HEALTHCHECK", &check.healthcheck.span),
        Instruction::Label(label) => ("LABEL", &label.label.span),
        Instruction::Maintainer(maintainer) => ("MAINTAINER", &maintainer.maintainer.span),
        Instruction::Onbuild(onbuild) => ("ONBUILD", &onbuild.onbuild.span),
        Instruction::Run(run) => ("RUN", &run.run.span),
        Instruction::Shell(shell) => ("SHELL", &shell.shell.span),
        Instruction::Stopsignal(stop) => ("STOPSIGNAL", &stop.stopsignal.span),
        Instruction::User(user) => ("USER", &user.user.span),
        Instruction::Volume(volume) => ("VOLUME", &volume.volume.span),
        Instruction::Workdir(workdir) => ("WORKDIR", &workdir.workdir.span),
        _ => ("", &(0..0)),
    };
    (keyword, span.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Dockerfile {
        Dockerfile::parse(text, &HashMap::new())
    }

    #[test]
    fn a_dockerfile_made_to_be_expensive_is_parsed_fast() {
        let size = 1 << 20;
        let repeat = |line: &str| line.repeat(size / line.len());
        let numbered = |line: &dyn Fn(usize) -> String| {
            let mut text = String::new();
            let mut number = 0;
            while text.len() < size {
                text += &line(number);
                number += 1;
            }
            text
        };
        let deep = format!("FROM {}x{}\n", repeat("${A:-"), "}");
        let balanced = format!("FROM {}x{}\n", "${A:-".repeat(170_000), "}".repeat(170_000));
        for text in [
            deep.clone(),
            deep.replace('}', ""),
            balanced,
            format!("ARG A=x\n{}FROM $A\n", repeat("ARG A=$A$A\n")),
            format!("ARG A=x {}\nFROM $A\n", repeat("A=$A$A ")),
            format!(
                "ARG A=x\n{}",
                numbered(&|n| format!("ARG A{n}=${{A:-$A{n}}}$A\n"))
            ),
            numbered(&|n| format!("FROM a{n} AS b{n}\n")),
            numbered(&|n| format!("FROM r{n}.example/x\n")),
            format!("FROM x\n{}", repeat("COPY --from=x a b\n")),
            format!("FROM x\nRUN {}\n", repeat("--mount=from=x ")),
            format!("FROM x\nRUN --mount={} x\n", repeat("from=x.example/y,")),
            format!("FROM x\nRUN {}", repeat("\\\n")),
            format!("FROM x\nRUN {}", repeat("# c\n")),
            format!("FROM x\n{}", repeat("RUN <<A\n")),
            format!("FROM x\nRUN {}\n", repeat("<<A ")),
            format!("FROM x\nRUN [{}\n", repeat("\"a\",")),
            format!("FROM x\n{}\n", repeat("ONBUILD ")),
            format!("FROM x\n{}\n", repeat("HEALTHCHECK CMD ")),
            format!("FROM x\nENV {}\n", repeat("A=b ")),
            repeat("# syntax=x\n"),
            repeat("\n"),
            repeat("$"),
            repeat("\0"),
            repeat("`"),
            repeat("\"'"),
        ] {
            let begun = std::time::Instant::now();
            let file = Dockerfile::parse(&text, &HashMap::new());
            let took = begun.elapsed();
            let start: String = text.chars().take(40).collect();
            // It takes a tenth of a second. Work that grows with the square of the size would take minutes.
            assert!(
                took < std::time::Duration::from_secs(10),
                "{took:?}: {start:?}"
            );
            assert!(file.registries.len() <= MAX_REGISTRIES, "{start:?}");
            assert!(file.registries.iter().all(|name| name.len() <= MAX_VALUE));
        }
    }

    #[test]
    fn base_images_leave_out_scratch_and_earlier_stages() {
        for (text, expected) in [
            (
                "ARG TAG=3\nFROM alpine:$TAG AS Base\nFROM base AS next",
                "alpine:3",
            ),
            ("FROM scratch\nFROM SCRATCH\nFROM python", "python"),
            ("FROM node AS node", "node"),
            ("FROM node AS base\nFROM base AS node", "node"),
        ] {
            let file = parse(text);
            let images: Vec<&str> = file.base_images().collect();
            assert_eq!(images, [expected], "{text}");
        }
    }

    #[test]
    fn the_line_of_an_image_is_found_for_each_form_of_its_name() {
        let text = "FROM localhost:5000/x@sha256:aa\nFROM localhost:5000/x@sha256:bb\nFROM alpine\nFROM node:20";
        let file = parse(text);
        for (image, line) in [
            ("localhost:5000/x@sha256:aa", Some(1)),
            ("localhost:5000/x@sha256:bb", Some(2)),
            ("docker.io/library/alpine:latest", Some(3)),
            ("docker.io/library/node:20@sha256:cc", Some(4)),
            ("node", None),
        ] {
            assert_eq!(file.line_of_image(image), line, "{image}");
        }
    }

    #[test]
    fn an_excerpt_has_two_lines_around_each_instruction() {
        let text = "FROM x\nRUN 2\nRUN 3\nRUN 4 \\\n  5\nRUN 6\nRUN 7\nRUN 8\nRUN 9\n";
        let file = Dockerfile::parse(text, &HashMap::new());
        for (line, expected) in [
            (1, "> 1 | FROM x\n  2 | RUN 2\n  3 | RUN 3\n"),
            (
                4,
                "  2 | RUN 2\n  3 | RUN 3\n> 4 | RUN 4 \\\n> 5 |   5\n  6 | RUN 6\n  7 | RUN 7\n",
            ),
            (9, "  7 | RUN 7\n  8 | RUN 8\n> 9 | RUN 9\n"),
            (0, ""),
            (10, ""),
        ] {
            assert_eq!(file.excerpt(line), expected, "{line}");
        }
        let long = parse(&format!("FROM x\nRUN {}", "\\\n".repeat(9)));
        let expected = "  1 | FROM x\n> 2 | RUN \\\n> 3 | \\\n> 4 | \\\n> 5 | \\\n> 6 | \\\n> 7 | \\\n  8 | \\\n  9 | \\\n";
        assert_eq!(long.excerpt(2), expected);
    }

    #[test]
    fn the_registries_of_all_named_images_are_found() {
        for (text, expected) in [
            ("FROM scratch", &[][..]),
            ("FROM alpine", &["docker.io"]),
            ("FROM library/alpine:3", &["docker.io"]),
            ("FROM index.docker.io/library/alpine", &["docker.io"]),
            (
                "FROM registry.example/team/image@sha256:00",
                &["registry.example"],
            ),
            ("FROM localhost/image", &["localhost"]),
            (
                "FROM 127.0.0.1:5000/image AS base\nFROM base",
                &["127.0.0.1:5000"],
            ),
            (
                "FROM scratch\nCOPY --from=a.example/image / /",
                &["a.example"],
            ),
            (
                "FROM scratch AS x\nFROM scratch\nCOPY --from=X / /\nCOPY --from=0 / /",
                &[],
            ),
            (
                "FROM scratch\nRUN --mount=type=bind,from=b.example/tool,target=/t /t/run",
                &["b.example"],
            ),
            (
                "# syntax=c.example/frontend:1\nFROM scratch",
                &["c.example"],
            ),
            ("ARG BASE=d.example/image\nFROM ${BASE}:3", &["d.example"]),
            (
                "ARG HOST=\"e.example\"\nARG BASE=$HOST/x\nFROM $BASE",
                &["e.example"],
            ),
            ("FROM ${BASE:-f.example/image}", &["f.example"]),
            (
                "ARG REG=r.example\nFROM ${BASE:-${REG}/image}",
                &["r.example"],
            ),
            (
                "ARG REG=s.example TAG=\"3\"\nFROM $REG/image:$TAG",
                &["s.example"],
            ),
            (
                "ARG A=\"a b=c\" REG='t.example'\nFROM $REG/image",
                &["t.example"],
            ),
            ("FROM Host/image", &["Host"]),
            ("FROM ${BASE}g.example/image", &["g.example"]),
            (
                "# see h.example/image\nFROM scratch\nRUN echo i.example/image",
                &[],
            ),
            (
                "ARG REG=u.example A=\"a REG=v.example\" B='\" REG=v.example'\nFROM $REG/image",
                &["u.example"],
            ),
            (
                "FROM w.example/image\nARG REG=v.example\nFROM $REG/image",
                &["docker.io", "w.example"],
            ),
            (
                "FROM j.example/image\nWHATEVER\nFROM k.example/image",
                &["j.example"],
            ),
            (
                "# syntax=l.example/frontend\nFROM scratch\nWHATEVER",
                &["l.example"],
            ),
            ("# l.example/x\n# syntax=m.example/x\nFROM scratch", &[]),
        ] {
            let file = parse(text);
            let found: Vec<&str> = file.registries().iter().map(String::as_str).collect();
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn a_build_argument_overrides_its_default() {
        let args = HashMap::from([("BASE".to_owned(), "given.example/x".to_owned())]);
        for text in [
            "ARG BASE=default.example/x\nFROM $BASE",
            "FROM ${BASE:-default.example/{}",
        ] {
            let file = Dockerfile::parse(text, &args);
            assert!(file.registries().contains("given.example"), "{text}");
            assert_eq!(file.registries().len(), 1, "{text}");
        }
    }

    #[test]
    fn an_image_is_left_out_if_its_variables_are_too_long() {
        let value = "x".repeat(MAX_VALUE);
        let fits = MAX_EXPANDED / MAX_VALUE;
        for (number, expected) in [(fits - 1, 1), (fits, 0)] {
            let arguments = "ARG B=$A\n".repeat(number);
            let file = parse(&format!("ARG A={value}\n{arguments}FROM $A"));
            assert_eq!(file.base_images().count(), expected, "{number}");
        }
    }

    #[test]
    fn base_images_and_lines_are_limited() {
        let file = parse(&"FROM a\n".repeat(MAX_BASES + 1));
        assert_eq!(file.base_images().count(), MAX_BASES);
        let line = format!("RUN {}", "word ".repeat(MAX_KEPT));
        let excerpt = parse(&format!("FROM a\n{line}\n")).excerpt(2);
        assert!(excerpt.len() < MAX_KEPT + 100, "{}", excerpt.len());
    }

    #[test]
    fn the_line_of_every_instruction_is_found() {
        let lines = [
            "FROM alpine",
            "ADD a b",
            "ARG A=1",
            "CMD a",
            "COPY a b",
            "ENTRYPOINT a",
            "ENV A=1",
            "EXPOSE 80",
            "HEALTHCHECK CMD a",
            "LABEL a=b",
            "MAINTAINER a",
            "ONBUILD RUN a",
            "RUN a",
            "SHELL [\"a\"]",
            "STOPSIGNAL 9",
            "USER a",
            "VOLUME /a",
            "WORKDIR /a",
        ];
        let (file, of) = (parse(&lines.join("\n")), lines.len());
        for (number, line) in (1..).zip(lines) {
            let step = format!("[{number}/{of}] {line}");
            assert_eq!(file.line_of(&step), Some(number), "{step}");
        }
    }

    #[test]
    fn the_line_of_a_step_is_found_for_each_builder() {
        let one = "# comment\nFROM alpine\nENV A=1\nWORKDIR /w\n\nRUN a \\\n  b\nCOPY . .\nRUN c\n";
        let two = "ARG V=1\nFROM alpine AS build\nRUN make\nFROM scratch\nCOPY --from=build /a /a\nADD b /b\n";
        // BuildKit counts FROM and WORKDIR as steps in some builds only.
        let mixed =
            "FROM a AS x\nRUN 2\nCOPY 3 /\nFROM b AS y\nENV A=5\nWORKDIR /6\nWORKDIR /7\nRUN 8\n";
        let argument = "ARG A=1\nFROM a\nENV A=3\nRUN 4\n";
        for (text, step, line) in [
            // BuildKit.
            (mixed, "[y 4/4] RUN 8", Some(8)),
            (mixed, "[y 3/4] WORKDIR /7", Some(7)),
            (mixed, "[y 2/3] WORKDIR /7", Some(7)),
            (mixed, "[y 1/2] FROM b", Some(4)),
            (mixed, "[y 2/2] RUN 8", Some(8)),
            (mixed, "[y 1/1] RUN 8", Some(8)),
            (one, "[1/5] FROM alpine", Some(2)),
            (one, "[2/5] WORKDIR /w", Some(4)),
            (one, "[3/5] RUN a   b", Some(6)),
            (one, "[5/5] RUN c", Some(9)),
            (one, "[2/4] RUN a   b", Some(6)),
            (two, "[build 2/2] RUN make", Some(3)),
            (two, "[stage-1 1/2] COPY --from=build /a /a", Some(5)),
            (two, "[stage-1 2/2] ADD b /b", Some(6)),
            // The classic builder, without and with labels.
            (one, "[5/6] COPY . .", Some(8)),
            (one, "[4/10] RUN a   b", Some(6)),
            (two, "[6/6] ADD b /b", Some(6)),
            (two, "[1/6] ARG V=1", Some(1)),
            // Podman.
            (argument, "[1/3] FROM a", Some(2)),
            (argument, "[3/3] RUN 4", Some(4)),
            (one, "[6/6] RUN c", Some(9)),
            (two, "[2/2 3/3] ADD b /b", Some(6)),
            // Steps that fit no list.
            (one, "[2/5] COPY . .", None),
            (one, "[2/9] RUN a", None),
            (one, "[7/9] LABEL a=b", None),
            (two, "[stage-1 1/3] COPY --from=build /a /a", None),
            (two, "[nowhere 1/2] RUN make", None),
            (one, "exporting to image", None),
            (one, "[internal] load build context", None),
            ("", "[1/1] RUN x", None),
        ] {
            assert_eq!(parse(text).line_of(step), line, "{step} of {text:?}");
        }
    }
}
