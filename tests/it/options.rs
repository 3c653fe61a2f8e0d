//! The environment variables of the contract, and their effects.

use std::collections::{BTreeSet, HashMap};
use std::sync::mpsc;

use mol::{Client, OptionName, Options};

use crate::support::child::source;
use crate::support::server::{PLAIN, dockerfile};
use crate::support::{TestClient, TestEnv, WAIT_LIMIT, write_docker_context};

/// Options from these variables and no others.
fn from_env(variables: &[(&str, &str)]) -> Options {
    let all: HashMap<&str, &str> = variables.iter().copied().collect();
    let mut options = Options::default();
    options.set_all_from(|name| all.get(name).map(|value| (*value).to_owned()));
    options
}

/// The names in the first column of the tables that begin with `| variable |` in this text.
fn documented(text: &str) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    let mut in_a_table = false;
    for line in text.lines() {
        in_a_table = line.starts_with("| variable |") || in_a_table && line.starts_with('|');
        if in_a_table {
            let column = line.split('|').nth(1).unwrap();
            names.extend(column.split('`').skip(1).step_by(2));
        }
    }
    names
}

#[test]
fn the_documented_variables_are_the_options() {
    let text = std::fs::read_to_string(source("docs/local-development.md")).unwrap();
    let mut documented = documented(&text);
    // This one decides whether a server uses the library at all.
    assert!(documented.remove("MOLECULE_IMAGE_REGISTRY"));
    let options = OptionName::ALL.iter().map(|name| name.name());
    let set_in_code = ["runtimes", "tag_arch", "pins"];
    let options: BTreeSet<&str> = options.filter(|name| !set_in_code.contains(name)).collect();
    assert_eq!(documented, options);
}

/// Compares the option names with the quoted variable names in go/mol/options.go.
#[test]
fn go_has_the_same_variables() {
    let text = std::fs::read_to_string(source("go/mol/options.go")).unwrap();
    let in_quotes = text.split('"').skip(1).step_by(2);
    let is_variable = |name: &&str| {
        let letter = |letter: char| letter.is_ascii_uppercase() || "_".contains(letter);
        name.len() > 3 && name.chars().all(letter)
    };
    let go: BTreeSet<&str> = in_quotes.filter(is_variable).collect();
    let options = OptionName::ALL.iter().map(|name| name.name());
    let options: BTreeSet<&str> = options.filter(|name| is_variable(name)).collect();
    assert_eq!(go, options);
}

/// Each MOLECULE_ variable, and DOCKER_HOST, is named in the sources of the `mol` command's settings.
#[test]
fn the_command_has_a_setting_for_each_variable_of_the_library() {
    let mut text = String::new();
    for name in ["configfile.go", "env.go"] {
        text += &std::fs::read_to_string(source("go/cmd/mol").join(name)).unwrap();
    }
    for option in OptionName::ALL {
        let name = option.name();
        if name.starts_with("MOLECULE_") || *option == OptionName::DockerHost {
            assert!(text.contains(&format!("\"{name}\"")), "{name}");
        }
    }
}

#[test]
fn an_empty_variable_counts_as_unset() {
    let env = TestEnv::new();
    let sha = env.template("hermes", dockerfile(PLAIN));
    let mut options = env.options();
    for name in OptionName::ALL {
        if !env.values().iter().any(|(set, _)| set == name) {
            options.set(*name, "");
        }
    }
    assert_eq!(
        TestClient::new(&options)
            .ensure("hermes")
            .unwrap()
            .commit_sha,
        sha
    );
}

#[test]
fn the_current_docker_context_is_used() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    let config = env.scratch().join("docker");
    let name = "the tests";
    write_docker_context(&config, name, &env.engine.url);
    let config = config.to_str().unwrap().to_owned();

    let client = env.client_with(&[
        (OptionName::DockerHost, ""),
        (OptionName::DockerConfig, &config),
        (OptionName::DockerContext, name),
    ]);
    client.ensure("hermes").unwrap();

    std::fs::write(
        format!("{config}/config.json"),
        format!("{{\"currentContext\":\"{name}\"}}"),
    )
    .unwrap();
    let client = env.client_with(&[
        (OptionName::DockerHost, ""),
        (OptionName::DockerConfig, &config),
    ]);
    client.ensure("hermes").unwrap();

    let client = env.client_with(&[
        (OptionName::DockerHost, "tcp://127.0.0.1:1"),
        (OptionName::DockerConfig, &config),
        (OptionName::DockerContext, name),
    ]);
    assert!(
        client
            .ensure_err("hermes")
            .message()
            .contains("tcp://127.0.0.1:1"),
        "DOCKER_HOST takes precedence"
    );
}

/// A proxy for one request; returns the request line.
fn proxy() -> (String, mpsc::Receiver<String>) {
    use std::io::{BufRead, BufReader, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (sender, request_line) = mpsc::channel();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(stream.try_clone().unwrap())
            .read_line(&mut line)
            .unwrap();
        stream
            .write_all(b"HTTP/1.1 418 no\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .unwrap();
        let _ = sender.send(line);
    });
    (address, request_line)
}

#[test]
fn proxy_variables_work_in_upper_and_lower_case() {
    let env = TestEnv::new();
    for (variable, prefix, expected) in [
        (
            "http_proxy",
            "http://gitea.invalid/o/t-",
            "GET http://gitea.invalid/api/v1/repos/o/t-hermes/",
        ),
        (
            "HTTP_PROXY",
            "http://gitea.invalid/o/t-",
            "GET http://gitea.invalid/api/v1/repos/o/t-hermes/",
        ),
        (
            "https_proxy",
            "https://gitea.invalid/o/t-",
            "CONNECT gitea.invalid:443 ",
        ),
        (
            "HTTPS_PROXY",
            "https://gitea.invalid/o/t-",
            "CONNECT gitea.invalid:443 ",
        ),
    ] {
        let (address, request_line) = proxy();
        let cache = env.cache();
        let options = from_env(&[
            (variable, &address),
            ("MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX", prefix),
            ("MOLECULE_LOCAL_BUILD_CACHE", cache.to_str().unwrap()),
            ("DOCKER_HOST", &env.engine.url),
        ]);
        TestClient::new(&options).ensure_err("hermes");
        let request_line = request_line
            .recv_timeout(WAIT_LIMIT)
            .unwrap_or_else(|_| panic!("{variable}: no request reached the proxy"));
        assert!(
            request_line.starts_with(expected),
            "{variable}: {request_line}"
        );
    }
}

/// As in Go's `net/http`.
#[test]
fn a_server_on_this_machine_is_reached_without_the_proxy() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    let port = env.server.url.rsplit(':').next().unwrap();
    for host in ["127.0.0.1", "localhost"] {
        let server = format!("http://{host}:{port}");
        let client = env.client_with(&[
            (
                OptionName::RepoPrefix,
                &env.server.repo_prefix.replace(&env.server.url, &server),
            ),
            (OptionName::HttpProxy, "http://127.0.0.1:1"),
        ]);
        client.ensure("hermes").unwrap();
    }
}

/// The error for a server that does not exist, with the proxy 127.0.0.1:1, at which nothing listens.
fn error_with_a_dead_proxy(scheme: &str, no_proxy: &str) -> mol::Error {
    let env = TestEnv::new();
    let proxy = "http://me:hunter2@127.0.0.1:1";
    let client = env.client_with(&[
        (
            OptionName::RepoPrefix,
            &format!("{scheme}://gitea.invalid/o/t-"),
        ),
        (OptionName::HttpProxy, proxy),
        (OptionName::HttpsProxy, proxy),
        (OptionName::NoProxy, no_proxy),
    ]);
    let error = client.ensure_err("hermes");
    assert_eq!(error.code, mol::Code::GiteaUnreachable);
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    error
}

#[test]
fn a_proxy_that_cannot_be_reached_is_named() {
    for scheme in ["http", "https"] {
        let error = error_with_a_dead_proxy(scheme, "example.com");
        let says = "cannot be reached through the proxy 127.0.0.1:1: the connection was refused";
        assert!(error.message().contains(says), "{error:?}");
        assert!(error.hint.contains("NO_PROXY"), "{error:?}");
    }
}

#[test]
fn a_host_in_no_proxy_is_reached_without_the_proxy() {
    let error = error_with_a_dead_proxy("http", "example.com,gitea.invalid");
    assert!(
        error.message().contains("the host name cannot be resolved"),
        "{error:?}"
    );
    assert!(!error.message().contains("proxy"), "{error:?}");
}

#[test]
fn an_unreadable_certificate_file_is_reported() {
    let env = TestEnv::new();
    let mut options = env.options();
    options.set(OptionName::SslCertFile, "/nowhere/ca.pem");
    options.set(OptionName::RepoPrefix, "https://gitea.invalid/o/t-");
    let error = Client::new(&options, None).unwrap_err();
    assert_eq!(error.code, mol::Code::InvalidOption);
    assert!(error.hint.contains("SSL_CERT_FILE"), "{error:?}");
}

#[test]
fn debug_output_of_options_hides_the_values() {
    let mut options = Options::default();
    options.set(OptionName::Token, "s3cr3t-t0ken");
    assert!(!format!("{options:?} {options:#?}").contains("s3cr3t"));
}

#[test]
fn the_lookup_and_the_fetch_both_go_through_the_proxy() {
    let env = TestEnv::new();
    let sha = env.template("hermes", dockerfile(PLAIN));
    // The template server answers requests for any host, as a proxy would. The host of the prefix does not exist.
    let host = env.server.url.strip_prefix("http://").unwrap();
    let prefix = env.server.repo_prefix.replace(host, "gitea.invalid");
    let client = env.client_with(&[
        (OptionName::RepoPrefix, &prefix),
        (OptionName::HttpProxy, &env.server.url),
    ]);
    let image = client.ensure("hermes").unwrap();
    assert_eq!(image.commit_sha, sha);
    assert!(!image.cache_hit);
}
