//! What a server says about a branch: the commit is taken from its place, or there is none.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/properties/mod.rs"]
#[allow(dead_code)]
mod properties;

fuzz_target!(|body: &[u8]| {
    // Larger answers do not come so far.
    if body.len() <= 64 * 1024 {
        properties::head_sha::is_the_id_of_the_commit(body);
    }
});
