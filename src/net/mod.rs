//! HTTP to the template server: the client, its TLS and certificates, and its retries.

pub(crate) mod certificates;
pub(crate) mod http;
pub(crate) mod retry;
pub(crate) mod tls;
mod verifier;
