//! HTTPS in front of a template server, with a certificate of an authority that nobody knows.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::{Server, block_on};

pub struct Https {
    /// The repository prefix, with `https://`.
    pub repo_prefix: String,
    /// The authority's certificate.
    pub ca: PathBuf,
}

impl Https {
    /// Ends with the process of the tests.
    pub fn before(server: &Server, folder: &Path) -> Self {
        let authority = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = folder.join("ca.pem");
        let certificate = params.self_signed(&authority).unwrap();
        std::fs::write(&ca, pem(certificate.der())).unwrap();

        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()])
            .unwrap()
            .signed_by(&key, &Issuer::new(params, authority))
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.der().clone()],
                PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let plain: SocketAddr = server.url.strip_prefix("http://").unwrap().parse().unwrap();
        let listener = block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        block_on(async {
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let acceptor = acceptor.clone();
                    tokio::spawn(async move {
                        let mut client = acceptor.accept(stream).await?;
                        let mut server = TcpStream::connect(plain).await?;
                        copy_bidirectional(&mut client, &mut server).await
                    });
                }
            });
        });
        let repo_prefix = server
            .repo_prefix
            .replace(&server.url, &format!("https://{address}"));
        Self { repo_prefix, ca }
    }
}

/// A certificate as a file holds it (RFC 7468).
fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = (0..text.len())
        .step_by(64)
        .map(|at| &text[at..text.len().min(at + 64)])
        .collect();
    let lines = lines.join("\n");
    format!("-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n")
}
