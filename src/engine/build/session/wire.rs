//! The messages of `FileSync/DiffCopy`: `fsutil.types` (github.com/tonistiigi/fsutil).
//!
//! All other messages of a session come from `bollard-buildkit-proto`. Its `Packet` and `Stat` do not fit: they have
//! paths as `String`, but git's paths need not be UTF-8.

use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use bytes::Bytes;

/// One message of `DiffCopy`, in both directions.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Packet {
    #[prost(enumeration = "PacketType", tag = "1")]
    pub(super) kind: i32,
    #[prost(message, optional, tag = "2")]
    pub(super) stat: Option<Stat>,
    /// The file's number, from 0 in the order of the `Stat`s.
    #[prost(uint32, tag = "3")]
    pub(super) id: u32,
    #[prost(bytes = "bytes", tag = "4")]
    pub(super) data: Bytes,
}

/// The metadata of an entry. Paths are bytes, which on the wire are the same as a string.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Stat {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) path: Vec<u8>,
    /// Go's `fs.FileMode`.
    #[prost(uint32, tag = "2")]
    pub(super) mode: u32,
    #[prost(uint32, tag = "3")]
    pub(super) uid: u32,
    #[prost(uint32, tag = "4")]
    pub(super) gid: u32,
    #[prost(int64, tag = "5")]
    pub(super) size: i64,
    /// Nanoseconds since 1970.
    #[prost(int64, tag = "6")]
    pub(super) mod_time: i64,
    #[prost(bytes = "vec", tag = "7")]
    pub(super) linkname: Vec<u8>,
}

/// Go's `fs.ModeDir` and `fs.ModeSymlink`.
pub(super) const MODE_DIR: u32 = 1 << 31;
pub(super) const MODE_SYMLINK: u32 = 1 << 27;
