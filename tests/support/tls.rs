//! TLS in front of a template server or an engine, and PEM files for a builder, with certificates of a private
//! authority, or with invalid certificates.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_rustls::TlsAcceptor;

use super::{Engine, Server, block_on};

/// The flaw of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    None,
    Expired,
    NotYetValid,
    /// It is for another host.
    OtherHost,
    /// It is self-signed instead of signed by the authority.
    OwnSignature,
    /// Its extended key usage does not include servers.
    ClientOnly,
    /// Its signature is invalid.
    BadSignature,
    /// The server does not have its key.
    OtherKey,
}

/// A certificate authority.
struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self {
            certificate: params.self_signed(&key).unwrap().der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    /// A certificate for this machine's loopback address, and its key.
    fn sign(&self, flaw: Flaw) -> (CertificateDer<'static>, KeyPair) {
        let (params, key) = params(flaw);
        let signed = match flaw {
            Flaw::OwnSignature => params.self_signed(&key),
            _ => params.signed_by(&key, &self.issuer),
        };
        let mut der = signed.unwrap().der().to_vec();
        if flaw == Flaw::BadSignature {
            *der.last_mut().unwrap() ^= 1;
        }
        (der.into(), key)
    }
}

/// A certificate as `openssl req -x509` and `gitea cert --ca` make them: self-signed, and a CA. All of them
/// have the same subject.
fn self_signed(flaw: Flaw) -> (CertificateDer<'static>, KeyPair) {
    let (mut params, key) = params(flaw);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    (params.self_signed(&key).unwrap().der().clone(), key)
}

/// The parameters of a certificate for this machine's loopback address, and its key.
fn params(flaw: Flaw) -> (CertificateParams, KeyPair) {
    let hosts: &[&str] = match flaw {
        Flaw::OtherHost => &["git.example.com"],
        _ => &["127.0.0.1", "localhost"],
    };
    let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
    let mut params = CertificateParams::new(hosts).unwrap();
    match flaw {
        Flaw::Expired => params.not_after = date_time_ymd(2020, 1, 1),
        Flaw::NotYetValid => params.not_before = date_time_ymd(2100, 1, 1),
        Flaw::ClientOnly => params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
        _ => {}
    }
    (params, KeyPair::generate().unwrap())
}

pub struct Https {
    /// The repository prefix, with `https://`.
    pub repo_prefix: String,
    /// The authority's certificate, or the server's own.
    pub ca: PathBuf,
}

impl Https {
    /// Runs until the test process exits.
    pub fn before(server: &Server, folder: &Path) -> Self {
        Self::with(server, folder, Flaw::None)
    }

    /// The same, with a certificate that has a flaw.
    pub fn with(server: &Server, folder: &Path, flaw: Flaw) -> Self {
        let authority = Authority::new();
        let identity = Identity::new(authority.sign(flaw), flaw);
        Self::start(server, folder, &authority.certificate, identity)
    }

    /// The same, with a self-signed certificate.
    pub fn self_signed(server: &Server, folder: &Path, flaw: Flaw) -> Self {
        let (certificate, key) = self_signed(flaw);
        let trusted = certificate.clone();
        Self::start(
            server,
            folder,
            &trusted,
            Identity::new((certificate, key), flaw),
        )
    }

    fn start(
        server: &Server,
        folder: &Path,
        trusted: &CertificateDer<'static>,
        identity: Identity,
    ) -> Self {
        let ca = folder.join(format!("{}.pem", super::unique()));
        std::fs::write(&ca, pem("CERTIFICATE", trusted)).unwrap();
        let plain: SocketAddr = server.url.strip_prefix("http://").unwrap().parse().unwrap();
        let address = relay(identity, None, move || TcpStream::connect(plain));
        let repo_prefix = server
            .repo_prefix
            .replace(&server.url, &format!("https://{address}"));
        Self { repo_prefix, ca }
    }
}

/// Puts TLS in front of an `http://` server, with `cert.pem` and `key.pem` of a folder. Returns its address.
#[allow(dead_code, reason = "only tests/real_gitea uses it")]
pub fn in_front_of(url: &str, folder: &Path) -> SocketAddr {
    let certificate = CertificateDer::from_pem_file(folder.join("cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(folder.join("key.pem")).unwrap();
    let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
    let identity = Identity(Arc::new(CertifiedKey::new(vec![certificate], key)));
    let plain: SocketAddr = url.strip_prefix("http://").unwrap().parse().unwrap();
    relay(identity, None, move || TcpStream::connect(plain))
}

/// An engine that requires client certificates of its authority, as `dockerd --tlsverify` does.
pub struct EngineTls {
    /// `tcp://127.0.0.1:PORT`
    pub host: String,
    /// A folder with `ca.pem`, `cert.pem` and `key.pem`.
    pub certificates: PathBuf,
}

impl EngineTls {
    /// Runs until the test process exits.
    pub fn before(engine: &Engine, certificates: &Path) -> Self {
        let authority = Authority::new();
        let identity = Identity::new(authority.sign(Flaw::None), Flaw::None);
        Self::start(
            engine,
            certificates,
            &authority,
            &authority.certificate,
            identity,
        )
    }

    /// The same, with a self-signed server certificate. Client certificates are signed by another authority.
    pub fn self_signed(engine: &Engine, certificates: &Path, flaw: Flaw) -> Self {
        let (certificate, key) = self_signed(flaw);
        let trusted = certificate.clone();
        let identity = Identity::new((certificate, key), flaw);
        Self::start(engine, certificates, &Authority::new(), &trusted, identity)
    }

    fn start(
        engine: &Engine,
        certificates: &Path,
        authority: &Authority,
        trusted: &CertificateDer<'static>,
        identity: Identity,
    ) -> Self {
        write(certificates, trusted, &authority.sign(Flaw::None));
        let socket = PathBuf::from(engine.url.strip_prefix("unix://").unwrap());
        let connect = move || UnixStream::connect(socket.clone());
        let address = relay(identity, Some(authority), connect);
        Self {
            host: format!("tcp://{address}"),
            certificates: certificates.to_owned(),
        }
    }
}

/// A certificate authority, for servers and clients that read PEM files.
pub struct Certificates {
    authority: Authority,
    folder: PathBuf,
}

impl Certificates {
    /// A new authority. Its files go into `folder`.
    pub fn new(folder: &Path) -> Self {
        Self {
            authority: Authority::new(),
            folder: folder.to_owned(),
        }
    }

    /// Issues a certificate with this flaw, for 127.0.0.1 and localhost. Returns a folder with `cert.pem`, its
    /// `key.pem`, and the authority's certificate `ca.pem`.
    pub fn issue(&self, flaw: Flaw) -> PathBuf {
        let folder = self.folder.join(super::unique());
        let (certificate, key) = self.authority.sign(flaw);
        let key = match flaw {
            Flaw::OtherKey => KeyPair::generate().unwrap(),
            _ => key,
        };
        write(&folder, &self.authority.certificate, &(certificate, key));
        folder
    }
}

/// Writes `ca.pem`, `cert.pem` and `key.pem` into a folder, which is created.
fn write(
    folder: &Path,
    trusted: &CertificateDer<'static>,
    (certificate, key): &(CertificateDer<'static>, KeyPair),
) {
    std::fs::create_dir_all(folder).unwrap();
    for (name, label, der) in [
        ("ca.pem", "CERTIFICATE", trusted.as_ref()),
        ("cert.pem", "CERTIFICATE", certificate.as_ref()),
        ("key.pem", "PRIVATE KEY", &key.serialize_der()),
    ] {
        std::fs::write(folder.join(name), pem(label, der)).unwrap();
    }
}

/// The certificate and the key that a server uses. They need not match.
#[derive(Debug)]
struct Identity(Arc<CertifiedKey>);

impl Identity {
    fn new((certificate, key): (CertificateDer<'static>, KeyPair), flaw: Flaw) -> Self {
        let key = match flaw {
            Flaw::OtherKey => KeyPair::generate().unwrap(),
            _ => key,
        };
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
        Self(Arc::new(CertifiedKey::new(vec![certificate], key)))
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// Terminates TLS and forwards the connections. With `clients`, requires a client certificate of that
/// authority.
fn relay<S, F>(
    identity: Identity,
    clients: Option<&Authority>,
    connect: impl Fn() -> F + Clone + Send + 'static,
) -> SocketAddr
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
    F: Future<Output = std::io::Result<S>> + Send,
{
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(authority.certificate.clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
        None => builder.with_no_client_auth(),
    };
    let config = builder.with_cert_resolver(Arc::new(identity));
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    block_on(async {
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, connect) = (acceptor.clone(), connect.clone());
                tokio::spawn(async move {
                    let mut client = acceptor.accept(stream).await?;
                    let mut server = connect().await?;
                    copy_bidirectional(&mut client, &mut server).await
                });
            }
        });
    });
    address
}

/// The PEM encoding (RFC 7468).
fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = (0..text.len())
        .step_by(64)
        .map(|at| &text[at..text.len().min(at + 64)])
        .collect();
    let lines = lines.join("\n");
    format!("-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n")
}
