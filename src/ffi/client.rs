//! Clients and calls: submit, cancel, next event; and the blocking form.

use std::ffi::c_char;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use serde::Serialize;

use super::guard::{entry, quietly, write};
use super::handles::Handles;
use super::options;
use super::text::required;
use super::types::{
    mol_call, mol_client, mol_error, mol_event, mol_image, mol_options, mol_status,
};
use crate::client::queue::{Item, Next, Outcome, Queue};
use crate::client::{Client, Observer};
use crate::error::{Code, Error, Result};
use crate::names::image::Image;
use crate::process::executor;

pub(super) static CLIENTS: Handles<Object> = Handles::new("client");

/// A client with the queue that its events wait in.
pub(super) struct Object {
    pub(super) client: Client,
    pub(super) queue: Arc<Queue>,
}

/// Makes a client. Nothing is connected to before its first call. The options may be freed at once.
/// With `events` the queue gets what happens during calls too, not only their ends; then somebody
/// must take them. Free it with mol_client_free.
///
/// Fails with MOL_ERR_INVALID_OPTION, naming the environment variable.
///
/// # Safety
///
/// `client` and `error` are NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_client_new(
    options: mol_options,
    events: bool,
    client: *mut mol_client,
    error: *mut *mut mol_error,
) -> mol_status {
    // SAFETY: the caller's promises.
    unsafe {
        entry(error, || {
            write("client", client, || {
                let queue = Arc::new(Queue::default());
                let observer = events.then(|| observer(Arc::clone(&queue)));
                let client = Client::new(&options::get(options)?, observer)?;
                Ok(CLIENTS.insert(Object { client, queue }))
            })
        })
    }
}

fn observer(queue: Arc<Queue>) -> Observer {
    Box::new(move |event| queue.push(Item::Event(Box::new(event))))
}

/// Cancels every call of a client, waits until all that they began has stopped, and frees it. A
/// mol_client_next_event that waits returns MOL_ERR_CLOSED. 0 and an id that is freed already are
/// fine.
#[unsafe(no_mangle)]
pub extern "C" fn mol_client_free(client: mol_client) {
    quietly((), || {
        let Some(object) = CLIENTS.remove(client) else {
            return;
        };
        if let Ok(runtime) = executor::runtime() {
            runtime.block_on(object.client.close());
        }
        object.queue.close();
    });
}

/// Finds the image for the head of the runtime's template, or makes it, and waits for it. For a runtime in
/// MOL_OPTION_PINS the pinned commit takes the place of the head. With a `timeout_ms` above 0 the call ends with
/// MOL_ERR_DEADLINE_EXCEEDED after that time; else with MOL_ERR_TIMEOUT after the ceiling. Free the image with
/// mol_image_free.
///
/// # Safety
///
/// `runtime` is NULL or ends in a NUL byte; `image` and `error` are NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_ensure_local_image(
    client: mol_client,
    runtime: *const c_char,
    timeout_ms: i64,
    image: *mut *mut mol_image,
    error: *mut *mut mol_error,
) -> mol_status {
    // SAFETY: the caller's promises.
    unsafe {
        entry(error, || {
            write("image", image, || {
                let object = CLIENTS.get(client)?;
                let runtime = required("runtime", runtime)?;
                let result = waited(|done| {
                    object
                        .client
                        .start(runtime, timeout(timeout_ms), move |_, result| done(result))
                });
                result.map(mol_image::new)
            })
        })
    }
}

/// Begins a call and returns at once, with its id. Its end comes through mol_client_next_event,
/// exactly once. `timeout_ms` is as for mol_ensure_local_image.
///
/// # Safety
///
/// `runtime` is NULL or ends in a NUL byte; `call` and `error` are NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_client_submit(
    client: mol_client,
    runtime: *const c_char,
    timeout_ms: i64,
    call: *mut mol_call,
    error: *mut *mut mol_error,
) -> mol_status {
    // SAFETY: the caller's promises.
    unsafe {
        entry(error, || {
            write("call", call, || {
                let object = CLIENTS.get(client)?;
                let runtime = required("runtime", runtime)?;
                let done = image_to(&object.queue);
                object.client.start(runtime, timeout(timeout_ms), done)
            })
        })
    }
}

/// Starts a call for exactly one commit of the runtime's template, with all 40 or 64 hexadecimal digits. There
/// is no lookup, and no network at all if the engine has the image. Otherwise as mol_client_submit.
///
/// # Safety
///
/// `runtime` and `commit` are NULL or end in a NUL byte; `call` and `error` are NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_client_submit_commit(
    client: mol_client,
    runtime: *const c_char,
    commit: *const c_char,
    timeout_ms: i64,
    call: *mut mol_call,
    error: *mut *mut mol_error,
) -> mol_status {
    // SAFETY: the caller's promises.
    unsafe {
        entry(error, || {
            write("call", call, || {
                let object = CLIENTS.get(client)?;
                let (runtime, commit) =
                    (required("runtime", runtime)?, required("commit", commit)?);
                let done = image_to(&object.queue);
                let limit = timeout(timeout_ms);
                object.client.start_commit(runtime, commit, limit, done)
            })
        })
    }
}

/// The end of a call for an image, into a queue.
fn image_to(queue: &Arc<Queue>) -> impl FnOnce(u64, Result<Image>) + Send + 'static {
    let queue = Arc::clone(queue);
    move |id, result| {
        let outcome = result.map(|image| Outcome::Image(Box::new(image)));
        queue.push(Item::Done(id, Box::new(outcome)));
    }
}

/// Cancels a call. Its end comes soon after, with MOL_ERR_CANCELED unless it had just ended by
/// itself. What it began stops if no other call wants it; on Podman the RUN that is under way goes on to
/// its end, and no further step starts. A call that has ended is fine.
///
/// # Safety
///
/// `error` is NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_client_cancel(
    client: mol_client,
    call: mol_call,
    error: *mut *mut mol_error,
) -> mol_status {
    // SAFETY: the caller's promise.
    unsafe {
        entry(error, || {
            CLIENTS.get(client)?.client.cancel(call);
            Ok(())
        })
    }
}

/// Takes the oldest event of a client; waits for one, at most for `timeout_ms`, or for ever if that
/// is below 0. Fails with MOL_ERR_NO_EVENT when the time has passed, and with MOL_ERR_CLOSED when
/// the client was freed meanwhile. Free the event with mol_event_free.
///
/// # Safety
///
/// `event` and `error` are NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_client_next_event(
    client: mol_client,
    timeout_ms: i64,
    event: *mut *mut mol_event,
    error: *mut *mut mol_error,
) -> mol_status {
    // SAFETY: the caller's promises.
    unsafe {
        entry(error, || {
            write("event", event, || {
                // Only the queue is held while it waits, so that the client can be freed.
                let queue = Arc::clone(&CLIENTS.get(client)?.queue);
                let patience = u64::try_from(timeout_ms).ok().map(Duration::from_millis);
                match queue.next(patience) {
                    Next::Item(Item::Done(call, result)) => Ok(mol_event::done(call, *result)),
                    Next::Item(Item::Event(event)) => {
                        json(&event).map(|json| mol_event::json(event.call, json))
                    }
                    Next::Nothing => Err(Error::new(
                        Code::NoEvent,
                        format!("no event came within {timeout_ms} ms"),
                    )),
                    Next::Closed => Err(Error::new(Code::Closed, "the client was freed")),
                }
            })
        })
    }
}

/// Begins a call and waits for its end.
pub(super) fn waited<T: Send + 'static>(
    start: impl FnOnce(Box<dyn FnOnce(Result<T>) + Send>) -> Result<u64>,
) -> Result<T> {
    let (sender, receiver) = mpsc::channel();
    start(Box::new(move |result| {
        // The receiver waits below until this has been called.
        let _ = sender.send(result);
    }))?;
    receiver.recv().unwrap_or_else(|_| Err(Error::canceled()))
}

pub(super) fn json(told: &impl Serialize) -> Result<String> {
    serde_json::to_string(told).map_err(|error| {
        Error::new(
            Code::Internal,
            format!("it cannot be told in JSON: {error}"),
        )
    })
}

pub(super) fn timeout(timeout_ms: i64) -> Option<Duration> {
    u64::try_from(timeout_ms)
        .ok()
        .filter(|ms| *ms > 0)
        .map(Duration::from_millis)
}
