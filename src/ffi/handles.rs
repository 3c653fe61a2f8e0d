//! Ids for options and clients: using a stale id is an error, never a crash.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::error::{Code, Error, Result};
use crate::process;

/// One counter for all kinds of objects, so that no two objects have the same id.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// All objects of one kind.
pub(super) struct Handles<T> {
    what: &'static str,
    objects: Mutex<Option<HashMap<u64, Arc<T>>>>,
}

impl<T> Handles<T> {
    pub(super) const fn new(what: &'static str) -> Self {
        Self {
            what,
            objects: Mutex::new(None),
        }
    }

    /// Stores an object, and returns its id.
    pub(super) fn insert(&self, object: T) -> u64 {
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        self.lock()
            .get_or_insert_default()
            .insert(id, Arc::new(object));
        id
    }

    /// The object with this id. A caller that has it keeps it alive, also when it is freed meanwhile.
    pub(super) fn get(&self, id: u64) -> Result<Arc<T>> {
        let object = self.lock().as_ref().and_then(|all| all.get(&id).cloned());
        object.ok_or_else(|| {
            Error::new(
                Code::NoSuchHandle,
                format!("there is no {} with the id {id}", self.what),
            )
            .hint("it was freed or never created")
        })
    }

    /// Removes an object.
    pub(super) fn remove(&self, id: u64) -> Option<Arc<T>> {
        self.lock().as_mut()?.remove(&id)
    }

    fn lock(&self) -> MutexGuard<'_, Option<HashMap<u64, Arc<T>>>> {
        process::lock(&self.objects)
    }
}
