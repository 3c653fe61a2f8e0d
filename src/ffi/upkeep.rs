//! What keeps a server well for a year: what is here, and what may go. The answers are reports in JSON.

use std::ffi::c_char;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::client::{CLIENTS, json, timeout, waited};
use super::guard::{entry, write};
use super::text::{give, required};
use super::types::{mol_call, mol_client, mol_error, mol_status};
use crate::client::Client;
use crate::client::queue::{Item, Outcome};
use crate::error::Result;
use crate::upkeep::prune::PruneOptions;

/// What is told when a call has ended.
type Done<T> = Box<dyn FnOnce(u64, Result<T>) + Send>;

/// Says what there is of this library: images of every runtime in the engine, and trees in the cache,
/// as one JSON object; docs/upkeep.md has its fields. `timeout_ms` is as for mol_ensure_local_image.
/// Free the answer with mol_string_free.
///
/// # Safety
///
/// `inventory` and `error` are NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_list(
    client: mol_client,
    timeout_ms: i64,
    inventory: *mut *mut c_char,
    error: *mut *mut mol_error,
) -> mol_status {
    // SAFETY: the caller's promises.
    unsafe {
        wait(
            "inventory",
            client,
            timeout_ms,
            inventory,
            error,
            |client, limit, done| client.start_list(limit, done),
        )
    }
}

/// Begins what mol_list does, and returns at once; otherwise as mol_client_submit.
///
/// # Safety
///
/// `call` and `error` are NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_client_submit_list(
    client: mol_client,
    timeout_ms: i64,
    call: *mut mol_call,
    error: *mut *mut mol_error,
) -> mol_status {
    // SAFETY: the caller's promises.
    unsafe {
        submit(client, timeout_ms, call, error, |client, limit, done| {
            client.start_list(limit, done)
        })
    }
}

/// Removes old images of this library from the engine, and old trees from the cache; with `dry_run` it
/// only says what it would remove. The newest `keep_per_runtime` of each runtime stay, what was built or returned
/// by a call within the last `keep_recent_ms` milliseconds (0: ten minutes, below 0: nothing stays for that), what
/// a container uses, and what the moving tag points at; so does everything that is not this library's, or has
/// another isolation. Of calls of other processes that have another cache it knows less; docs/upkeep.md says
/// what. The report is one JSON object; docs/upkeep.md has its fields. `timeout_ms` is as
/// for mol_ensure_local_image. Free the report with mol_string_free.
///
/// # Safety
///
/// `report` and `error` are NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_prune(
    client: mol_client,
    keep_per_runtime: u32,
    keep_recent_ms: i64,
    dry_run: bool,
    timeout_ms: i64,
    report: *mut *mut c_char,
    error: *mut *mut mol_error,
) -> mol_status {
    let options = prune_options(keep_per_runtime, keep_recent_ms, dry_run);
    // SAFETY: the caller's promises.
    unsafe {
        wait(
            "report",
            client,
            timeout_ms,
            report,
            error,
            move |client, limit, done| client.start_prune(options, limit, done),
        )
    }
}

/// Begins what mol_prune does, and returns at once; otherwise as mol_client_submit.
///
/// # Safety
///
/// `call` and `error` are NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_client_submit_prune(
    client: mol_client,
    keep_per_runtime: u32,
    keep_recent_ms: i64,
    dry_run: bool,
    timeout_ms: i64,
    call: *mut mol_call,
    error: *mut *mut mol_error,
) -> mol_status {
    let options = prune_options(keep_per_runtime, keep_recent_ms, dry_run);
    // SAFETY: the caller's promises.
    unsafe {
        submit(
            client,
            timeout_ms,
            call,
            error,
            move |client, limit, done| client.start_prune(options, limit, done),
        )
    }
}

fn prune_options(keep_per_runtime: u32, keep_recent_ms: i64, dry_run: bool) -> PruneOptions {
    let default = PruneOptions::default();
    PruneOptions {
        keep_per_runtime,
        recent: match keep_recent_ms {
            0 => default.recent,
            ms => Duration::from_millis(u64::try_from(ms).unwrap_or(0)),
        },
        dry_run,
    }
}

/// Looks at everything that a build depends on: the engine, the disks, the cache, the template server
/// with the repository of each runtime, the token, logins, proxy and clock. The diagnosis is one JSON
/// object, safe to be passed on; docs/upkeep.md has its fields. What is wrong is in it, and no error.
/// `timeout_ms` is as for mol_ensure_local_image. Free the diagnosis with mol_string_free.
///
/// # Safety
///
/// `diagnosis` and `error` are NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_diagnose(
    client: mol_client,
    timeout_ms: i64,
    diagnosis: *mut *mut c_char,
    error: *mut *mut mol_error,
) -> mol_status {
    // SAFETY: the caller's promises.
    unsafe {
        wait(
            "diagnosis",
            client,
            timeout_ms,
            diagnosis,
            error,
            |client, limit, done| client.start_diagnose(limit, done),
        )
    }
}

/// Begins what mol_diagnose does, and returns at once; otherwise as mol_client_submit.
///
/// # Safety
///
/// `call` and `error` are NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_client_submit_diagnose(
    client: mol_client,
    timeout_ms: i64,
    call: *mut mol_call,
    error: *mut *mut mol_error,
) -> mol_status {
    // SAFETY: the caller's promises.
    unsafe {
        submit(client, timeout_ms, call, error, |client, limit, done| {
            client.start_diagnose(limit, done)
        })
    }
}

/// Starts to find the engine that images are built in, and returns at once; otherwise as mol_client_submit.
/// The result is {"docker_host": "unix:///var/run/docker.sock"}, for example: the address as DOCKER_HOST has it,
/// for whoever creates containers from the images. TLS needs DOCKER_TLS_VERIFY and DOCKER_CERT_PATH besides.
///
/// # Safety
///
/// `call` and `error` are NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_client_submit_engine_host(
    client: mol_client,
    timeout_ms: i64,
    call: *mut mol_call,
    error: *mut *mut mol_error,
) -> mol_status {
    // SAFETY: the caller's promises.
    unsafe {
        submit(client, timeout_ms, call, error, |client, limit, done| {
            client.start_engine_host(limit, done)
        })
    }
}

/// Gives the log of the last build of a runtime that was made with this cache, in whatever process, as
/// one JSON object: its "text" has the lines. Fails with MOL_ERR_CACHE if there is none. `timeout_ms` is
/// as for mol_ensure_local_image. Free the log with mol_string_free.
///
/// # Safety
///
/// `runtime` is NULL or ends in a NUL byte; `log` and `error` are NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_build_log(
    client: mol_client,
    runtime: *const c_char,
    timeout_ms: i64,
    log: *mut *mut c_char,
    error: *mut *mut mol_error,
) -> mol_status {
    // SAFETY: the caller's promises.
    unsafe {
        wait(
            "log",
            client,
            timeout_ms,
            log,
            error,
            |client, limit, done| {
                client.start_build_log(required("runtime", runtime)?, limit, done)
            },
        )
    }
}

/// Begins what mol_build_log does, and returns at once; otherwise as mol_client_submit.
///
/// # Safety
///
/// `runtime` is NULL or ends in a NUL byte; `call` and `error` are NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_client_submit_build_log(
    client: mol_client,
    runtime: *const c_char,
    timeout_ms: i64,
    call: *mut mol_call,
    error: *mut *mut mol_error,
) -> mol_status {
    // SAFETY: the caller's promises.
    unsafe {
        submit(client, timeout_ms, call, error, |client, limit, done| {
            client.start_build_log(required("runtime", runtime)?, limit, done)
        })
    }
}

/// Gives what a client has done, in numbers, as one JSON object; docs/upkeep.md has its fields. It asks
/// nobody and does not wait. Free the metrics with mol_string_free.
///
/// # Safety
///
/// `metrics` and `error` are NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_client_metrics(
    client: mol_client,
    metrics: *mut *mut c_char,
    error: *mut *mut mol_error,
) -> mol_status {
    // SAFETY: the caller's promises.
    unsafe {
        entry(error, || {
            write("metrics", metrics, || {
                let snapshot = CLIENTS.get(client)?.client.metrics();
                Ok(give(json(&snapshot)?).cast_mut())
            })
        })
    }
}

/// Begins a call whose end goes into the client's queue.
///
/// # Safety
///
/// `call` and `error` are NULL or may be written.
unsafe fn submit<T: Serialize>(
    client: mol_client,
    timeout_ms: i64,
    call: *mut mol_call,
    error: *mut *mut mol_error,
    start: impl FnOnce(&Client, Option<Duration>, Done<T>) -> Result<u64>,
) -> mol_status {
    // SAFETY: the caller's promises.
    unsafe {
        entry(error, || {
            write("call", call, || {
                let object = CLIENTS.get(client)?;
                let queue = Arc::clone(&object.queue);
                let done = Box::new(move |id, result: Result<T>| {
                    let outcome = result.and_then(|told| json(&told)).map(Outcome::Report);
                    queue.push(Item::Done(id, Box::new(outcome)));
                });
                start(&object.client, timeout(timeout_ms), done)
            })
        })
    }
}

/// Does a call and waits for its end.
///
/// # Safety
///
/// `out` and `error` are NULL or may be written.
unsafe fn wait<T: Serialize + Send + 'static>(
    name: &str,
    client: mol_client,
    timeout_ms: i64,
    out: *mut *mut c_char,
    error: *mut *mut mol_error,
    start: impl FnOnce(&Client, Option<Duration>, Done<T>) -> Result<u64>,
) -> mol_status {
    // SAFETY: the caller's promises.
    unsafe {
        entry(error, || {
            write(name, out, || {
                let object = CLIENTS.get(client)?;
                let told = waited(|done| {
                    let done = Box::new(move |_, result| done(result));
                    start(&object.client, timeout(timeout_ms), done)
                });
                Ok(give(json(&told?)?).cast_mut())
            })
        })
    }
}
