//! A tape that says which C function gets which arguments (tests/c/tape.c).
#![no_main]

use libfuzzer_sys::fuzz_target;
// The C program calls what this crate exports.
use mol as _;

unsafe extern "C" {
    fn play(tape: *const u8, length: usize);
    fn rewind_all();
}

fuzz_target!(|tape: &[u8]| {
    // SAFETY: the tape is as long as it says.
    unsafe {
        play(tape.as_ptr(), tape.len());
        rewind_all();
    }
});
