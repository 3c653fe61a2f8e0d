//! A prefix and a branch, separated by a NUL byte. The URL must point to that branch on that server.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};

#[path = "../../tests/properties/mod.rs"]
#[allow(dead_code)]
mod properties;

fuzz_target!(|data: &[u8]| -> Corpus {
    let Ok(text) = str::from_utf8(data) else {
        return Corpus::Reject;
    };
    let Some((prefix, branch)) = text.split_once('\0') else {
        return Corpus::Reject;
    };
    properties::branch_url::url_names_the_branch(prefix, "hermes", branch);
    properties::branch_url::url_names_the_branch("https://host/org/tpl-", "hermes", branch);
    Corpus::Keep
});
