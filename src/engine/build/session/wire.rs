//! The messages of a session: `fsutil.types` (github.com/tonistiigi/fsutil), `moby.filesync.v1`
//! (github.com/moby/buildkit) and `grpc.health.v1`.

use bytes::Bytes;

/// One message of fsutil's `DiffCopy`, both ways.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Packet {
    #[prost(enumeration = "PacketType", tag = "1")]
    pub(super) kind: i32,
    #[prost(message, optional, tag = "2")]
    pub(super) stat: Option<Stat>,
    /// Which file, counted from 0 in the order of the `Stat`s.
    #[prost(uint32, tag = "3")]
    pub(super) id: u32,
    #[prost(bytes = "bytes", tag = "4")]
    pub(super) data: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(super) enum PacketType {
    /// A file, a folder or a link; without a [`Stat`], the end of them.
    Stat = 0,
    /// The other side wants this file.
    Req = 1,
    /// A piece of a file; an empty one is its end.
    Data = 2,
    /// All is done.
    Fin = 3,
    /// It cannot be done, and why.
    Err = 4,
}

/// What a file is. Paths are bytes here, because git's are; on the wire that is the same as a string.
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

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct CredentialsRequest {
    #[prost(string, tag = "1")]
    pub(super) host: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct CredentialsResponse {
    #[prost(string, tag = "1")]
    pub(super) username: String,
    #[prost(string, tag = "2")]
    pub(super) secret: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HealthCheckRequest {}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HealthCheckResponse {
    /// 1: serving.
    #[prost(int32, tag = "1")]
    pub(super) status: i32,
}
