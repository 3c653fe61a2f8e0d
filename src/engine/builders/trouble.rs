//! Why a daemon cannot be used, and what to do about it.

use std::error::Error as StdError;

use rustls::{AlertDescription, CertificateError};

use crate::engine::connect::grpc::Grpc;
use crate::error::{Error, causes};
use crate::printable;
use crate::process::limits;

/// Why a daemon cannot be used.
#[derive(Clone, Debug)]
pub(crate) struct Trouble {
    pub(crate) why: String,
    pub(crate) hint: &'static str,
    /// Whether the daemon is in a container that is stopped, which a build starts.
    pub(crate) is_stopped: bool,
    /// Set if this process, and not the daemon, is the cause: it has no file descriptor left.
    pub(in crate::engine) limit: Option<Box<Error>>,
}

impl Trouble {
    pub(in crate::engine) fn new(why: String, hint: &'static str) -> Self {
        Self {
            why,
            hint,
            is_stopped: false,
            limit: None,
        }
    }

    /// The reason and the advice for a connection that failed.
    pub(in crate::engine) fn of(error: &(dyn StdError + 'static)) -> Self {
        let tls = causes(error).find_map(|cause| tls_trouble(cause.downcast_ref()?));
        if let Some((why, hint)) = tls {
            return Self::new(why.to_owned(), hint);
        }
        let cause = causes(error).last().unwrap_or(error);
        let kind =
            causes(error).find_map(|cause| Some(cause.downcast_ref::<std::io::Error>()?.kind()));
        let hint = match kind {
            Some(std::io::ErrorKind::PermissionDenied) => {
                "run as a user who may open the socket; buildkitd's option --group says which group may"
            }
            Some(std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused) => {
                "start buildkitd there, or correct the address"
            }
            // A server with TLS closes a connection that does not begin with TLS.
            _ => "check that a buildkitd listens there, and that both sides use TLS, or neither",
        };
        let why = match kind {
            Some(std::io::ErrorKind::NotFound) => "the socket does not exist".to_owned(),
            Some(std::io::ErrorKind::ConnectionRefused) => "nothing listens there".to_owned(),
            // rustls's text includes a link to its documentation.
            Some(std::io::ErrorKind::UnexpectedEof) => "it closed the connection".to_owned(),
            _ => printable::line(&cause.to_string()).into_owned(),
        };
        Self {
            limit: limits::reached(error).map(Box::new),
            ..Self::new(why, hint)
        }
    }

    /// The reason and the advice for a request that failed.
    pub(in crate::engine) async fn of_request(grpc: &Grpc, status: &tonic::Status) -> Self {
        // The error of a request that got no answer does not say why the connection ended.
        if status.source().is_some()
            && let Some(error) = grpc.error().await
        {
            return Self::of(error);
        }
        match status.source() {
            Some(error) => Self::of(error),
            None => Self::new(
                format!("it answered: {}", printable::line(status.message())),
                "check that it is BuildKit, and read its log",
            ),
        }
    }
}

/// What is wrong with a TLS connection, and what to do.
fn tls_trouble(error: &rustls::Error) -> Option<(&'static str, &'static str)> {
    Some(match error {
        rustls::Error::InvalidCertificate(certificate) => match certificate {
            // `BadSignature`: the signer has the name of the configured CA, but another key.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => (
                "its certificate is not signed by the configured CA",
                "give the CA that has signed the builder's certificate",
            ),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                (
                    "its certificate is for another name",
                    "use a name of the certificate in the address, or set MOLECULE_LOCAL_BUILDER_SERVER_NAME (in buildx: \
                 --driver-opt servername=…) to one",
                )
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => (
                "its certificate has expired",
                "renew the builder's certificate, and check this machine's clock",
            ),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => (
                "its certificate is not valid yet",
                "check this machine's clock",
            ),
            _ => return None,
        },
        rustls::Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateRequired => (
                "it requires a client certificate",
                "set MOLECULE_LOCAL_BUILDER_CERT and MOLECULE_LOCAL_BUILDER_KEY, or create the buildx builder with \
                 --driver-opt cert=…,key=…",
            ),
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired
            | AlertDescription::UnsupportedCertificate => (
                "it refuses the client's certificate",
                "use a certificate that the builder's CA has signed, that has not expired, and that is for client authentication",
            ),
            _ => return None,
        },
        _ => return None,
    })
}
