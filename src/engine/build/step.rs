//! A step of a build.

/// A step of the build.
#[derive(Clone, Debug, Default)]
pub(super) struct Step {
    /// From 1, in the order in which the steps begin.
    pub(super) number: u32,
    /// The number of steps known so far.
    pub(super) total: u32,
    pub(super) name: String,
}

impl Step {
    pub(super) fn is_base_image(&self) -> bool {
        is_base_image(&self.name)
    }
}

/// Whether a step with this name is the pull of a base image: its instruction is `FROM`.
pub(super) fn is_base_image(name: &str) -> bool {
    let (_, text) = name.split_once("] ").unwrap_or(("", name));
    let instruction = text.split_whitespace().next();
    instruction.is_some_and(|word| word.eq_ignore_ascii_case("FROM"))
}
