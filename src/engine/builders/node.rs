//! One BuildKit daemon: its address, a connection to it, and what it can run.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::{InfoRequest, ListWorkersRequest};
use rustls::{AlertDescription, CertificateError};

use crate::engine::builders::container;
use crate::engine::connect;
use crate::engine::connect::address::Address;
use crate::engine::connect::grpc::Grpc;
use crate::engine::platforms::runs;
use crate::error::{Error, causes};
use crate::names::reference::Platform;
use crate::printable;
use crate::process::limits;

/// The time limit for a daemon to say what it can run.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(6);

/// The pause before a daemon in a container is asked again.
const PAUSE: Duration = Duration::from_millis(200);

/// A daemon that the user has named.
#[derive(Clone, Debug)]
pub(crate) enum Node {
    At(Address),
    /// In a container on an engine.
    In {
        engine: Address,
        container: String,
    },
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Node::At(address) => fmt::Display::fmt(address, f),
            // As in BuildKit's own addresses.
            Node::In { container, .. } => write!(f, "docker-container://{container}"),
        }
    }
}

/// A daemon that has answered.
#[derive(Clone, Debug)]
pub(crate) struct Worker {
    pub(crate) node: Node,
    /// The version of BuildKit, if it says so (since 0.11).
    pub(crate) version: String,
    /// What it can run, its own platform first.
    pub(crate) platforms: Vec<Platform>,
}

/// Why a daemon cannot be used.
#[derive(Clone, Debug)]
pub(crate) struct Trouble {
    pub(crate) why: String,
    pub(crate) hint: &'static str,
    /// Set if this process, and not the daemon, is the cause: it has no file descriptor left.
    pub(in crate::engine) limit: Option<Box<Error>>,
}

impl Node {
    /// Opens a connection. Each build has its own, because behind one address there may be several daemons. `start` is
    /// whether a container that is stopped may be started.
    pub(in crate::engine) async fn connect(&self, start: bool) -> Result<Grpc, Trouble> {
        let grpc = match self {
            Node::At(address) => {
                let connection = connect::dial_for_grpc(address).await;
                Grpc::over(connection.map_err(|error| Trouble::of(&error))?).await
            }
            Node::In { engine, container } => {
                Grpc::over(container::connect(engine, container, start).await?).await
            }
        };
        grpc.map_err(|error| Trouble::of(&error))
    }

    /// Asks the daemon what it can run.
    pub(in crate::engine) async fn ask(&self, start: bool) -> Result<Worker, Trouble> {
        let mut last = None;
        let work = async {
            loop {
                let grpc = self.connect(start).await?;
                let trouble = match self.ask_over(&grpc).await {
                    // A daemon whose container was just started does not listen yet.
                    Err(trouble) if matches!(self, Node::In { .. }) => trouble,
                    answer => return answer,
                };
                last = Some(trouble);
                tokio::time::sleep(PAUSE).await;
            }
        };
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, work).await;
        answer.unwrap_or_else(|_| {
            let seconds = ANSWER_TIMEOUT.as_secs();
            Err(last.unwrap_or_else(|| {
                let why = format!("it did not answer within {seconds} seconds");
                Trouble::new(why, "check whether it hangs")
            }))
        })
    }

    async fn ask_over(&self, grpc: &Grpc) -> Result<Worker, Trouble> {
        let mut client = grpc.control();
        let workers = match client.list_workers(ListWorkersRequest::default()).await {
            Ok(workers) => workers.into_inner().record,
            Err(status) => return Err(Trouble::of_request(grpc, &status).await),
        };
        let version = client.info(InfoRequest {}).await.ok();
        let version = version.and_then(|info| info.into_inner().buildkit_version);
        let platforms = workers.into_iter().flat_map(|worker| worker.platforms);
        let platforms = platforms.filter_map(|p| {
            let variant = match p.variant.as_str() {
                "" => String::new(),
                variant => format!("/{variant}"),
            };
            Platform::parse(&format!("{}/{}{variant}", p.os, p.architecture))
        });
        Ok(Worker {
            node: self.clone(),
            version: version.map(|known| known.version).unwrap_or_default(),
            platforms: platforms.take(MAX_PLATFORMS).collect(),
        })
    }
}

/// The most platforms of a daemon that are kept. Those with all emulations have some fifteen.
const MAX_PLATFORMS: usize = 100;

impl Worker {
    /// The platform of its machine.
    pub(crate) fn native(&self) -> Option<&Platform> {
        self.platforms.first()
    }

    /// Whether it builds for the platform without emulation.
    pub(crate) fn is_native(&self, platform: &Platform) -> bool {
        let (os, arch) = platform.os_arch();
        let native = self.native().map(Platform::os_arch);
        native.is_some_and(|(o, a)| o == os && runs(a, arch))
    }

    /// Whether it builds for the platform at all.
    pub(crate) fn can_build(&self, platform: &Platform) -> bool {
        let (os, arch) = platform.os_arch();
        let mut listed = self.platforms.iter().map(Platform::os_arch);
        listed.any(|(o, a)| o == os && runs(a, arch))
    }
}

impl Trouble {
    pub(in crate::engine) fn new(why: String, hint: &'static str) -> Self {
        Self {
            why,
            hint,
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
            _ => "check that a buildkitd listens there, and with or without TLS as you have set it",
        };
        let why = match kind {
            Some(std::io::ErrorKind::NotFound) => "the socket does not exist".to_owned(),
            Some(std::io::ErrorKind::ConnectionRefused) => "nothing listens there".to_owned(),
            _ => printable::line(&cause.to_string()).into_owned(),
        };
        Self {
            limit: limits::reached(error).map(Box::new),
            ..Self::new(why, hint)
        }
    }

    /// The reason and the advice for a request that failed.
    pub(in crate::engine) async fn of_request(grpc: &Grpc, status: &tonic::Status) -> Self {
        let is_local = status.source().is_some();
        let of_connection = match is_local {
            true => grpc.error().await,
            false => None,
        };
        match (of_connection, status.source()) {
            (Some(error), _) => Self::of(error),
            (None, Some(error)) => Self::of(error),
            (None, None) => Self::new(
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
            // The second, if two authorities have the same name.
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
