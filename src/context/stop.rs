//! A flag that ends the reading of a template.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Stops the threads that read a template when the build has ended.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Returns a guard that sets this flag when it is dropped.
    pub(crate) fn on_drop(&self) -> impl Drop + Send + use<> {
        struct Guard(Stop);
        impl Drop for Guard {
            fn drop(&mut self) {
                self.0.0.store(true, Ordering::Relaxed);
            }
        }
        Guard(self.clone())
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// # Errors
    ///
    /// [`io::ErrorKind::BrokenPipe`] if it is set, as if the engine had closed the connection.
    pub(crate) fn check(&self) -> io::Result<()> {
        match self.is_set() {
            true => Err(io::ErrorKind::BrokenPipe.into()),
            false => Ok(()),
        }
    }
}
