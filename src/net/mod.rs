//! HTTP to the template server: the client, its TLS and certificates, its retries, and Gitea's API. Also whether the
//! registry of a shared cache answers.

pub(crate) mod certificates;
pub(crate) mod gitea;
pub(crate) mod http;
pub(crate) mod json;
pub(crate) mod registry;
pub(crate) mod retry;
pub(crate) mod tls;
mod verifier;
