//! Turns each panic into an error of its call, with its place in the code.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe, Location, PanicHookInfo};
use std::sync::{Mutex, Once};

use futures_util::FutureExt;

use crate::error::{Code, Error, Result};
use crate::process;

/// The message of `std::thread::scope` when it replaces the panic of one of its threads. gix uses scoped threads.
const IN_ANOTHER_THREAD: &str = "a scoped thread panicked";

thread_local! {
    /// The place of this thread's last panic.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// The message and the place of the last panic of any thread.
static LAST: Mutex<Option<String>> = Mutex::new(None);

/// Runs the work. A panic in it becomes an error.
pub(crate) fn catch<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(from_panic(&*panic)))
}

/// Like [`catch`], for async work.
pub(crate) async fn catch_future<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let work = AssertUnwindSafe(work).catch_unwind();
    work.await.unwrap_or_else(|panic| Err(from_panic(&*panic)))
}

/// The error for a panic of this thread.
fn from_panic(payload: &(dyn Any + Send)) -> Error {
    let message = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    let place = PLACE.with(RefCell::take);
    let place = place.map_or_else(String::new, |place| format!(" ({place})"));
    Error::new(
        Code::Internal,
        format!("a defect in libmol stopped this call: {message}{place}"),
    )
    .hint("please report it, and describe what the call was doing")
}

/// Installs a panic hook that writes nothing to the host's standard error and records the place for the error.
///
/// The hook is global to this copy of std, so only the C ABI installs it: a Rust host that links the C library has its
/// own copy. A Rust program that uses the crate keeps its own hook, and its errors do not name the place in the code.
pub(crate) fn install_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // The tests of this crate keep their messages.
        #[cfg(test)]
        let shown = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            record(info);
            #[cfg(test)]
            shown(info);
        }));
    });
}

fn record(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map(place).unwrap_or_default();
    let message = panic.payload_as_str().unwrap_or("no message");
    let mut last = process::lock(&LAST);
    let place = if message == IN_ANOTHER_THREAD {
        last.take().unwrap_or(place)
    } else {
        *last = Some(format!("{message}, {place}"));
        place
    };
    // Fails during thread-local destruction; the place is then not needed.
    let _ = PLACE.try_with(|last| last.replace(Some(place)));
}

/// The file within its package, and the line: without folders of the build machine.
fn place(location: &Location<'_>) -> String {
    let (file, line) = (location.file(), location.line());
    let package = file
        .rfind("/src/")
        .map_or(0, |src| file[..src].rfind('/').map_or(0, |slash| slash + 1));
    format!("{}:{line}", &file[package..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_with_its_message() {
        let error = catch::<()>(|| panic!("number {}", 7)).unwrap_err();
        assert_eq!(error.code, Code::Internal);
        assert!(error.message().contains("number 7"), "{error:?}");
        let strange = catch::<()>(|| panic::panic_any(7)).unwrap_err();
        assert!(strange.message().contains("no message"), "{strange:?}");
    }

    #[test]
    fn the_place_of_a_panic_is_a_file_within_the_package() {
        let here = Location::caller();
        assert_eq!(
            place(here),
            format!("src/process/panics.rs:{}", here.line())
        );
    }
}
