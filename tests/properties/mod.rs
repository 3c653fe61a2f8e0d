//! What holds whatever comes in. Each property is a function that panics where it does not hold:
//! proptest tries it in `make test`, libFuzzer in `make fuzz`.

pub mod branch_url;
pub mod head_sha;
pub mod ignore_file;
pub mod masking;
pub mod tree;
