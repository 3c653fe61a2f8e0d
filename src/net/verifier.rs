//! Verifies a server's certificate like OpenSSL, curl, git and Go.
//!
//! rustls refuses a server certificate that may sign others (`CA:TRUE`), and it can trust only the issuer of a server
//! certificate, not the certificate itself. Certificates of `openssl req -x509` and `gitea cert --ca` are refused for
//! both reasons. The other programs accept them if they are trusted, and so does [`Verifier`].

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};

/// Accepts what [`WebPkiServerVerifier`] accepts, and a server certificate that is itself in the trusted set, byte for
/// byte, if its dates, its purpose and its names are valid.
#[derive(Debug)]
pub(super) struct Verifier {
    pub(super) chains: Arc<WebPkiServerVerifier>,
    pub(super) trusted: HashSet<CertificateDer<'static>>,
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
        let is_trusted = self.trusted.contains(certificate)
            && is_valid_at(now, verify)
            && is_for_servers(certificate);
        if !is_trusted {
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

/// Whether `now` is within the certificate's validity period. webpki reports the dates only when it refuses the
/// certificate because of them. So it is asked with the latest and with the earliest possible time. If it does not
/// refuse these because of the dates, the dates are unknown, and the result is false.
fn is_valid_at(
    now: UnixTime,
    verify: impl Fn(UnixTime) -> std::result::Result<ServerCertVerified, rustls::Error>,
) -> bool {
    let refused_at =
        |seconds| match verify(UnixTime::since_unix_epoch(Duration::from_secs(seconds))) {
            Err(rustls::Error::InvalidCertificate(refused)) => Some(refused),
            _ => None,
        };
    let expired = match refused_at(u64::MAX) {
        Some(CertificateError::ExpiredContext { not_after, .. }) => now > not_after,
        _ => true,
    };
    let started = match refused_at(0) {
        Some(CertificateError::NotValidYetContext { not_before, .. }) => now >= not_before,
        _ => true,
    };
    started && !expired
}

/// Whether a certificate may be used by a server: its extended key usage says so or is absent (RFC 5280, section
/// 4.2.1.12). webpki does not get to this check, because it has refused the certificate for `CA:TRUE` before.
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
                // An optional `critical` flag precedes the value.
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

/// Takes the first element off `der`; `None` if there is no complete one (X.690, section 8.1).
fn element<'d>(der: &mut &'d [u8]) -> Option<Element<'d>> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        // A longer form is for more than 64 KiB, which no part of a certificate has.
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

    use rustls::RootCertStore;

    const HOST: &str = "git.example.com";

    /// Like the certificates of `openssl req -x509`: self-signed, and allowed to sign others.
    fn self_signed(change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec![HOST.to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().clone()
    }

    /// The result for a server with this certificate, if `trusted` are the trusted certificates.
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
    fn a_trusted_certificate_with_a_wrong_name_date_or_use_is_refused() {
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
    fn an_untrusted_self_signed_certificate_is_refused() {
        // Both have the same name.
        let (trusted, other) = (self_signed(|_| {}), self_signed(|_| {}));
        let error = verdict(&[&trusted], &other, HOST).unwrap_err();
        assert!(error.contains("CaUsedAsEndEntity"), "{error}");

        let mut changed = trusted.to_vec();
        *changed.last_mut().unwrap() ^= 1;
        verdict(&[&trusted], &changed.into(), HOST).unwrap_err();
    }

    #[test]
    fn a_trusted_authority_may_sign_servers_but_not_authorities() {
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
        // A certificate that is itself trusted needs no authority.
        assert_eq!(verdict(&[&server], &server, HOST), Ok(()));
        let further = sign(IsCa::Ca(BasicConstraints::Unconstrained));
        verdict(&[&authority], &further, HOST).unwrap_err();
    }

    #[test]
    fn a_truncated_certificate_is_not_for_servers() {
        let whole = self_signed(|params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        });
        assert!(is_for_servers(&whole));
        for length in 0..whole.len() {
            assert!(!is_for_servers(&whole[..length]), "{length}");
        }
    }
}
