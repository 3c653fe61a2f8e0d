//! The C ABI: takes arguments apart, calls the core, puts the answer together, and nothing else.
//!
//! What holds for every function is written once, at the head of `include/mol.h`, which is generated
//! from this module (the text is in `cbindgen.toml`). The `# Safety` sections are for Rust readers; the
//! header leaves them out, because its descriptions of the parameters say the same.
//!
//! | module | what it holds |
//! | --- | --- |
//! | `guard` | catches panics, turns errors into a status and a `mol_error` |
//! | `text` | strings from C and to C |
//! | `handles` | ids for options and clients |
//! | `timeout` | what a `timeout_ms` means |
//! | `types` | the structs and numbers of the ABI |
//! | `basics`, `options`, `client`, `call`, `free` | the functions |

#![allow(unsafe_code)]
#![allow(non_camel_case_types)]

pub mod basics;
pub mod call;
pub mod client;
pub mod free;
mod guard;
mod handles;
pub mod options;
mod text;
pub mod timeout;
pub mod types;

#[cfg(test)]
mod tests {
    #[test]
    fn the_committed_headers_are_the_generated_one() {
        let generated = include_str!(env!("MOL_GENERATED_HEADER"));
        let committed = [
            include_str!("../../include/mol.h"),
            include_str!("../../go/mol/mol.h"),
        ];
        for header in committed {
            assert!(
                header == generated,
                "src/ffi has changed: run make generate"
            );
        }
    }
}
