//! Reads trusted certificates and keys from PEM files, for both TLS clients: to the template server and to an engine.
//!
//! `rustls-native-certs` is not used on Linux, because it opens any kind of file and reads it without a limit. The
//! rules are the same: all regular files of a folder, also through links, and all certificates of a file. Invalid ones
//! are skipped; they are reported only if there is no valid one.

use std::collections::HashSet;
use std::env;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use crate::error::Error;
#[cfg(target_vendor = "apple")]
use crate::error::chain;
use crate::process::limits;
use crate::process::outside_file::read;

/// Upper bound of a file's size. The bundles of the distributions have about 250 KiB.
const MAX_FILE: usize = 4 << 20;

/// Upper bounds of the total size of a folder's files, and of its entries. The folders of the distributions have about
/// 500 entries and 500 KiB.
const MAX_FOLDER: usize = 16 << 20;
const MAX_ENTRIES: usize = 10_000;

/// The certificates, and the errors with the paths of the files.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) certificates: Vec<CertificateDer<'static>>,
    pub(crate) errors: Vec<String>,
    /// Set if the process has no file descriptor left to read them.
    pub(crate) limit: Option<Error>,
}

/// The certificates of a file and of the files of `folders`, without duplicates. `folders` is a list of paths separated
/// by `:`, like `PATH`.
pub(crate) fn find(file: Option<&Path>, folders: Option<&Path>) -> Found {
    let mut found = Found::default();
    let mut seen = HashSet::new();
    if let Some(file) = file {
        if let Ok(there) = fs::metadata(file) {
            seen.insert((there.dev(), there.ino()));
        }
        found.add(file, MAX_FILE);
    }
    let folders = folders.into_iter().flat_map(env::split_paths);
    for folder in folders.filter(|folder| !folder.as_os_str().is_empty()) {
        if let Err(error) = found.add_folder(&folder, &mut seen) {
            found.failed(&folder, &error);
        }
    }
    found.certificates.sort_unstable_by(|a, b| a.cmp(b));
    found.certificates.dedup();
    found
}

/// The certificate bundles of the distributions, in the order in which Go's `crypto/x509` tries them.
#[cfg(not(target_vendor = "apple"))]
const BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The certificates that the machine trusts: those of the first bundle that exists.
#[cfg(not(target_vendor = "apple"))]
pub(crate) fn of_machine() -> Found {
    let bundle = BUNDLES.iter().map(Path::new).find(|file| file.exists());
    find(bundle, None)
}

/// The certificates that the machine trusts.
#[cfg(target_vendor = "apple")]
pub(crate) fn of_machine() -> Found {
    let found = rustls_native_certs::load_native_certs();
    Found {
        certificates: found.certs,
        errors: found.errors.iter().map(|error| chain(error)).collect(),
        limit: None,
    }
}

impl Found {
    /// Upper bound of kept errors; more would be of the same kind.
    const MAX_ERRORS: usize = 10;

    fn failed(&mut self, path: &Path, why: &(dyn std::error::Error + 'static)) {
        self.limit = self.limit.take().or_else(|| limits::reached(why));
        if self.errors.len() < Self::MAX_ERRORS {
            let path = path.display();
            self.errors.push(format!("{path} cannot be read: {why}"));
        }
    }

    /// Returns how many bytes were read.
    fn add(&mut self, file: &Path, max: usize) -> usize {
        let text = match read(file, max) {
            Ok(text) => text,
            Err(error) => {
                self.failed(file, &error);
                return 0;
            }
        };
        for certificate in CertificateDer::pem_slice_iter(&text) {
            match certificate {
                Ok(certificate) => self.certificates.push(certificate),
                Err(error) => self.failed(file, &error),
            }
        }
        text.len()
    }

    fn add_folder(&mut self, folder: &Path, seen: &mut HashSet<(u64, u64)>) -> io::Result<()> {
        let mut bytes = 0;
        for (number, entry) in fs::read_dir(folder)?.enumerate() {
            if number >= MAX_ENTRIES {
                let why = format!("it has more than {MAX_ENTRIES} entries");
                return Err(io::Error::other(why));
            }
            let path = entry?.path();
            // Follows the links that `openssl rehash` makes.
            let there = match fs::metadata(&path) {
                Ok(there) => there,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => {
                    self.failed(&path, &error);
                    continue;
                }
            };
            if there.is_file() && seen.insert((there.dev(), there.ino())) {
                bytes += self.add(&path, MAX_FILE);
                if bytes > MAX_FOLDER {
                    let why = format!("its files have more than {} MiB", MAX_FOLDER >> 20);
                    return Err(io::Error::other(why));
                }
            }
        }
        Ok(())
    }
}

/// All certificates of a file, of which each must be valid.
pub(crate) fn of_file(file: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let text = read(file, MAX_FILE)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let certificates = certificates.map_err(io::Error::other)?;
    match certificates.is_empty() {
        true => Err(io::Error::other("it contains no certificate")),
        false => Ok(certificates),
    }
}

/// The private key in a file.
pub(crate) fn key_of_file(file: &Path) -> io::Result<PrivateKeyDer<'static>> {
    let text = Zeroizing::new(read(file, MAX_FILE)?);
    PrivateKeyDer::from_pem_slice(&text).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_of_several_folders_is_read() {
        let root = tempfile::tempdir().unwrap();
        let folder = |name: &str, content: &str| {
            let folder = root.path().join(name);
            fs::create_dir(&folder).unwrap();
            let pem = "CERTIFICATE-----\n";
            let text = format!("-----BEGIN {pem}{content}\n-----END {pem}");
            fs::write(folder.join("ca.pem"), text).unwrap();
            folder
        };
        let (one, two) = (folder("one", "AAAA"), folder("two", "BBBB"));
        let none = root.path().join("none");
        let folders = env::join_paths([&one, &none, Path::new(""), &two]).unwrap();
        let found = find(None, Some(Path::new(&folders)));
        assert_eq!(found.certificates.len(), 2);
        assert_eq!(found.errors.len(), 1, "{:?}", found.errors);
        assert!(found.errors[0].contains("/none cannot be read"));
    }

    #[test]
    fn a_folder_with_too_many_entries_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("0");
        fs::write(&file, "").unwrap();
        for number in 1..=MAX_ENTRIES {
            fs::hard_link(&file, folder.path().join(number.to_string())).unwrap();
        }
        let found = find(None, Some(folder.path()));
        assert_eq!(found.errors.len(), 1, "{:?}", found.errors);
        let error = &found.errors[0];
        assert!(error.contains("more than 10000 entries"), "{error}");
    }
}
