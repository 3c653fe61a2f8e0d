//! A commit's tree, one entry per line (tests/properties/tree.rs). Checkout and upload must stay inside its
//! folder.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/properties/mod.rs"]
#[allow(dead_code)]
mod properties;

use properties::tree::{parse, stays_inside};

fuzz_target!(|data: &[u8]| {
    stays_inside(&parse(data), data.len() % 2 == 0);
});
