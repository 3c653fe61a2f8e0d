//! A host written in Rust that links the shared library and has its own panic hook.

use std::ffi::{c_char, c_void};
use std::panic;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

unsafe extern "C" {
    fn mol_resolve(text: *const c_char, registry: *mut [usize; 2], error: *mut *mut c_void) -> i32;
}

static PANICS: AtomicU32 = AtomicU32::new(0);

fn main() {
    panic::set_hook(Box::new(|_| {
        PANICS.fetch_add(1, Ordering::Relaxed);
    }));
    // A mol_registry: the mode and the prefix.
    let mut registry = [0usize; 2];
    let status = unsafe { mol_resolve(ptr::null(), &mut registry, ptr::null_mut()) };
    println!("status {status}");
    println!("panics of the library seen {}", PANICS.load(Ordering::Relaxed));
    let own = panic::catch_unwind(|| panic!("the host's own"));
    assert!(own.is_err());
    println!("own panics seen {}", PANICS.load(Ordering::Relaxed));
}
