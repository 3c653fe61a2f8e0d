//! Records requests to a real Gitea and its responses, with the parts that differ between runs replaced.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::server::{As, Response, Server};

/// One request and its response.
struct Row {
    name: &'static str,
    case: &'static str,
    client: &'static str,
    service: &'static str,
    response: Value,
}

/// All requests, in order.
#[derive(Default)]
pub struct Record {
    rows: Vec<Row>,
}

impl Record {
    /// Sends a request and checks the status. `case` and `client` describe it in the table.
    pub fn request(
        &mut self,
        server: &Server<'_>,
        name: &'static str,
        (case, client): (&'static str, &'static str),
        (path, token): (&str, &As),
        status: u16,
    ) -> Response {
        let response = server.request("GET", path, token, None);
        assert_eq!(
            response.status, status,
            "{name}: {case}, {client}: {}",
            response.body
        );
        let url = &server.url;
        let mut row = Map::new();
        row.insert("path".into(), json!(scrubbed(path, url)));
        row.insert("status".into(), json!(status));
        row.insert("content_type".into(), json!(response.content_type));
        if !response.location.is_empty() {
            row.insert("location".into(), json!(scrubbed(&response.location, url)));
        }
        let body = match serde_json::from_str(&response.body) {
            Ok(mut body) => {
                scrub(&mut body, url);
                body
            }
            // HTML pages and git packets are not compared.
            Err(_) if response.content_type.starts_with("text/plain") => json!(response.body),
            Err(_) => Value::Null,
        };
        row.insert("body".into(), body);
        // The part after the name of the repository.
        let rest = path.splitn(7, '/').nth(6).unwrap_or_default();
        let service = match rest.strip_prefix("git/").unwrap_or(rest).split('/').next() {
            _ if !path.starts_with("/api/") => "git",
            Some("branches") => "API, `branches`",
            Some("refs") => "API, `git/refs`",
            Some("commits") => "API, `git/commits`",
            Some("trees") => "API, `git/trees`",
            _ => "API, the repository",
        };
        self.rows.push(Row {
            name,
            case,
            client,
            service,
            response: row.into(),
        });
        response
    }

    /// Writes one file per response.
    pub fn write_vectors(&self, folder: &Path) {
        let _ = std::fs::remove_dir_all(folder);
        std::fs::create_dir_all(folder).unwrap();
        for row in &self.rows {
            let text = serde_json::to_string_pretty(&row.response).unwrap();
            std::fs::write(folder.join(format!("{}.json", row.name)), text + "\n").unwrap();
        }
    }

    /// The table, as Markdown.
    pub fn table(&self) -> String {
        let mut table = "| case | client | service | status | response |\n\
             | --- | --- | --- | --- | --- |\n"
            .to_owned();
        for row in &self.rows {
            let response = &row.response;
            let says = match (&response["location"], &response["body"]) {
                (Value::String(location), _) => format!("to `{location}`"),
                (_, Value::String(text)) => format!("`{}`", text.trim()),
                (_, Value::Object(body)) if body.contains_key("message") => {
                    format!("`{}`", body["message"].as_str().unwrap_or_default())
                }
                (_, Value::Object(body)) if body.contains_key("sha") => "the commit".into(),
                (_, Value::Object(body)) if body.contains_key("commit") => "the branch".into(),
                (_, Value::Object(body)) if body.contains_key("full_name") => {
                    "the repository".into()
                }
                (Value::Null, Value::Null) => "packets of git".into(),
                (_, Value::Array(list)) => format!("a list of {}", list.len()),
                _ => String::new(),
            };
            let (case, client, service, status) =
                (row.case, row.client, row.service, &response["status"]);
            writeln!(
                table,
                "| {case} | {client} | {service} | {status} | {says} |"
            )
            .unwrap();
        }
        table
    }
}

/// Replaces addresses, ids and dates.
fn scrub(value: &mut Value, url: &str) {
    match value {
        Value::String(text) => *text = scrubbed(text, url),
        Value::Array(list) => list.iter_mut().for_each(|item| scrub(item, url)),
        Value::Object(fields) => {
            for (name, field) in fields {
                match name.as_str() {
                    "id" | "size" if field.is_number() => *field = json!(1),
                    // Gitea detects it in the background.
                    "language" => *field = json!(""),
                    _ => scrub(field, url),
                }
            }
        }
        _ => {}
    }
}

fn scrubbed(text: &str, url: &str) -> String {
    let text = text.replace(url, "http://gitea.example.com");
    // A date, of this run or the zero date.
    let digits = |text: &str| text.bytes().filter(u8::is_ascii_digit).count();
    if text.len() >= 20 && text.as_bytes()[10] == b'T' && digits(&text) >= 14 {
        return "2026-01-01T00:00:00Z".into();
    }
    let mut out = String::new();
    let mut word = String::new();
    for c in text.chars().chain(['\0']) {
        match c {
            '0'..='9' | 'a'..='f' => word.push(c),
            _ => {
                // Commit ids and other hashes.
                let hash = word.len() >= 32;
                out.push_str(&if hash {
                    "0123456789".repeat(7)[..word.len()].to_owned()
                } else {
                    word
                });
                word = String::new();
                out.extend((c != '\0').then_some(c));
            }
        }
    }
    out
}
