//! The TLS configuration of both clients: to the template server, and to an engine.

use std::sync::Arc;

use rustls::client::{WantsClientCert, WebPkiServerVerifier};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};
use url::Url;

use crate::error::{Code, Error, Result};
use crate::net::certificates;
use crate::net::verifier::Verifier;
use crate::options::NetworkSettings;
use crate::process::outside_file;

/// The configuration for the template server: with the configured certificates, or those of the machine. The caller's
/// thread waits for the disk, up to [`outside_file::LIMIT`].
///
/// # Errors
///
/// [`Code::InvalidOption`] if there is no trusted certificate, but one is needed or configured.
pub(crate) fn config(server: &Url, network: &NetworkSettings) -> Result<ClientConfig> {
    let set = [
        ("SSL_CERT_FILE", &network.cert_file),
        ("SSL_CERT_DIR", &network.cert_dir),
    ];
    let set: Vec<String> = set
        .into_iter()
        .filter_map(|(name, path)| Some(format!("{name} ({})", path.as_ref()?.display())))
        .collect();
    let what = match set.is_empty() {
        true => "the machine's bundle of certificates".to_owned(),
        false => set.join(" or "),
    };
    let (server, network) = (server.clone(), network.clone());
    outside_file::wait(Code::InvalidOption, &what, move || {
        read_config(&server, &network)
    })
}

fn read_config(server: &Url, network: &NetworkSettings) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let explicit = network.cert_file.is_some() || network.cert_dir.is_some();
    let found = match explicit {
        true => certificates::find(network.cert_file.as_deref(), network.cert_dir.as_deref()),
        false => certificates::of_machine(),
    };
    if let Some(limit) = found.limit {
        return Err(limit);
    }
    let (added, _) = roots.add_parsable_certificates(found.certificates.iter().cloned());
    // With http, certificates are needed only after a redirect to https. So their absence is an error only if they
    // are configured.
    if added == 0 && (explicit || server.scheme() == "https") {
        let why = found.errors.into_iter().next();
        let why = why.unwrap_or_else(|| "none was found".to_owned());
        return Err(Error::new(
            Code::InvalidOption,
            format!(
                "no trusted certificate for {}: {why}",
                server.origin().ascii_serialization()
            ),
        )
        .hint("install the package ca-certificates, or point SSL_CERT_FILE at a bundle"));
    }
    Ok(client(roots, found.certificates)?.with_no_client_auth())
}

/// A configuration that trusts servers with one of these certificates, or with one that these have signed. `roots` is
/// made from `certificates`.
pub(crate) fn client(
    roots: RootCertStore,
    certificates: Vec<CertificateDer<'static>>,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>> {
    let failed = |why: &dyn std::fmt::Display| {
        Error::new(Code::Internal, format!("TLS cannot be set up: {why}"))
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(&error))?;
    // The verifier cannot be built without roots. Without roots no server is trusted anyway.
    if roots.is_empty() {
        return Ok(builder.with_root_certificates(roots));
    }
    let chains = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| failed(&error))?;
    let trusted = certificates.into_iter().collect();
    Ok(builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { chains, trusted })))
}
