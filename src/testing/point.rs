//! Failpoints: named points in the code, at which a test kills the process, makes it panic or holds it.
//!
//! They exist only with the cargo feature `failpoints`, which a release does not have. The environment variable
//! `FAILPOINTS` sets what happens at each, in the syntax of the crate `fail`:
//!
//! ```text
//! FAILPOINTS='tree-renamed=return(kill)'              killed there, without cleanup
//! FAILPOINTS='git-received=2*off->return(panic)'      a panic at the third pass
//! FAILPOINTS='tree-renamed=sleep(2000)'               a pause of two seconds
//! FAILPOINTS='tree-renamed=1*return(until /tmp/go)'   the first pass waits until this file exists, or
//!                                                     its folder is gone
//! ```

/// A failpoint. Its name is a format string with arguments.
#[cfg(not(feature = "failpoints"))]
macro_rules! point {
    ($($name:tt)+) => {};
}

/// A failpoint. Its name is a format string with arguments.
#[cfg(feature = "failpoints")]
macro_rules! point {
    ($($name:tt)+) => {
        $crate::testing::point::reached(&format!($($name)+))
    };
}

/// Does what `FAILPOINTS` sets for this point.
#[cfg(feature = "failpoints")]
#[track_caller]
pub(crate) fn reached(name: &str) {
    use std::sync::Once;

    static SETUP: Once = Once::new();
    SETUP.call_once(|| std::mem::forget(fail::FailScenario::setup()));
    let action = fail::eval(name, Option::unwrap_or_default);
    match action.as_deref() {
        None => {}
        Some(text) if let Some(file) = text.strip_prefix("until ") => {
            let file = std::path::Path::new(file);
            // A test that has failed has removed the folder.
            while !file.exists() && file.parent().is_some_and(std::path::Path::exists) {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }
        Some("kill") => {
            let me = rustix::process::getpid();
            let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
        }
        Some(text) => panic!("{text} at the point {name}"),
    }
}
