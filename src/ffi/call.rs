//! Calls: start, wait, cancel; and the one blocking form.

use std::ffi::{c_char, c_int};
use std::mem::{MaybeUninit, offset_of};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use std::{ptr, slice};

use serde::Serialize;

use super::client::{CLIENTS, Object};
use super::guard::{ffi_call, write};
use super::text::{optional, required};
use super::timeout;
use super::types::{
    mol_call, mol_client, mol_error, mol_image, mol_request, mol_request_kind, mol_result,
    mol_status, to_json,
};
use crate::client::inbox::{Inbox, Outcome, Taken};
use crate::error::{Code, Error, Result};
use crate::names::image::Image;
use crate::upkeep::prune::PruneOptions;

/// Finds or builds the image of a runtime, and waits for it.
///
/// runtime     such as "claude-code"
/// timeout_ms  MOL_TIMEOUT_CEILING, or how long the call may take
/// image       receives the image, for mol_image_free
///
/// # Safety
///
/// `runtime` is NULL or ends in a NUL byte; `image` and `error` are NULL or may be written.
#[must_use]
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
        ffi_call(error, || {
            write("image", image, || {
                let object = CLIENTS.get(client.id)?;
                let runtime = required("runtime", runtime)?;
                let (sender, receiver) = mpsc::channel();
                let done = move |_, result| {
                    // The receiver waits below until this has been called.
                    let _ = sender.send(result);
                };
                object
                    .client
                    .ensure_local_image(runtime)
                    .start(timeout::of_call(timeout_ms), done)?;
                let result = receiver.recv().unwrap_or_else(|_| Err(Error::canceled()));
                result.map(mol_image::new)
            })
        })
    }
}

/// Starts a call of any kind without waiting: see mol_call_wait. An invalid request and an unknown runtime fail here.
///
/// request     what to do; copied
/// timeout_ms  MOL_TIMEOUT_CEILING, or how long the call may take
/// call        receives the call
///
/// # Safety
///
/// `request` is NULL or points to `size` bytes, and its strings are NULL or end in a NUL byte; `call` and
/// `error` are NULL or may be written.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_call_start(
    client: mol_client,
    request: *const mol_request,
    timeout_ms: i64,
    call: *mut mol_call,
    error: *mut *mut mol_error,
) -> mol_status {
    // SAFETY: the caller's promises.
    unsafe {
        ffi_call(error, || {
            write("call", call, || {
                let object = CLIENTS.get(client.id)?;
                let request = Request::read(request)?;
                let limit = timeout::of_call(timeout_ms);
                let id = object.inbox.start(|| request.start(&object, limit))?;
                Ok(mol_call { id })
            })
        })
    }
}

/// Waits for the end of a call. Each result is returned once; another wait for the same call returns
/// MOL_ERR_NO_SUCH_HANDLE. Returns MOL_OK also for a call that failed: result->status has the reason.
///
/// call        from mol_call_start; an id of 0 stands for any call of the client
/// timeout_ms  how long to wait; if it passes, the call goes on
/// result      receives the result, for mol_result_free; NULL if no call ended in time
///
/// # Safety
///
/// `result` and `error` are NULL or may be written.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_call_wait(
    client: mol_client,
    call: mol_call,
    timeout_ms: i64,
    result: *mut *mut mol_result,
    error: *mut *mut mol_error,
) -> mol_status {
    // SAFETY: the caller's promises.
    unsafe {
        ffi_call(error, || {
            write("result", result, || {
                // Only the inbox is held during the wait, so that the client can be freed.
                let inbox = Arc::clone(&CLIENTS.get(client.id)?.inbox);
                let call = Some(call.id).filter(|id| *id != 0);
                match inbox.wait(call, timeout::of_wait(timeout_ms))? {
                    Taken::Item(ended) => Ok(mol_result::new(ended)),
                    Taken::Nothing => Ok(ptr::null_mut()),
                    Taken::Closed => Err(Error::freed()),
                }
            })
        })
    }
}

/// Cancels a call, and returns without waiting. The call's result comes soon after, with MOL_ERR_CANCELED unless the
/// call had just ended. The fetch or build stops if no other call waits for it. Podman completes a RUN that has
/// started, and starts no further step.
///
/// call  from mol_call_start; calls that have ended, and {0}, are ignored
///
/// # Safety
///
/// `error` is NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mol_call_cancel(
    client: mol_client,
    call: mol_call,
    error: *mut *mut mol_error,
) -> mol_status {
    // SAFETY: the caller's promise.
    unsafe {
        ffi_call(error, || {
            CLIENTS.get(client.id)?.client.cancel(call.id);
            Ok(())
        })
    }
}

/// A request with its strings as text.
enum Request<'a> {
    Image(&'a str, Option<&'a str>),
    List,
    Prune(PruneOptions),
    Diagnose,
    BuildLog(&'a str),
    EngineHost,
}

impl<'a> Request<'a> {
    /// # Safety
    ///
    /// As for [`mol_call_start`].
    unsafe fn read(request: *const mol_request) -> Result<Self> {
        let invalid = |what: String| Error::new(Code::InvalidArgument, what);
        if request.is_null() {
            return Err(invalid("the argument request is NULL".to_owned())
                .hint("pass the address of a mol_request"));
        }
        // SAFETY: not NULL, and the caller's promise: at least the size is there.
        let size = unsafe { ptr::read_unaligned(&raw const (*request).size) };
        if size < offset_of!(mol_request, keep_per_runtime) || size > MAX_REQUEST {
            return Err(invalid(format!("the size of the request is {size}"))
                .hint("set request.size to sizeof(mol_request)"));
        }
        let known = size.min(size_of::<mol_request>());
        // A newer program's struct is longer: what is set there must not be ignored.
        // SAFETY: `size` bytes are there.
        let unknown =
            unsafe { slice::from_raw_parts(request.cast::<u8>().add(known), size - known) };
        if unknown.iter().any(|byte| *byte != 0) {
            return Err(invalid(
                "the request sets a field that this library does not know".to_owned(),
            )
            .hint(
                "set all of the request to 0 first, or use the library of the header's version",
            ));
        }
        // An older program's struct is shorter: the rest is 0, the default.
        let mut whole = MaybeUninit::<mol_request>::zeroed();
        // SAFETY: `size` bytes are there, and so many fit.
        unsafe { ptr::copy_nonoverlapping(request.cast::<u8>(), whole.as_mut_ptr().cast(), known) };
        let whole = whole.as_ptr();
        // SAFETY: all of it is initialised. Enumerators and bool are read as numbers, because a C program
        // can store any value there.
        let (kind, dry_run, runtime, commit, keep_per_runtime, keep_recent_ms) = unsafe {
            (
                (&raw const (*whole).kind).cast::<c_int>().read(),
                (&raw const (*whole).dry_run).cast::<u8>().read() != 0,
                (*whole).runtime,
                (*whole).commit,
                (*whole).keep_per_runtime,
                (*whole).keep_recent_ms,
            )
        };
        // SAFETY: the caller's promises.
        let runtime = || unsafe { required("request.runtime", runtime) };
        use mol_request_kind as kinds;
        Ok(match kind {
            _ if kind == kinds::MOL_REQUEST_IMAGE as c_int => {
                // SAFETY: the caller's promises.
                Self::Image(runtime()?, unsafe { optional("request.commit", commit) }?)
            }
            _ if kind == kinds::MOL_REQUEST_LIST as c_int => Self::List,
            _ if kind == kinds::MOL_REQUEST_PRUNE as c_int => {
                Self::Prune(prune_options(keep_per_runtime, keep_recent_ms, dry_run))
            }
            _ if kind == kinds::MOL_REQUEST_DIAGNOSE as c_int => Self::Diagnose,
            _ if kind == kinds::MOL_REQUEST_BUILD_LOG as c_int => Self::BuildLog(runtime()?),
            _ if kind == kinds::MOL_REQUEST_ENGINE_HOST as c_int => Self::EngineHost,
            _ => {
                return Err(invalid(format!("there is no request kind {kind}"))
                    .hint("use a MOL_REQUEST_ constant that this version of the library has"));
            }
        })
    }

    /// Starts the call; its result goes to the client's inbox.
    fn start(self, object: &Object, limit: Option<Duration>) -> Result<u64> {
        let (client, inbox) = (&object.client, &object.inbox);
        match self {
            Self::Image(runtime, None) => client
                .ensure_local_image(runtime)
                .start(limit, image_to(inbox)),
            Self::Image(runtime, Some(commit)) => client
                .ensure_commit(runtime, commit)
                .start(limit, image_to(inbox)),
            Self::List => client.list().start(limit, report_to(inbox)),
            Self::Prune(options) => client.prune(options).start(limit, report_to(inbox)),
            Self::Diagnose => client.diagnose().start(limit, report_to(inbox)),
            Self::BuildLog(runtime) => client.build_log(runtime).start(limit, report_to(inbox)),
            Self::EngineHost => client.engine_host().start(limit, report_to(inbox)),
        }
    }
}

/// A larger `size` can only come from an uninitialised field.
const MAX_REQUEST: usize = 4096;

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

fn image_to(inbox: &Arc<Inbox>) -> impl FnOnce(u64, Result<Image>) + Send + 'static {
    let inbox = Arc::clone(inbox);
    move |call, result| inbox.end(call, result.map(|image| Outcome::Image(Box::new(image))))
}

fn report_to<T: Serialize>(
    inbox: &Arc<Inbox>,
) -> impl FnOnce(u64, Result<T>) + Send + use<T> + 'static {
    let inbox = Arc::clone(inbox);
    move |call, result| {
        let report = result.and_then(|report| to_json(&report));
        inbox.end(call, report.map(Outcome::Report));
    }
}
