//! Another Rust static library in the host program. It uses much of the standard library, so that it brings the parts
//! that libmol has too: panics, threads, thread-local values, formatting, collections.

use std::cell::Cell;
use std::collections::HashMap;
use std::panic;
use std::thread;

thread_local!(static CALLS: Cell<u32> = const { Cell::new(0) });

/// Panics in this thread and in another one, and returns how many of these panics it caught: 2.
#[unsafe(no_mangle)]
pub extern "C" fn other_panics() -> u32 {
    panic::set_hook(Box::new(|_| {}));
    CALLS.set(CALLS.get() + 1);
    let here = panic::catch_unwind(|| panic!("call {}", CALLS.get()));
    let there = thread::spawn(|| panic!("elsewhere")).join();
    let caught: HashMap<&str, bool> = [("here", here.is_err()), ("there", there.is_err())].into();
    caught.values().filter(|caught| **caught).count() as u32
}
