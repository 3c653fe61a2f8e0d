//! The Go package's pure functions (go/mol/internal/vectororacle), which must return the same as the core.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::json;

use super::daemon::GoProcess;

pub struct GoOracle(GoProcess);

impl GoOracle {
    pub fn start() -> Self {
        Self(GoProcess::start("go/mol", "./internal/vectororacle"))
    }

    /// The result of `GiteaBranchAPIURL`, or the name of its error.
    pub fn branch_url(
        &mut self,
        prefix: &str,
        runtime: &str,
        branch: &str,
    ) -> Result<String, String> {
        self.ask(&json!({ "prefix": prefix, "runtime": runtime, "branch": branch }))
    }

    /// The result of `ParseGiteaBranchHeadSha`, or the name of its error.
    pub fn head_sha(&mut self, body: &[u8]) -> Result<String, String> {
        self.ask(&json!({ "body": STANDARD.encode(body) }))
    }

    fn ask(&mut self, question: &serde_json::Value) -> Result<String, String> {
        #[derive(Deserialize)]
        struct Answer {
            value: String,
            #[serde(default)]
            error: String,
        }
        let line = self.0.ask(&question.to_string());
        match serde_json::from_str(&line).unwrap() {
            Answer { value, error } if error.is_empty() => Ok(value),
            Answer { error, .. } => Err(error),
        }
    }
}
