//! Reads an image saved by `docker save`, layer by layer, and compares two of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::reference::CHECKOUT_TIME;
use super::template::COMMIT_TIME;
use crate::support::child::succeed;

/// The labels that libmol adds.
const OUR_LABELS: [&str; 4] = [
    "org.opencontainers.image.source",
    "org.opencontainers.image.revision",
    "ai.moleculesai.libmol.runtime",
    "ai.moleculesai.libmol.platform",
];

/// The maximum number of differences to report.
const MAX_SHOWN: usize = 25;

pub struct SavedImage {
    config: Value,
    layers: Vec<Layer>,
}

/// Entries by path, as in the layer's archive, including whiteouts.
type Layer = BTreeMap<Vec<u8>, Entry>;

struct Entry {
    /// Everything except the time.
    facts: Facts,
    /// In seconds since 1970.
    time: u64,
}

#[derive(PartialEq, Eq)]
struct Facts {
    kind: tar::EntryType,
    mode: u32,
    owner: (u64, u64),
    size: u64,
    digest: Option<[u8; 32]>,
    /// Of a symbolic link or a hard link.
    target: Option<Vec<u8>>,
    device: Option<(u32, u32)>,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl SavedImage {
    /// Reads the archive that `docker save` makes.
    pub fn read(archive: &Path) -> Self {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Manifest {
            config: PathBuf,
            layers: Vec<PathBuf>,
        }
        let mut file = File::open(archive).unwrap();
        // The offset and size of each member. Docker saves a repeated layer as a link to the first one.
        let mut members = HashMap::new();
        let mut links = HashMap::new();
        for entry in tar::Archive::new(&file).entries_with_seek().unwrap() {
            let entry = entry.unwrap();
            let path = entry.path().unwrap().into_owned();
            if let Some(target) = entry.link_name().unwrap() {
                links.insert(path.clone(), resolved(&path, &target));
            }
            members.insert(path, (entry.raw_file_position(), entry.size()));
        }
        let mut open = |path: &Path| {
            let (start, size) = members[links.get(path).map_or(path, PathBuf::as_path)];
            file.seek(SeekFrom::Start(start)).unwrap();
            file.try_clone().unwrap().take(size)
        };
        let manifest: Vec<Manifest> =
            serde_json::from_reader(open(Path::new("manifest.json"))).unwrap();
        let [manifest] = &manifest[..] else {
            panic!("the archive must contain one image");
        };
        Self {
            config: serde_json::from_reader(open(&manifest.config)).unwrap(),
            layers: manifest
                .layers
                .iter()
                .map(|layer| read_layer(&*decompressed(open(layer))))
                .collect(),
        }
    }

    /// The differences from the reference image; empty if they are the same.
    pub fn differences(&self, reference: &Self) -> Vec<String> {
        let mut found = Vec::new();
        if self.layers.len() != reference.layers.len() {
            found.push(format!(
                "the number of layers: {} here, {} there",
                self.layers.len(),
                reference.layers.len()
            ));
        }
        for (number, (ours, theirs)) in self.layers.iter().zip(&reference.layers).enumerate() {
            let paths: BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
            for path in paths {
                if let Some(how) = difference(ours.get(path), theirs.get(path)) {
                    found.push(format!("layer {number}: {}: {how}", path.escape_ascii()));
                }
            }
        }
        differences_in_json("config", &self.facts(), &reference.facts(), &mut found);
        if found.len() > MAX_SHOWN {
            let more = found.len() - MAX_SHOWN;
            found.truncate(MAX_SHOWN);
            found.push(format!("and {more} more"));
        }
        found
    }

    /// The configuration without the parts that differ between any two builds (times, and the names of
    /// intermediate containers and images) and without the labels that libmol adds.
    fn facts(&self) -> Value {
        let mut config = self.config.clone();
        let all = config.as_object_mut().unwrap();
        for name in [
            "created",
            "container",
            "container_config",
            "parent",
            "rootfs",
        ] {
            all.remove(name);
        }
        if let Some(run) = all.get_mut("config").and_then(Value::as_object_mut) {
            run.remove("Hostname");
            run.remove("Image");
            if let Some(labels) = run.get_mut("Labels").and_then(Value::as_object_mut) {
                labels.retain(|name, _| !OUR_LABELS.contains(&name.as_str()));
            }
        }
        if let Some(history) = all.get_mut("history").and_then(Value::as_array_mut) {
            // The classic builders add labels with an instruction at the end.
            history.retain(|step| {
                let by = step["created_by"].as_str().unwrap_or_default();
                !(by.contains("LABEL") && OUR_LABELS.iter().any(|label| by.contains(label)))
            });
            for step in history.iter_mut().filter_map(Value::as_object_mut) {
                step.remove("created");
                // Podman names the image of the previous step here.
                let comment = step.get("comment").and_then(Value::as_str);
                if comment.is_some_and(|comment| comment.starts_with("FROM ")) {
                    step.remove("comment");
                }
                // The classic builders include the digest of the archive, which contains the user's name.
                if let Some(Value::String(by)) = step.get_mut("created_by") {
                    *by = without_digests(by);
                }
            }
        }
        without_empty_values(config)
    }
}

/// The target of a link in an archive, relative to the archive's root.
fn resolved(link: &Path, target: &Path) -> PathBuf {
    let mut path = link.parent().unwrap().to_owned();
    for part in target.components() {
        match part {
            std::path::Component::ParentDir => drop(path.pop()),
            other => path.push(other),
        }
    }
    path
}

/// The uncompressed archive of a layer. containerd's image store saves layers with gzip, Docker's own store
/// without.
fn decompressed(mut layer: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    layer.read_to_end(&mut bytes).unwrap();
    // The gzip magic number (RFC 1952, section 2.3.1).
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return bytes;
    }
    let mut packed = tempfile::Builder::new().suffix(".gz").tempfile().unwrap();
    packed.write_all(&bytes).unwrap();
    succeed(Command::new("gzip").args(["-d", "-c"]).arg(packed.path())).stdout
}

fn read_layer(archive: impl Read) -> Layer {
    let mut layer = Layer::new();
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path_bytes().into_owned();
        let header = entry.header();
        let kind = header.entry_type();
        let facts = Facts {
            kind,
            mode: header.mode().unwrap(),
            owner: (header.uid().unwrap(), header.gid().unwrap()),
            size: header.size().unwrap(),
            target: entry.link_name_bytes().map(|target| target.into_owned()),
            device: (kind.is_block_special() || kind.is_character_special()).then(|| {
                let number = |number: std::io::Result<Option<u32>>| number.unwrap().unwrap_or(0);
                (number(header.device_major()), number(header.device_minor()))
            }),
            xattrs: Vec::new(),
            digest: None,
        };
        let time = header.mtime().unwrap();
        let xattrs = entry
            .pax_extensions()
            .unwrap()
            .into_iter()
            .flatten()
            .map(Result::unwrap)
            .filter(|pair| pair.key_bytes().starts_with(b"SCHILY.xattr."))
            .map(|pair| {
                (
                    pair.key().unwrap().to_owned(),
                    pair.value_bytes().to_owned(),
                )
            })
            .collect();
        let digest = kind.is_file().then(|| {
            let mut hasher = Sha256::new();
            let mut buffer = [0; 64 * 1024];
            while let Ok(length @ 1..) = entry.read(&mut buffer) {
                hasher.update(&buffer[..length]);
            }
            hasher.finalize().into()
        });
        let facts = Facts {
            xattrs,
            digest,
            ..facts
        };
        layer.insert(path, Entry { facts, time });
    }
    layer
}

/// How an entry differs from the reference's entry. The rule for times: an entry with the checkout's time
/// in the reference must have the commit's time here, and no other entry may have it.
fn difference(ours: Option<&Entry>, theirs: Option<&Entry>) -> Option<String> {
    let (ours, theirs) = match (ours, theirs) {
        (Some(ours), Some(theirs)) => (ours, theirs),
        (Some(ours), None) => return Some(format!("only here ({})", ours.facts)),
        (None, theirs) => return Some(format!("only there ({})", theirs?.facts)),
    };
    if ours.facts != theirs.facts {
        return Some(format!("{} here, {} there", ours.facts, theirs.facts));
    }
    if ours.facts.kind.is_dir() {
        return None;
    }
    match (ours.time == COMMIT_TIME, theirs.time == CHECKOUT_TIME) {
        (true, false) => Some("has the time of the commit, but is not from the context".to_owned()),
        (false, true) => Some(format!(
            "is from the context, but has the time {} instead of the commit's",
            ours.time
        )),
        _ => None,
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (user, group) = self.owner;
        write!(f, "{:?} {:o} {user}:{group}", self.kind, self.mode)?;
        if let Some(target) = &self.target {
            write!(f, " -> {}", target.escape_ascii())?;
        }
        if let Some(digest) = &self.digest {
            write!(f, " {} bytes, ", self.size)?;
            for byte in &digest[..6] {
                write!(f, "{byte:02x}")?;
            }
        }
        if let Some((major, minor)) = self.device {
            write!(f, " device {major},{minor}")?;
        }
        if !self.xattrs.is_empty() {
            write!(f, " {:?}", self.xattrs)?;
        }
        Ok(())
    }
}

fn without_digests(text: &str) -> String {
    let digest = |word: &str| word.len() == 64 && word.bytes().all(|b| b.is_ascii_hexdigit());
    text.split_inclusive([' ', ':'])
        .map(|word| {
            if digest(word.trim_end()) {
                "digest "
            } else {
                word
            }
        })
        .collect()
}

/// Removes null and empty values: to every engine they mean the same as a missing value.
fn without_empty_values(value: Value) -> Value {
    let is_empty = |value: &Value| match value {
        Value::Null => true,
        Value::Array(all) => all.is_empty(),
        Value::Object(all) => all.is_empty(),
        _ => false,
    };
    match value {
        Value::Object(all) => Value::Object(
            all.into_iter()
                .map(|(name, value)| (name, without_empty_values(value)))
                .filter(|(_, value)| !is_empty(value))
                .collect::<Map<_, _>>(),
        ),
        Value::Array(all) => Value::Array(all.into_iter().map(without_empty_values).collect()),
        other => other,
    }
}

fn differences_in_json(place: &str, ours: &Value, theirs: &Value, found: &mut Vec<String>) {
    match (ours, theirs) {
        _ if ours == theirs => {}
        (Value::Object(a), Value::Object(b)) => {
            let names: BTreeSet<_> = a.keys().chain(b.keys()).collect();
            for name in names {
                let (a, b) = (&ours[name], &theirs[name]);
                differences_in_json(&format!("{place}.{name}"), a, b, found);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (number, (a, b)) in a.iter().zip(b).enumerate() {
                differences_in_json(&format!("{place}[{number}]"), a, b, found);
            }
        }
        _ => found.push(format!("{place}: {ours} here, {theirs} there")),
    }
}
