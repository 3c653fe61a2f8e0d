//! Panics: each one becomes an error of the call it happened in, with its place in the code.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe, Location, PanicHookInfo};
use std::sync::{Mutex, Once, PoisonError};

use futures_util::FutureExt;

use crate::error::{Code, Error, Result};

/// What `std::thread::scope` panics with when it has thrown away the panic of one of its threads. gix
/// has such threads.
const IN_ANOTHER_THREAD: &str = "a scoped thread panicked";

thread_local! {
    /// Where this thread's last panic was.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// What the last panic of any thread said, and where.
static LAST: Mutex<Option<String>> = Mutex::new(None);

/// Does the work; a panic in it is an error.
pub(crate) fn catch<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(from_panic(&*panic)))
}

/// The same, for work that waits.
pub(crate) async fn catch_future<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let work = AssertUnwindSafe(work).catch_unwind();
    work.await.unwrap_or_else(|panic| Err(from_panic(&*panic)))
}

/// An error for a panic of this thread: its message and its place in the code.
fn from_panic(payload: &(dyn Any + Send)) -> Error {
    let said = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    let place = PLACE.with(RefCell::take);
    let place = place.map_or_else(String::new, |place| format!(" ({place})"));
    Error::new(
        Code::Internal,
        format!("a defect in libmol stopped this call: {said}{place}"),
    )
    .hint("please report it, with what was being done")
}

/// From now on panics write nothing to standard error, which is the host's, and their places are kept
/// for their errors.
///
/// This is for every panic of this copy of the standard library, so only the C ABI does it: a host
/// that is a Rust program, and has its own hook, has its own copy too. One that uses this crate
/// directly hears of its panics through its hook, and the errors do without the place.
pub(crate) fn install_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| panic::set_hook(Box::new(note)));
}

fn note(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map(place).unwrap_or_default();
    let said = panic.payload_as_str().unwrap_or("no message");
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    let place = if said == IN_ANOTHER_THREAD {
        last.take().unwrap_or(place)
    } else {
        *last = Some(format!("{said}, {place}"));
        place
    };
    // A panic while the thread ends has nowhere to be kept, and nobody to be told to.
    let _ = PLACE.try_with(|kept| kept.replace(Some(place)));
}

/// File and line, without the folders of the machine that the library was compiled on.
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
    fn a_panic_is_an_error_with_its_message() {
        let error = catch::<()>(|| panic!("number {}", 7)).unwrap_err();
        assert_eq!(error.code, Code::Internal);
        assert!(error.message.contains("number 7"), "{error:?}");
        let strange = catch::<()>(|| panic::panic_any(7)).unwrap_err();
        assert!(strange.message.contains("no message"), "{strange:?}");
    }

    #[test]
    fn its_place_names_the_file_within_the_package() {
        let here = Location::caller();
        assert_eq!(
            place(here),
            format!("src/process/panics.rs:{}", here.line())
        );
    }
}
