//! A host that is a Rust program itself, links the shared library, and has a panic hook of its own.

use std::ffi::{c_char, c_void};
use std::panic;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

unsafe extern "C" {
    fn mol_resolve(text: *const c_char, out: *mut *mut c_void, error: *mut *mut c_void) -> i32;
}

static TOLD: AtomicU32 = AtomicU32::new(0);

fn main() {
    panic::set_hook(Box::new(|_| {
        TOLD.fetch_add(1, Ordering::Relaxed);
    }));
    let mut out = ptr::null_mut();
    let status = unsafe { mol_resolve(ptr::null(), &mut out, ptr::null_mut()) };
    println!("status {status}");
    println!("told of the library's panics {}", TOLD.load(Ordering::Relaxed));
    let own = panic::catch_unwind(|| panic!("the host's own"));
    assert!(own.is_err());
    println!("told of its own {}", TOLD.load(Ordering::Relaxed));
}
