//! Lines of paths, an empty line, then a .dockerignore. It must be parsed or refused quickly.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};

#[path = "../../tests/properties/mod.rs"]
#[allow(dead_code)]
mod properties;

fuzz_target!(|data: &[u8]| -> Corpus {
    let Ok(text) = str::from_utf8(data) else {
        return Corpus::Reject;
    };
    let Some((paths, file)) = text.split_once("\n\n") else {
        return Corpus::Reject;
    };
    let paths: Vec<&str> = paths.lines().take(8).collect();
    properties::ignore_file::is_parsed_or_refused(file, &paths);
    Corpus::Keep
});
