//! A commit's tree, line by line (tests/properties/tree.rs): it is checked out, and sent, from within
//! its folder.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/properties/mod.rs"]
#[allow(dead_code)]
mod properties;

use properties::tree::{parse, stays_inside};

fuzz_target!(|data: &[u8]| {
    stays_inside(&parse(data), data.len() % 2 == 0);
});
