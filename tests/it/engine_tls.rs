//! An engine behind `tcp://` with TLS: the server's and the client's certificate.

use std::fs;
use std::path::{Path, PathBuf};

use mol::{Code, OptionName};
use serde_json::{Value, json};

use crate::support::server::{PLAIN, dockerfile};
use crate::support::tls::{EngineTls, Flaw};
use crate::support::{TestEnv, docker_context_id};

/// A test environment with a template, and its engine behind TLS.
fn env() -> (TestEnv, EngineTls) {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    let engine = EngineTls::before(&env.engine, &env.scratch().join("certificates"));
    (env, engine)
}

/// The options DOCKER_HOST, DOCKER_TLS_VERIFY and DOCKER_CERT_PATH for this engine.
fn by_variables<'a>(host: &'a str, certificates: &'a Path) -> [(OptionName, &'a str); 3] {
    [
        (OptionName::DockerHost, host),
        (OptionName::DockerTlsVerify, "1"),
        (OptionName::DockerCertPath, certificates.to_str().unwrap()),
    ]
}

#[test]
fn an_engine_with_certificates_from_docker_cert_path_works() {
    let (env, engine) = env();
    let client = env.client_with(&by_variables(&engine.host, &engine.certificates));
    let image = client.ensure("hermes").unwrap();
    assert_eq!(image.endpoint, engine.host);
    assert!(!image.cache_hit);
    assert!(env.engine.inspect(&image.reference).is_some());
    assert!(client.ensure("hermes").unwrap().cache_hit);
}

/// Creates a docker configuration with the context `far away`, with this endpoint and the engine's
/// certificates. Returns its folder.
fn context(env: &TestEnv, engine: &EngineTls, endpoint: Value) -> PathBuf {
    let config = env.scratch().join("docker");
    let id = docker_context_id("far away");
    let (meta, tls) = (
        config.join("contexts/meta").join(&id),
        config.join("contexts/tls").join(&id),
    );
    fs::create_dir_all(&meta).unwrap();
    fs::create_dir_all(&tls).unwrap();
    let endpoints = json!({ "docker": endpoint });
    let text = json!({ "Name": "far away", "Metadata": {}, "Endpoints": endpoints });
    fs::write(meta.join("meta.json"), text.to_string()).unwrap();
    fs::rename(&engine.certificates, tls.join("docker")).unwrap();
    config
}

/// The options that select that context.
fn by_context(config: &Path) -> [(OptionName, &str); 3] {
    [
        (OptionName::DockerHost, ""),
        (OptionName::DockerConfig, config.to_str().unwrap()),
        (OptionName::DockerContext, "far away"),
    ]
}

#[test]
fn an_engine_with_certificates_from_a_docker_context_works() {
    let (env, engine) = env();
    let endpoint = json!({ "Host": engine.host, "SkipTLSVerify": false });
    let config = context(&env, &engine, endpoint);
    let client = env.client_with(&by_context(&config));
    let image = client.ensure("hermes").unwrap();
    assert_eq!(image.endpoint, engine.host);
    assert!(env.engine.inspect(&image.reference).is_some());
}

#[test]
fn a_self_signed_engine_certificate_in_ca_pem_is_trusted() {
    let (env, _) = env();
    let folder = env.scratch().join("own");
    let engine = EngineTls::self_signed(&env.engine, &folder, Flaw::None);
    let client = env.client_with(&by_variables(&engine.host, &engine.certificates));
    assert_eq!(client.ensure("hermes").unwrap().endpoint, engine.host);
}

#[test]
fn an_invalid_self_signed_engine_certificate_is_refused() {
    for (flaw, says) in [
        (Flaw::Expired, "expired"),
        (Flaw::OtherHost, "not valid for name"),
        (Flaw::OtherKey, "BadSignature"),
    ] {
        let (env, _) = env();
        let folder = env.scratch().join("own");
        let engine = EngineTls::self_signed(&env.engine, &folder, flaw);
        let client = env.client_with(&by_variables(&engine.host, &engine.certificates));
        let error = client.ensure_err("hermes");
        assert_eq!(error.code, Code::EngineUnreachable, "{flaw:?}: {error:?}");
        assert!(error.message().contains(says), "{flaw:?}: {error:?}");
    }
}

#[test]
fn a_docker_context_with_skip_tls_verify_is_refused() {
    let (env, engine) = env();
    let endpoint = json!({ "Host": engine.host, "SkipTLSVerify": true });
    let config = context(&env, &engine, endpoint);
    let client = env.client_with(&by_context(&config));
    let error = client.ensure_err("hermes");
    assert_eq!(error.code, Code::InvalidOption, "{error:?}");
    assert!(error.message().contains("far away"), "{error:?}");
    assert!(error.hint.contains("ca.pem"), "{error:?}");
    assert!(env.is_clean());
}

#[test]
fn the_default_port_is_2375_or_2376_for_a_context_with_tls() {
    let (env, engine) = env();
    let bare = "tcp://127.0.0.1";
    let says = |options: &[(OptionName, &str)], port: u16| {
        let error = env.client_with(options).ensure_err("hermes");
        assert_eq!(error.code, Code::EngineUnreachable, "{error:?}");
        let address = format!("{bare}:{port}");
        assert!(error.message().contains(&address), "{port}: {error:?}");
    };
    says(&[(OptionName::DockerHost, bare)], 2375);
    // The docker CLI also uses 2375 for DOCKER_HOST with TLS.
    says(&by_variables(bare, &engine.certificates), 2375);
    let config = context(&env, &engine, json!({ "Host": bare }));
    says(&by_context(&config), 2376);
}

#[test]
fn an_engine_certificate_of_an_unknown_ca_is_refused() {
    let (env, engine) = env();
    let other = EngineTls::before(&env.engine, &env.scratch().join("other"));
    let client = env.client_with(&by_variables(&engine.host, &other.certificates));
    let error = client.ensure_err("hermes");
    assert_eq!(error.code, Code::EngineUnreachable, "{error:?}");
    assert!(
        error.message().contains("UnknownIssuer") || error.message().contains("BadSignature"),
        "{error:?}"
    );
    assert!(error.message().contains("DOCKER_HOST"), "{error:?}");
}

#[test]
fn a_missing_client_certificate_is_reported() {
    let (env, engine) = env();
    fs::remove_file(engine.certificates.join("cert.pem")).unwrap();
    fs::remove_file(engine.certificates.join("key.pem")).unwrap();
    let client = env.client_with(&by_variables(&engine.host, &engine.certificates));
    let error = client.ensure_err("hermes");
    assert_eq!(error.code, Code::EngineUnreachable, "{error:?}");
    assert!(error.message().contains("CertificateRequired"), "{error:?}");
}

#[test]
fn plain_tcp_to_a_tls_engine_fails_with_a_hint() {
    let (env, engine) = env();
    let client = env.client_with(&[(OptionName::DockerHost, &engine.host)]);
    let error = client.ensure_err("hermes");
    assert_eq!(error.code, Code::EngineUnreachable, "{error:?}");
    assert!(error.message().contains(&engine.host), "{error:?}");
    assert!(error.hint.contains("DOCKER_TLS_VERIFY"), "{error:?}");
}

#[test]
fn an_invalid_certificate_file_is_named_in_the_error() {
    let (env, engine) = env();
    // ca.pem is read first, so key.pem must be broken before it.
    for (name, text) in [
        (
            "key.pem",
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        ),
        ("ca.pem", "not a certificate"),
    ] {
        let file = engine.certificates.join(name);
        fs::write(&file, text).unwrap();
        let client = env.client_with(&by_variables(&engine.host, &engine.certificates));
        let error = client.ensure_err("hermes");
        assert_eq!(error.code, Code::InvalidOption, "{error:?}");
        assert!(
            error.message().contains(file.to_str().unwrap()),
            "{error:?}"
        );
        assert!(error.message().contains("DOCKER_CERT_PATH"), "{error:?}");
    }
}
