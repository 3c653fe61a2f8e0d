//! HTTPS in front of a template server, with a certificate of an authority that nobody knows, or with
//! one that nobody should believe.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};
use rustls::pki_types::PrivateKeyDer;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::{Server, block_on};

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
        let authority = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = folder.join("ca.pem");
        let certificate = params.self_signed(&authority).unwrap();
        std::fs::write(&ca, pem(certificate.der())).unwrap();

        let key = KeyPair::generate().unwrap();
        let host = if flaw == Flaw::OtherHost {
            "git.example.com"
        } else {
            "127.0.0.1"
        };
        let mut leaf = CertificateParams::new(vec![host.to_owned()]).unwrap();
        match flaw {
            Flaw::Expired => leaf.not_after = date_time_ymd(2020, 1, 1),
            Flaw::NotYetValid => leaf.not_before = date_time_ymd(2100, 1, 1),
            Flaw::ClientOnly => {
                leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]
            }
            _ => {}
        }
        let leaf = match flaw {
            Flaw::OwnSignature => leaf.self_signed(&key),
            _ => leaf.signed_by(&key, &Issuer::new(params, authority)),
        };
        let mut leaf = leaf.unwrap().der().to_vec();
        if flaw == Flaw::BadSignature {
            *leaf.last_mut().unwrap() ^= 1;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.into()],
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
