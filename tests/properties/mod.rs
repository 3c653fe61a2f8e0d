//! Properties that hold for any input. Each one is a function that panics if it does not hold. proptest
//! runs them in `make test`, libFuzzer in `make fuzz`.

pub mod branch_url;
pub mod head_sha;
pub mod ignore_file;
pub mod masking;
pub mod tree;
