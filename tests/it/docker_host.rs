//! `DOCKER_HOST` and the host of a docker context are parsed as the docker CLI does.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use mol::event::Kind;
use mol::{Code, OptionName};
use serde_json::json;

use crate::support::engine::BUSYBOX;
use crate::support::server::dockerfile;
use crate::support::{Engine, TestEnv, docker_context_id, lock};

/// A reverse proxy with virtual hosts in front of an engine. Requests with another Host header are
/// answered with 421, and the engine is below a path.
struct VirtualHost {
    /// `127.0.0.1:PORT`
    host: String,
    /// The first line of each request, without the engine's path prefix.
    requests: Arc<Mutex<Vec<String>>>,
}

impl VirtualHost {
    /// Runs until the test process exits.
    fn before(engine: &Engine, path: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let socket = engine.url.strip_prefix("unix://").unwrap().to_owned();
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let (name, seen) = (host.clone(), Arc::clone(&requests));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (socket, name, seen) = (socket.clone(), name.clone(), Arc::clone(&seen));
                std::thread::spawn(move || serve(client, &socket, &name, path, &seen));
            }
        });
        Self { host, requests }
    }
}

/// Serves one request, then closes the connection.
fn serve(
    mut client: TcpStream,
    socket: &str,
    name: &str,
    path: &str,
    seen: &Mutex<Vec<String>>,
) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines: Vec<&str> = head.trim_end().split("\r\n").collect();
    let mut words = lines[0].splitn(2, ' ');
    let (method, rest) = (words.next()?, words.next()?);
    let hosts: Vec<&str> = lines
        .iter()
        .filter_map(|line| {
            line.to_ascii_lowercase()
                .starts_with("host:")
                .then_some(&line[5..])
        })
        .map(str::trim)
        .collect();
    let below = rest.strip_prefix(path).filter(|rest| rest.starts_with('/'));
    let refused = match (hosts.as_slice(), below) {
        ([host], Some(_)) if *host == name => None,
        ([host], None) if *host == name => Some("404 Not Found"),
        _ => Some("421 Misdirected Request"),
    };
    if let Some(status) = refused {
        let answer = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
        client.write_all(answer.as_bytes()).ok()?;
        return None;
    }
    let first = format!("{method} {}", below?);
    lock(seen).push(first.clone());
    lines[0] = &first;
    if !head.to_ascii_lowercase().contains("upgrade") {
        lines.push("Connection: close");
    }
    let mut engine = UnixStream::connect(socket).ok()?;
    engine
        .write_all((lines.join("\r\n") + "\r\n\r\n").as_bytes())
        .ok()?;
    let (mut from, mut to) = (client.try_clone().ok()?, engine.try_clone().ok()?);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let _ = std::io::copy(&mut engine, &mut client);
    let _ = client.shutdown(Shutdown::Both);
    Some(())
}

fn template(env: &TestEnv) {
    let text = format!(
        "FROM {BUSYBOX}\nCOPY Dockerfile /\nLABEL only={}\n",
        env.isolation
    );
    env.template("hermes", dockerfile(&text));
}

#[test]
fn an_engine_behind_a_virtual_host_with_a_path_works() {
    for buildkit in ["1", "0"] {
        let env = TestEnv::new();
        template(&env);
        let proxy = VirtualHost::before(&env.engine, "/docker/engine-1");
        // As read from a file: with a line break, and a path that is not normalized.
        let given = format!(" tcp://{}//docker/./x/../engine-1/\n", proxy.host);
        let client = env.client_with(&[
            (OptionName::DockerHost, &given),
            (OptionName::DockerBuildkit, buildkit),
        ]);
        let image = client.ensure("hermes").unwrap();
        assert!(env.engine.inspect(&image.reference).is_some());
        assert!(client.ensure("hermes").unwrap().cache_hit);
        let requests = lock(&proxy.requests).join("\n");
        for part in ["GET /version", "/build?", "/images/", "/tag?"] {
            assert!(requests.contains(part), "{part}: {requests}");
        }
        assert_eq!(requests.contains("/session"), buildkit == "1", "{requests}");

        // The endpoint that is shown can be used as DOCKER_HOST, here and for the docker command.
        let shown = format!("tcp://{}/docker/engine-1", proxy.host);
        assert_eq!(image.endpoint, shown);
        let begun = &client.of_kind(Kind::BuildStarted)[0];
        assert_eq!(begun.endpoint.as_deref(), Some(shown.as_str()));
        let again = env.client_with(&[(OptionName::DockerHost, &shown)]);
        assert!(again.ensure("hermes").unwrap().cache_hit);
    }
}

#[test]
fn an_address_without_a_scheme_means_tcp() {
    let env = TestEnv::new();
    template(&env);
    let proxy = VirtualHost::before(&env.engine, "");
    let client = env.client_with(&[(OptionName::DockerHost, &proxy.host)]);
    let image = client.ensure("hermes").unwrap();
    assert_eq!(image.endpoint, format!("tcp://{}", proxy.host));

    // Without a host, it is localhost.
    let port = proxy.host.rsplit(':').next().unwrap();
    let client = env.client_with(&[(OptionName::DockerHost, &format!(":{port}"))]);
    let error = client.ensure_err("hermes");
    assert_eq!(error.code, Code::EngineUnreachable, "{error:?}");
    assert!(
        error
            .message()
            .contains(&format!("tcp://localhost:{port} ")),
        "{error:?}"
    );
    assert!(error.message().contains("421"), "{error:?}");
}

#[test]
fn the_host_of_a_docker_context_may_have_a_path() {
    let env = TestEnv::new();
    template(&env);
    let proxy = VirtualHost::before(&env.engine, "/p");
    let config = env.scratch().join("docker");
    let id = docker_context_id("work");
    let meta = config.join("contexts/meta").join(id);
    std::fs::create_dir_all(&meta).unwrap();
    let host = format!("tcp://{}/p", proxy.host);
    // As docker: field names in any case, and text after the JSON value is ignored.
    let text = json!({ "name": "work", "ENDPOINTS": { "docker": { "host": host, "SkipTLSVerify": null } } });
    std::fs::write(meta.join("meta.json"), format!("{text} and more")).unwrap();
    std::fs::write(
        config.join("config.json"),
        r#"{"CurrentContext": "work"} // mine"#,
    )
    .unwrap();
    let client = env.client_with(&[
        (OptionName::DockerHost, ""),
        (OptionName::DockerConfig, config.to_str().unwrap()),
    ]);
    assert_eq!(client.ensure("hermes").unwrap().endpoint, host);
}

#[test]
fn an_invalid_docker_host_is_refused_without_showing_it() {
    let env = TestEnv::new();
    template(&env);
    for host in [
        "nonsense://me:secret@host",
        "ssh://me:secret@host",
        "fd://",
        "npipe:////./pipe/x",
    ] {
        let client = env.client_with(&[
            (OptionName::DockerHost, host),
            (OptionName::SearchPath, "/usr/bin"),
        ]);
        let error = client.ensure_err("hermes");
        assert_eq!(error.code, Code::InvalidOption, "{error:?}");
        let shown = format!("{error:?}");
        assert!(!shown.contains("secret"), "{shown}");
        // Masking the hint again, as a host's log may do, changes nothing.
        assert_eq!(mol::redact::mask_token(&error.hint, ""), error.hint);
        assert!(error.hint.contains("ssh://host"), "{error:?}");
    }
}
