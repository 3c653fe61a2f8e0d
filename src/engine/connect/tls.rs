//! TLS for an engine, with the files that the docker CLI uses, and for a builder.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::ServerName;

use crate::engine::connect::invalid;
use crate::error::{Result, chain};
use crate::net::{certificates, tls};
use crate::options::BuilderTls;
use crate::process::limits;

/// The configuration of TLS connections to one address.
#[derive(Clone)]
pub(crate) struct Tls {
    pub(super) config: Arc<rustls::ClientConfig>,
    /// The name in the server's certificate, if it is not the host of the address.
    pub(super) server_name: Option<ServerName<'static>>,
}

/// The hint where a folder was set for these files.
pub(super) const HINT_FOLDER: &str = "put ca.pem, cert.pem and key.pem there";

/// TLS with the files in `folder`: `ca.pem`, and `cert.pem` with `key.pem` if the engine asks for a client
/// certificate. `named_by` starts the message of an error.
pub(super) fn from_folder(folder: &Path, named_by: &str, hint: &'static str) -> Result<Tls> {
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    let client = (cert.exists() || key.exists()).then_some((&*cert, &*key));
    let config = from_files(&folder.join("ca.pem"), client, named_by, hint)?;
    Ok(Tls {
        config: Arc::new(config),
        server_name: None,
    })
}

/// TLS for gRPC with the files of a builder; `None` without a CA. `named_by` starts the message of an error.
pub(in crate::engine) fn for_builder(files: &BuilderTls, named_by: &str) -> Result<Option<Tls>> {
    let Some(ca) = &files.ca else {
        return Ok(None);
    };
    let client = files.cert.as_deref().zip(files.key.as_deref());
    let hint = "give PEM files: the CA that has signed the builder's certificate, and the client's certificate with its key";
    let mut config = from_files(ca, client, named_by, hint)?;
    // Go's gRPC servers refuse clients that do not offer HTTP/2.
    config.alpn_protocols = vec![b"h2".to_vec()];
    let server_name = files.server_name.clone().map(|name| {
        let what = format!("has an invalid server name: {name:?}");
        ServerName::try_from(name).map_err(|_| {
            invalid(named_by, &what)
                .hint("give the host name or IP address in the builder's certificate")
        })
    });
    Ok(Some(Tls {
        config: Arc::new(config),
        server_name: server_name.transpose()?,
    }))
}

/// TLS with these files: the trusted certificates, and the client's certificate and key.
fn from_files(
    ca: &Path,
    client: Option<(&Path, &Path)>,
    named_by: &str,
    hint: &'static str,
) -> Result<rustls::ClientConfig> {
    let unusable = |file: &Path, why: &(dyn Error + 'static)| {
        limits::reached(why).unwrap_or_else(|| {
            let what = format!("has no usable TLS file {}: {}", file.display(), chain(why));
            invalid(named_by, &what).hint(hint)
        })
    };
    let certificates =
        |file: &Path| certificates::of_file(file).map_err(|why| unusable(file, &why));
    let mut roots = rustls::RootCertStore::empty();
    let trusted = certificates(ca)?;
    for certificate in &trusted {
        roots
            .add(certificate.clone())
            .map_err(|error| unusable(ca, &error))?;
    }
    let builder = tls::client(roots, trusted)?;
    let Some((cert, key)) = client else {
        return Ok(builder.with_no_client_auth());
    };
    let private = certificates::key_of_file(key).map_err(|why| unusable(key, &why))?;
    builder
        .with_client_auth_cert(certificates(cert)?, private)
        .map_err(|error| unusable(key, &error))
}
