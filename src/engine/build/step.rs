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
        self.instruction() == "FROM"
    }

    /// The first word of its instruction.
    pub(super) fn instruction(&self) -> &str {
        let (_, text) = self.name.split_once("] ").unwrap_or(("", &self.name));
        text.split_whitespace().next().unwrap_or_default()
    }
}
