//! Certificates from PEM files, for the two TLS clients: towards the template server and the engine.
//!
//! In place of `rustls-native-certs`, which opens whatever a path leads to and reads it to its end. What
//! counts is the same: of a folder every regular file, through links too, and of a file every
//! certificate. What is none is skipped, and told of where none is left.

use std::collections::HashSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use crate::error::Error;
use crate::process::limits;
use crate::process::outside_file::read;

/// The largest file. The bundles of the distributions have about 250 KiB.
const MAX_FILE: usize = 4 << 20;

/// The largest sum of all files of a folder, and the most entries that are looked at. The folders of
/// the distributions have about 500 entries and 500 KiB.
const MAX_FOLDER: usize = 16 << 20;
const MAX_ENTRIES: usize = 10_000;

/// What was found, and what went wrong on the way, with the path.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) certificates: Vec<CertificateDer<'static>>,
    pub(crate) errors: Vec<String>,
    /// This process has no file descriptor left to read them.
    pub(crate) limit: Option<Error>,
}

/// The certificates of a file, and of the files of a folder. None counts twice.
pub(crate) fn find(file: Option<&Path>, folder: Option<&Path>) -> Found {
    let mut found = Found::default();
    let mut seen = HashSet::new();
    if let Some(file) = file {
        if let Ok(there) = fs::metadata(file) {
            seen.insert((there.dev(), there.ino()));
        }
        found.add(file, MAX_FILE);
    }
    if let Some(folder) = folder
        && let Err(error) = found.add_folder(folder, &mut seen)
    {
        found.failed(folder, &error);
    }
    found.certificates.sort_unstable_by(|a, b| a.cmp(b));
    found.certificates.dedup();
    found
}

impl Found {
    /// What is above this is more of the same.
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
                let why = format!("there are more than {MAX_ENTRIES} entries in it");
                return Err(io::Error::other(why));
            }
            let path = entry?.path();
            // Through the links that `openssl rehash` makes.
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

/// All certificates of a file that is there for nothing else. The error completes "… cannot be used:".
pub(crate) fn of_file(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = read(file, MAX_FILE).map_err(|error| error.to_string())?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let certificates = certificates.map_err(|error| error.to_string())?;
    match certificates.is_empty() {
        true => Err("it holds no certificate".to_owned()),
        false => Ok(certificates),
    }
}

/// The private key in a file.
pub(crate) fn key_of_file(file: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let text = Zeroizing::new(read(file, MAX_FILE).map_err(|error| error.to_string())?);
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| error.to_string())
}
