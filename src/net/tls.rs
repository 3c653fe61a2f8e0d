//! TLS: which servers are believed. One set-up for both clients, to the template server and to an engine.
//!
//! rustls refuses a certificate that may sign others (`CA:TRUE`) as a server's own, and knows nothing of
//! a server's certificate that is itself trusted. `openssl req -x509` and `gitea cert --ca` make such
//! certificates, and OpenSSL, curl, git and Go accept them. So does [`Verifier`].

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WantsClientCert, WebPkiServerVerifier, verify_server_name};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore,
    SignatureScheme,
};

use crate::error::{Code, Error, Result};

/// A client that believes servers with a certificate of one of these authorities, or with one of these
/// certificates. `roots` has been made from `certificates`.
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
    // The verifier cannot be made without any, and without any no server is believed.
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

/// Believes what [`WebPkiServerVerifier`] believes, and a server's certificate that is itself trusted, byte
/// for byte, if its dates, its purpose and its names are right.
#[derive(Debug)]
struct Verifier {
    chains: Arc<WebPkiServerVerifier>,
    trusted: HashSet<CertificateDer<'static>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let verify = |now| {
            self.chains
                .verify_server_cert(certificate, intermediates, name, ocsp, now)
        };
        let refused = match verify(now) {
            Ok(verified) => return Ok(verified),
            Err(refused) => refused,
        };
        let itself = self.trusted.contains(certificate)
            && is_valid_at(now, verify)
            && is_for_servers(certificate);
        if !itself {
            return Err(refused);
        }
        verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.chains
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.chains
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

/// Whether the dates of a certificate include `now`. webpki reads them, and says them only where it refuses
/// a certificate for them: at the end of time, and at its beginning. Where it does not, they are not known.
fn is_valid_at(
    now: UnixTime,
    verify: impl Fn(UnixTime) -> std::result::Result<ServerCertVerified, rustls::Error>,
) -> bool {
    let refused_at =
        |seconds| match verify(UnixTime::since_unix_epoch(Duration::from_secs(seconds))) {
            Err(rustls::Error::InvalidCertificate(refused)) => Some(refused),
            _ => None,
        };
    let ended = match refused_at(u64::MAX) {
        Some(CertificateError::ExpiredContext { not_after, .. }) => now > not_after,
        _ => true,
    };
    let begun = match refused_at(0) {
        Some(CertificateError::NotValidYetContext { not_before, .. }) => now >= not_before,
        _ => true,
    };
    begun && !ended
}

/// Whether a certificate may be a server's: it says so, or does not say what it is for (RFC 5280, section
/// 4.2.1.12). webpki looks at that after it has refused one for `CA:TRUE`.
fn is_for_servers(certificate: &[u8]) -> bool {
    const SEQUENCE: u8 = 0x30;
    const EXTENSIONS: u8 = 0xa3;
    /// 2.5.29.37, `extKeyUsage`
    const PURPOSES: Element<'_> = (0x06, &[0x55, 0x1d, 0x25]);
    /// 1.3.6.1.5.5.7.3.1, `id-kp-serverAuth`
    const SERVER: Element<'_> = (0x06, &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01]);

    let purposes = || {
        let (SEQUENCE, certificate) = element(&mut &*certificate)? else {
            return None;
        };
        let (SEQUENCE, mut signed) = element(&mut &*certificate)? else {
            return None;
        };
        let mut extensions = loop {
            match signed.is_empty() {
                true => return Some(None),
                false => match element(&mut signed)? {
                    (EXTENSIONS, mut extensions) => break element(&mut extensions)?.1,
                    _ => continue,
                },
            }
        };
        while !extensions.is_empty() {
            let mut extension = element(&mut extensions)?.1;
            if element(&mut extension)? == PURPOSES {
                // Whether it is critical may stand before the value.
                let mut value = element(&mut extension)?.1;
                if !extension.is_empty() {
                    value = element(&mut extension)?.1;
                }
                return Some(Some(element(&mut value)?.1));
            }
        }
        Some(None)
    };
    match purposes() {
        Some(Some(mut purposes)) => {
            std::iter::from_fn(|| element(&mut purposes)).any(|purpose| purpose == SERVER)
        }
        Some(None) => true,
        None => false,
    }
}

/// A tag and a value in DER.
type Element<'d> = (u8, &'d [u8]);

/// Takes the first element off; `None` if there is none, or none that is whole (X.690, section 8.1).
fn element<'d>(der: &mut &'d [u8]) -> Option<Element<'d>> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        // Nothing in a certificate is larger than 64 KiB.
        0x81 | 0x82 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first - 0x80))?;
            let length = digits
                .iter()
                .fold(0, |length, digit| length << 8 | usize::from(*digit));
            (length, rest)
        }
        _ => return None,
    };
    let (value, rest) = rest.split_at_checked(length)?;
    *der = rest;
    Some((tag, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{
        BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
        date_time_ymd,
    };

    const HOST: &str = "git.example.com";

    /// Like those of `openssl req -x509`: it signs itself, and may sign others.
    fn self_signed(change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec![HOST.to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().clone()
    }

    /// The answer to a server with this certificate, where `trusted` is the set of trusted ones.
    fn verdict(
        trusted: &[&CertificateDer<'static>],
        certificate: &CertificateDer<'static>,
        name: &str,
    ) -> std::result::Result<(), String> {
        let mut roots = RootCertStore::empty();
        for trusted in trusted {
            roots.add((*trusted).clone()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chains = WebPkiServerVerifier::builder_with_provider(roots.into(), provider);
        let verifier = Verifier {
            chains: chains.build().unwrap(),
            trusted: trusted.iter().map(|trusted| (*trusted).clone()).collect(),
        };
        let name = ServerName::try_from(name).unwrap();
        let verified = verifier.verify_server_cert(certificate, &[], &name, &[], UnixTime::now());
        verified.map(|_| ()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_self_signed_certificate_that_is_trusted_is_accepted() {
        let other = self_signed(|_| {});
        for server in [
            self_signed(|_| {}),
            self_signed(|params| params.is_ca = IsCa::NoCa),
            self_signed(|params| params.is_ca = IsCa::ExplicitNoCa),
            self_signed(|params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0))),
            self_signed(|params| {
                let (client, server) = (
                    ExtendedKeyUsagePurpose::ClientAuth,
                    ExtendedKeyUsagePurpose::ServerAuth,
                );
                params.extended_key_usages = vec![client, server];
            }),
            self_signed(|params| params.not_before = date_time_ymd(1970, 1, 1)),
            self_signed(|params| params.not_after = date_time_ymd(9999, 12, 31)),
        ] {
            assert_eq!(verdict(&[&other, &server], &server, HOST), Ok(()));
        }
    }

    #[test]
    fn a_trusted_certificate_for_another_name_date_or_purpose_is_refused() {
        let right = self_signed(|_| {});
        let says =
            |server: &CertificateDer<'static>, name| verdict(&[server], server, name).unwrap_err();
        assert!(says(&right, "example.com").contains("not valid for name"));
        assert!(says(&right, "127.0.0.1").contains("not valid for name"));
        let expired = self_signed(|params| params.not_after = date_time_ymd(2020, 1, 1));
        assert!(says(&expired, HOST).contains("expired"));
        let early = self_signed(|params| params.not_before = date_time_ymd(2100, 1, 1));
        assert!(says(&early, HOST).contains("not valid yet"));
        let never = self_signed(|params| {
            params.not_before = date_time_ymd(2100, 1, 1);
            params.not_after = date_time_ymd(2000, 1, 1);
        });
        says(&never, HOST);
        let client = self_signed(|params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        });
        says(&client, HOST);
    }

    #[test]
    fn an_authority_that_is_not_in_the_set_is_no_server() {
        // The names of the two are the same.
        let (trusted, other) = (self_signed(|_| {}), self_signed(|_| {}));
        let said = verdict(&[&trusted], &other, HOST).unwrap_err();
        assert!(said.contains("CaUsedAsEndEntity"), "{said}");

        let mut changed = trusted.to_vec();
        *changed.last_mut().unwrap() ^= 1;
        verdict(&[&trusted], &changed.into(), HOST).unwrap_err();
    }

    #[test]
    fn an_authority_signs_servers_and_no_further_authority() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&key).unwrap().der().clone();
        let issuer = Issuer::new(params, key);
        let sign = |is_ca| {
            let mut params = CertificateParams::new(vec![HOST.to_owned()]).unwrap();
            params.is_ca = is_ca;
            let key = KeyPair::generate().unwrap();
            params.signed_by(&key, &issuer).unwrap().der().clone()
        };
        let server = sign(IsCa::NoCa);
        assert_eq!(verdict(&[&authority], &server, HOST), Ok(()));
        // One that is trusted itself needs no authority.
        assert_eq!(verdict(&[&server], &server, HOST), Ok(()));
        let further = sign(IsCa::Ca(BasicConstraints::Unconstrained));
        verdict(&[&authority], &further, HOST).unwrap_err();
    }

    #[test]
    fn a_certificate_that_is_cut_off_is_for_nobody() {
        let whole = self_signed(|params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        });
        assert!(is_for_servers(&whole));
        for length in 0..whole.len() {
            assert!(!is_for_servers(&whole[..length]), "{length}");
        }
    }
}
