//! The input is a sequence of C calls and their arguments (tests/c/random_calls.c).
#![no_main]

use libfuzzer_sys::fuzz_target;
// The C program calls what this crate exports.
use mol as _;

unsafe extern "C" {
    fn run_input(bytes: *const u8, length: usize);
    fn free_all();
}

fuzz_target!(|input: &[u8]| {
    // SAFETY: pointer and length are those of one slice.
    unsafe {
        run_input(input.as_ptr(), input.len());
        free_all();
    }
});
