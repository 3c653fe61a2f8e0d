//! The daemon at an address that an option or a buildx builder names.

use crate::engine::builders::node::Node;
use crate::engine::connect::address::{self, Address};
use crate::engine::connect::invalid;
use crate::engine::connect::tls;
use crate::error::{Error, Result};
use crate::options::{BuilderTls, EngineSettings};

/// The port of a `tcp://` address without one, which BuildKit's documentation uses.
const PORT: u16 = 1234;

const HINT: &str =
    "use unix:///path, tcp://host:port, or the name of a buildx builder (docker buildx ls)";

/// The daemon at an address. Reads files. `named_by` starts the message of an error.
///
/// # Errors
///
/// [`Code::InvalidOption`](crate::error::Code::InvalidOption).
pub(super) fn node(
    settings: &EngineSettings,
    address: &str,
    files: &BuilderTls,
    named_by: &str,
) -> Result<Node> {
    let scheme = address.split_once("://").unwrap_or_default().0;
    if !matches!(scheme, "unix" | "tcp") {
        let what = "is not an address of BuildKit that libmol can use";
        return Err(invalid(named_by, what).hint(HINT));
    }
    let tls = tls::for_builder(files, named_by)?;
    let address =
        address::parse(address, tls, PORT, named_by, settings).map_err(|error| Error {
            hint: HINT.into(),
            ..error
        })?;
    match &address {
        Address::Tcp { path, .. } if !path.is_empty() => {
            Err(invalid(named_by, "has a path after the port").hint("use tcp://host:port"))
        }
        address => {
            refuse_plain_tcp(
                address,
                named_by,
                "set MOLECULE_LOCAL_BUILDER_CA, _CERT and _KEY, or create the buildx builder with \
                 --driver-opt cacert=…,cert=…,key=…",
            )?;
            Ok(Node::At(address.clone()))
        }
    }
}

/// Refuses TCP without TLS to another machine.
pub(super) fn refuse_plain_tcp(
    address: &Address,
    named_by: &str,
    hint: &'static str,
) -> Result<()> {
    match address {
        Address::Tcp {
            host, tls: None, ..
        } if !is_loopback(host) => {
            let what = format!(
                "would use {address} without TLS, so that anyone on the network could change the images"
            );
            Err(invalid(named_by, &what).hint(hint))
        }
        _ => Ok(()),
    }
}

/// Whether the host is this machine. Names other than `localhost` may lead anywhere.
fn is_loopback(host: &str) -> bool {
    let address = host.parse::<std::net::IpAddr>();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    fn parse(value: &str) -> Result<String> {
        let node = node(
            &EngineSettings::default(),
            value,
            &BuilderTls::default(),
            "MOLECULE_LOCAL_BUILDER",
        );
        node.map(|node| node.to_string())
    }

    #[test]
    fn a_socket_and_a_loopback_port_need_no_tls() {
        for (value, shown) in [
            (
                "unix:///run/buildkit/buildkitd.sock",
                "unix:///run/buildkit/buildkitd.sock",
            ),
            ("tcp://127.0.0.1:8372", "tcp://127.0.0.1:8372"),
            ("tcp://[::1]:8372", "tcp://[::1]:8372"),
            ("tcp://localhost", "tcp://localhost:1234"),
        ] {
            assert_eq!(parse(value).unwrap(), shown);
        }
    }

    #[test]
    fn other_addresses_are_refused_with_advice() {
        for (value, why) in [
            ("tcp://10.0.0.7:1234", "without TLS"),
            ("tcp://builder.example:1234", "without TLS"),
            ("tcp://localhost.example:1234", "without TLS"),
            ("tcp://127.0.0.1:1234/path", "path after the port"),
            ("tcp://127.0.0.1:port", "invalid port"),
            ("unix://relative", "not absolute"),
            ("ssh://host", "not an address of BuildKit"),
            ("http://127.0.0.1", "not an address of BuildKit"),
            ("kube-pod://pod", "not an address of BuildKit"),
        ] {
            let error = parse(value).unwrap_err();
            assert_eq!(error.code, Code::InvalidOption, "{value}");
            assert!(
                error.message().starts_with("MOLECULE_LOCAL_BUILDER "),
                "{error:?}"
            );
            assert!(error.message().contains(why), "{value}: {error:?}");
            assert!(!error.hint.is_empty(), "{value}");
        }
    }
}
