//! HTTP to the template server: the client, its TLS and certificates, its retries, and Gitea's API.

pub(crate) mod certificates;
pub(crate) mod gitea;
pub(crate) mod http;
pub(crate) mod json;
pub(crate) mod retry;
pub(crate) mod tls;
mod verifier;
