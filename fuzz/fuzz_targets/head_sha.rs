//! A branch response. The commit id must be the one in its field, or the response is refused.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/properties/mod.rs"]
#[allow(dead_code)]
mod properties;

fuzz_target!(|body: &[u8]| {
    // Larger responses are refused before they are parsed.
    if body.len() <= 64 * 1024 {
        properties::head_sha::sha_is_the_commit_id(body);
    }
});
