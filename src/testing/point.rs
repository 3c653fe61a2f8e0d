//! Named points in the code, at which a test kills the process or has it panic.
//!
//! They are there only with the cargo feature `failpoints`, which what ships is built without. Then
//! the environment variable `FAILPOINTS` says what happens where, in the syntax of the crate `fail`:
//!
//! ```text
//! FAILPOINTS='tree-renamed=return(kill)'              killed there, with no time to clean up
//! FAILPOINTS='pack-chunk=2*off->return(panic)'        a panic the third time
//! FAILPOINTS='tree-renamed=sleep(2000)'               two seconds' pause
//! ```

/// A point; its name is a format string with its arguments.
#[cfg(not(feature = "failpoints"))]
macro_rules! point {
    ($($name:tt)+) => {};
}

/// A point; its name is a format string with its arguments.
#[cfg(feature = "failpoints")]
macro_rules! point {
    ($($name:tt)+) => {
        $crate::testing::point::reached(&format!($($name)+))
    };
}

/// Does what the environment wants done at this point.
#[cfg(feature = "failpoints")]
#[track_caller]
pub(crate) fn reached(name: &str) {
    use std::sync::Once;

    static SETUP: Once = Once::new();
    SETUP.call_once(|| std::mem::forget(fail::FailScenario::setup()));
    match fail::eval(name, Option::unwrap_or_default).as_deref() {
        None => {}
        Some("kill") => {
            let me = rustix::process::getpid();
            let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
        }
        Some(said) => panic!("{said} at the point {name}"),
    }
}
