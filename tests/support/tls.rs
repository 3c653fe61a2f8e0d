//! TLS in front of a template server or an engine, with certificates of an authority that nobody knows,
//! or with one that nobody should believe.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_rustls::TlsAcceptor;

use super::{Engine, Server, block_on};

/// What is wrong with a certificate, apart from its authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    None,
    Expired,
    NotYetValid,
    /// It is another server's.
    OtherHost,
    /// The authority did not sign it; it signed itself.
    OwnSignature,
    /// It is not for servers.
    ClientOnly,
    /// Its signature is broken.
    BadSignature,
}

/// Who signs certificates.
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
        let key = KeyPair::generate().unwrap();
        let host = match flaw {
            Flaw::OtherHost => "git.example.com",
            _ => "127.0.0.1",
        };
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        match flaw {
            Flaw::Expired => params.not_after = date_time_ymd(2020, 1, 1),
            Flaw::NotYetValid => params.not_before = date_time_ymd(2100, 1, 1),
            Flaw::ClientOnly => {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]
            }
            _ => {}
        }
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

pub struct Https {
    /// The repository prefix, with `https://`.
    pub repo_prefix: String,
    /// The authority's certificate.
    pub ca: PathBuf,
}

impl Https {
    /// Ends with the process of the tests.
    pub fn before(server: &Server, folder: &Path) -> Self {
        Self::with(server, folder, Flaw::None)
    }

    /// The same, with a certificate that has a flaw.
    pub fn with(server: &Server, folder: &Path, flaw: Flaw) -> Self {
        let authority = Authority::new();
        let ca = folder.join("ca.pem");
        std::fs::write(&ca, pem("CERTIFICATE", &authority.certificate)).unwrap();
        let plain: SocketAddr = server.url.strip_prefix("http://").unwrap().parse().unwrap();
        let address = relay(&authority, flaw, false, move || TcpStream::connect(plain));
        let repo_prefix = server
            .repo_prefix
            .replace(&server.url, &format!("https://{address}"));
        Self { repo_prefix, ca }
    }
}

/// An engine that lets in who has a certificate of its authority, as `dockerd --tlsverify` does.
pub struct EngineTls {
    /// `tcp://127.0.0.1:PORT`
    pub host: String,
    /// A folder with `ca.pem`, `cert.pem` and `key.pem`.
    pub certificates: PathBuf,
}

impl EngineTls {
    /// Ends with the process of the tests.
    pub fn before(engine: &Engine, certificates: &Path) -> Self {
        let authority = Authority::new();
        let (certificate, key) = authority.sign(Flaw::None);
        std::fs::create_dir_all(certificates).unwrap();
        for (name, label, der) in [
            ("ca.pem", "CERTIFICATE", authority.certificate.as_ref()),
            ("cert.pem", "CERTIFICATE", certificate.as_ref()),
            ("key.pem", "PRIVATE KEY", &key.serialize_der()),
        ] {
            std::fs::write(certificates.join(name), pem(label, der)).unwrap();
        }
        let socket = PathBuf::from(engine.url.strip_prefix("unix://").unwrap());
        let connect = move || UnixStream::connect(socket.clone());
        let address = relay(&authority, Flaw::None, true, connect);
        Self {
            host: format!("tcp://{address}"),
            certificates: certificates.to_owned(),
        }
    }
}

/// Takes TLS off what comes, and passes it on. With `clients`, only from clients of the same authority.
fn relay<S, F>(
    authority: &Authority,
    flaw: Flaw,
    clients: bool,
    connect: impl Fn() -> F + Clone + Send + 'static,
) -> SocketAddr
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
    F: Future<Output = std::io::Result<S>> + Send,
{
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate.clone()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
    let builder = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        true => builder.with_client_cert_verifier(verifier.build().unwrap()),
        false => builder.with_no_client_auth(),
    };
    let (certificate, key) = authority.sign(flaw);
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let config = builder.with_single_cert(vec![certificate], key).unwrap();
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

/// What a file of certificates or keys holds (RFC 7468).
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
