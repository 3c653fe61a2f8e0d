//! Git objects and packs that git itself would not create, but a hostile server can send.
//!
//! The formats are those of gitformat-pack(5), gitprotocol-pack(5) and gitprotocol-v2(5).

use std::io::Write;

use gix_zlib::{Compression, stream::deflate};

/// The author and the fixed time of commits and tags.
const WHEN: &str = "Template Author <templates@example.com> 1767603600 +0000";

/// One object.
#[derive(Clone)]
pub struct Object {
    pub kind: Kind,
    pub data: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Commit = 1,
    Tree = 2,
    Blob = 3,
    Tag = 4,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Commit => "commit",
            Kind::Tree => "tree",
            Kind::Blob => "blob",
            Kind::Tag => "tag",
        }
    }
}

impl Object {
    pub fn blob(data: impl AsRef<[u8]>) -> Self {
        let (kind, data) = (Kind::Blob, data.as_ref().to_vec());
        Self { kind, data }
    }

    /// A tree with these entries (mode, name and id), unchecked and in this order.
    pub fn tree<'a>(entries: impl IntoIterator<Item = (&'a str, &'a [u8], Vec<u8>)>) -> Self {
        let mut data = Vec::new();
        for (mode, name, id) in entries {
            data.extend_from_slice(mode.as_bytes());
            data.push(b' ');
            data.extend_from_slice(name);
            data.push(0);
            data.extend_from_slice(&id);
        }
        let kind = Kind::Tree;
        Self { kind, data }
    }

    /// An annotated tag of a commit.
    pub fn tag(commit: &Object) -> Self {
        let object = commit.hex();
        let text = format!("object {object}\ntype commit\ntag v1\ntagger {WHEN}\n\nOne\n");
        let (kind, data) = (Kind::Tag, text.into_bytes());
        Self { kind, data }
    }

    pub fn commit(tree: &Object) -> Self {
        let tree = tree.hex();
        let text = format!("tree {tree}\nauthor {WHEN}\ncommitter {WHEN}\n\nA hostile template\n");
        let kind = Kind::Commit;
        Self {
            kind,
            data: text.into_bytes(),
        }
    }

    /// With its header: the input of the hash, and of the compression of a loose object.
    fn framed(&self) -> Vec<u8> {
        let mut framed = format!("{} {}\0", self.kind.name(), self.data.len()).into_bytes();
        framed.extend_from_slice(&self.data);
        framed
    }

    pub fn id(&self) -> Vec<u8> {
        sha1(&self.framed())
    }

    pub fn hex(&self) -> String {
        hex(&self.id())
    }

    /// The path of the loose object below `objects/`, and its content.
    pub fn loose(&self) -> (String, Vec<u8>) {
        let id = self.hex();
        (
            format!("{}/{}", &id[..2], &id[2..]),
            deflate(&self.framed()),
        )
    }

    /// The entry in a pack.
    pub fn entry(&self) -> Vec<u8> {
        entry(
            self.kind as u8,
            self.data.len() as u64,
            &deflate(&self.data),
        )
    }
}

/// One entry of a pack: type and declared size, then `rest`.
pub fn entry(kind: u8, size: u64, rest: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let (mut byte, mut left) = (kind << 4 | (size & 15) as u8, size >> 4);
    while left > 0 {
        out.push(byte | 0x80);
        (byte, left) = ((left & 0x7f) as u8, left >> 7);
    }
    out.push(byte);
    out.extend_from_slice(rest);
    out
}

/// An entry that is a delta against the object with this id (REF_DELTA).
pub fn ref_delta(base: &Object, delta: &[u8]) -> Vec<u8> {
    let mut rest = base.id();
    rest.extend_from_slice(&deflate(delta));
    entry(7, delta.len() as u64, &rest)
}

/// A size in the encoding of deltas, seven bits per byte.
pub fn size(mut size: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while size > 0x7f {
        out.push((size & 0x7f) as u8 | 0x80);
        size >>= 7;
    }
    out.push(size as u8);
    out
}

/// A pack of these entries, whose header declares `count` objects.
pub fn pack(count: u32, entries: &[Vec<u8>]) -> Vec<u8> {
    let mut pack = b"PACK\0\0\0\x02".to_vec();
    pack.extend_from_slice(&count.to_be_bytes());
    pack.extend(entries.concat());
    let sum = sha1(&pack);
    pack.extend_from_slice(&sum);
    pack
}

/// A valid pack of these objects.
pub fn packed(objects: &[Object]) -> Vec<u8> {
    let entries: Vec<_> = objects.iter().map(Object::entry).collect();
    pack(u32::try_from(entries.len()).unwrap(), &entries)
}

/// The answer to `command=fetch` with this pack.
pub fn fetch_answer(commit: &str, pack: &[u8]) -> Vec<u8> {
    let mut answer = packet("shallow-info\n");
    answer.extend(packet(format!("shallow {commit}")));
    answer.extend_from_slice(b"0001");
    answer.extend(packet("packfile\n"));
    for piece in pack.chunks(60_000) {
        let mut band = vec![1];
        band.extend_from_slice(piece);
        answer.extend(packet(band));
    }
    answer.extend_from_slice(b"0000");
    answer
}

/// A pkt-line: the length in four hexadecimal digits, and the content.
pub fn packet(data: impl AsRef<[u8]>) -> Vec<u8> {
    let data = data.as_ref();
    let mut packet = format!("{:04x}", data.len() + 4).into_bytes();
    packet.extend_from_slice(data);
    packet
}

pub fn deflate(data: &[u8]) -> Vec<u8> {
    let mut writer = deflate::Write::new(Vec::new(), Compression::BEST_SPEED);
    writer.write_all(data).unwrap();
    writer.flush().unwrap();
    writer.into_inner()
}

/// This many zeros, compressed to less than a thousandth.
pub fn deflated_zeros(length: u64) -> Vec<u8> {
    // In pieces of 64 KiB, the writer compresses them far less.
    const ZEROS: [u8; 8192] = [0; 8192];
    let mut writer = deflate::Write::new(Vec::new(), Compression::BEST_SPEED);
    let mut left = length;
    while left > 0 {
        let piece = left.min(ZEROS.len() as u64);
        writer.write_all(&ZEROS[..piece as usize]).unwrap();
        left -= piece;
    }
    writer.flush().unwrap();
    writer.into_inner()
}

pub fn sha1(data: &[u8]) -> Vec<u8> {
    let mut hasher = gix_hash::hasher(gix_hash::Kind::Sha1);
    hasher.update(data);
    hasher.try_finalize().unwrap().as_bytes().to_vec()
}

pub fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}
