//! Clients, their events and metrics.

use std::ffi::{c_char, c_int};
use std::sync::Arc;

use super::guard::{ffi_call, ffi_value, write};
use super::handles::Handles;
use super::text::give;
use super::types::{mol_client, mol_error, mol_event, mol_options, mol_status, to_json};
use super::{options, timeout};
use crate::client::inbox::{Inbox, Taken};
use crate::client::{Client, Observer};
use crate::error::{Code, Error};
use crate::process::executor;

pub(super) static CLIENTS: Handles<Object> = Handles::new("client");

/// A client, with the results and events that wait to be taken.
pub(super) struct Object {
    pub(super) client: Client,
    pub(super) inbox: Arc<Inbox>,
    has_events: bool,
}

/// Creates a client. It connects to nothing before its first call.
///
/// options  checked here, and not needed afterwards; if one is invalid, the error's message names it
/// events   whether events are kept for mol_client_next_event
/// client   receives the client, for mol_client_free
///
/// # Safety
///
/// `client` and `error` are NULL or may be written.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_client_new(
    options: mol_options,
    events: bool,
    client: *mut mol_client,
    error: *mut *mut mol_error,
) -> mol_status {
    // SAFETY: the caller's promises.
    unsafe {
        ffi_call(error, || {
            write("client", client, || {
                let inbox = Arc::new(Inbox::default());
                let observer = events.then(|| observer(Arc::clone(&inbox)));
                let client = Client::new(&options::get(options)?, observer)?;
                let id = CLIENTS.insert(Object {
                    client,
                    inbox,
                    has_events: events,
                });
                Ok(mol_client { id })
            })
        })
    }
}

fn observer(inbox: Arc<Inbox>) -> Observer {
    Box::new(move |event| inbox.push(event))
}

/// Cancels a client's calls, waits up to two seconds until they have ended, and frees the client. Functions that wait
/// for its events or results return MOL_ERR_CLOSED; results and events that were not taken are dropped.
#[unsafe(no_mangle)]
pub extern "C" fn mol_client_free(client: mol_client) {
    ffi_value((), || {
        let Some(object) = CLIENTS.remove(client.id) else {
            return;
        };
        // First, so that a waiter gets no result of a call that is cancelled here.
        object.inbox.close();
        if let Ok(runtime) = executor::runtime() {
            runtime.block_on(object.client.close());
        }
    });
}

/// Takes the oldest event of a client, which must have been created with events. All events of a call come before its
/// result, except those of a shared build that goes on for other calls after this call was cancelled or ran out of
/// time. When the program is slow, events are dropped, and a "thinned" event says how many.
///
/// timeout_ms  how long to wait for an event
/// event       receives the event, for mol_event_free; NULL if none came in time
///
/// # Safety
///
/// `event` and `error` are NULL or may be written.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_client_next_event(
    client: mol_client,
    timeout_ms: i64,
    event: *mut *mut mol_event,
    error: *mut *mut mol_error,
) -> mol_status {
    // SAFETY: the caller's promises.
    unsafe {
        ffi_call(error, || {
            write("event", event, || {
                let object = CLIENTS.get(client.id)?;
                if !object.has_events {
                    return Err(Error::new(
                        Code::InvalidArgument,
                        "the client was created without events",
                    )
                    .hint("create it with mol_client_new(options, true, ...)"));
                }
                // Only the inbox is held during the wait, so that the client can be freed.
                let inbox = Arc::clone(&object.inbox);
                drop(object);
                match inbox.next_event(timeout::of_wait(timeout_ms)) {
                    Taken::Item(numbered) => mol_event::new(numbered),
                    Taken::Nothing => Ok(std::ptr::null_mut()),
                    Taken::Closed => Err(Error::freed()),
                }
            })
        })
    }
}

/// Gives a file descriptor for poll, select, epoll or kqueue. It is readable while a result or an event waits. Then
/// take results and events with a timeout_ms of 0, until there are none.
///
/// fd  receives the descriptor; do not read from it or close it: mol_client_free closes it
///
/// # Safety
///
/// `fd` and `error` are NULL or may be written.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_client_fd(
    client: mol_client,
    fd: *mut c_int,
    error: *mut *mut mol_error,
) -> mol_status {
    // SAFETY: the caller's promises.
    unsafe {
        ffi_call(error, || {
            write("fd", fd, || CLIENTS.get(client.id)?.inbox.descriptor())
        })
    }
}

/// Gives the counters of a client. Does not wait.
///
/// metrics  receives one JSON object (docs/upkeep.md), for mol_string_free
///
/// # Safety
///
/// `metrics` and `error` are NULL or may be written.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_client_metrics(
    client: mol_client,
    metrics: *mut *mut c_char,
    error: *mut *mut mol_error,
) -> mol_status {
    // SAFETY: the caller's promises.
    unsafe {
        ffi_call(error, || {
            write("metrics", metrics, || {
                let snapshot = CLIENTS.get(client.id)?.client.metrics();
                Ok(give(to_json(&snapshot)?).cast_mut())
            })
        })
    }
}
