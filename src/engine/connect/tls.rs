//! TLS for an engine, with the files that the docker CLI uses.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use crate::engine::connect::address::invalid;
use crate::error::{Result, chain};
use crate::net::{certificates, tls};
use crate::process::limits;

/// TLS with the files in `folder`: `ca.pem`, and `cert.pem` with `key.pem` if the engine asks for a client
/// certificate. `named_by` starts the message of an error.
pub(super) fn from_folder(folder: &Path, named_by: &str) -> Result<Arc<rustls::ClientConfig>> {
    let unusable = |file: &Path, why: &(dyn Error + 'static)| {
        limits::reached(why).unwrap_or_else(|| {
            let what = format!("has no usable TLS file {}: {}", file.display(), chain(why));
            invalid(named_by, &what).hint("put ca.pem, cert.pem and key.pem there")
        })
    };
    let certificates =
        |file: &Path| certificates::of_file(file).map_err(|why| unusable(file, &why));
    let ca = folder.join("ca.pem");
    let mut roots = rustls::RootCertStore::empty();
    let trusted = certificates(&ca)?;
    for certificate in &trusted {
        roots
            .add(certificate.clone())
            .map_err(|error| unusable(&ca, &error))?;
    }
    let builder = tls::client(roots, trusted)?;
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    let config = if cert.exists() || key.exists() {
        let private = certificates::key_of_file(&key).map_err(|why| unusable(&key, &why))?;
        builder
            .with_client_auth_cert(certificates(&cert)?, private)
            .map_err(|error| unusable(&key, &error))?
    } else {
        builder.with_no_client_auth()
    };
    Ok(Arc::new(config))
}
