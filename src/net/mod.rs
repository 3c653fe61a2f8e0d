//! HTTP to the template server: the client, its trusted certificates, and when a request is tried again.

pub(crate) mod certificates;
pub(crate) mod http;
pub(crate) mod retry;
pub(crate) mod tls;
