//! The input is a tape: a sequence of C calls and their arguments (tests/c/random_calls.c).
#![no_main]

use libfuzzer_sys::fuzz_target;
// The C program calls what this crate exports.
use mol as _;

unsafe extern "C" {
    fn play(tape: *const u8, length: usize);
    fn rewind_all();
}

fuzz_target!(|tape: &[u8]| {
    // SAFETY: pointer and length are those of one slice.
    unsafe {
        play(tape.as_ptr(), tape.len());
        rewind_all();
    }
});
