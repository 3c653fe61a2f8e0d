//! What a real Gitea was asked and what it answered, without what differs from run to run.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::server::{Answer, As, Server};

/// One question, and the answer to it.
struct Row {
    name: &'static str,
    what: &'static str,
    who: &'static str,
    service: &'static str,
    answer: Value,
}

/// All of them, in order.
#[derive(Default)]
pub struct Record {
    rows: Vec<Row>,
}

impl Record {
    /// Asks, and checks the status. `what` is the state of affairs, `who` is who asks.
    pub fn ask(
        &mut self,
        server: &Server<'_>,
        name: &'static str,
        (what, who): (&'static str, &'static str),
        (path, token): (&str, &As),
        status: u16,
    ) -> Answer {
        let answer = server.ask("GET", path, token, None);
        assert_eq!(
            answer.status, status,
            "{name}: {what}, {who}: {}",
            answer.body
        );
        let url = &server.url;
        let mut row = Map::new();
        row.insert("path".into(), json!(scrubbed(path, url)));
        row.insert("status".into(), json!(status));
        row.insert("content_type".into(), json!(answer.content_type));
        if !answer.location.is_empty() {
            row.insert("location".into(), json!(scrubbed(&answer.location, url)));
        }
        let body = match serde_json::from_str(&answer.body) {
            Ok(mut body) => {
                scrub(&mut body, url);
                body
            }
            // Pages and packets are not compared.
            Err(_) if answer.content_type.starts_with("text/plain") => json!(answer.body),
            Err(_) => Value::Null,
        };
        row.insert("body".into(), body);
        // What follows the name of the repository.
        let rest = path.splitn(7, '/').nth(6).unwrap_or_default();
        let service = match rest.strip_prefix("git/").unwrap_or(rest).split('/').next() {
            _ if !path.starts_with("/api/") => "git",
            Some("branches") => "API, `branches`",
            Some("refs") => "API, `git/refs`",
            Some("commits") => "API, `git/commits`",
            _ => "API, the repository",
        };
        self.rows.push(Row {
            name,
            what,
            who,
            service,
            answer: row.into(),
        });
        answer
    }

    /// The answers as files, one each.
    pub fn write_vectors(&self, folder: &Path) {
        let _ = std::fs::remove_dir_all(folder);
        std::fs::create_dir_all(folder).unwrap();
        for row in &self.rows {
            let text = serde_json::to_string_pretty(&row.answer).unwrap();
            std::fs::write(folder.join(format!("{}.json", row.name)), text + "\n").unwrap();
        }
    }

    /// The table, as Markdown.
    pub fn table(&self) -> String {
        let mut table = "| what | client | service | status | answer |\n\
             | --- | --- | --- | --- | --- |\n"
            .to_owned();
        for row in &self.rows {
            let answer = &row.answer;
            let says = match (&answer["location"], &answer["body"]) {
                (Value::String(location), _) => format!("redirect to `{location}`"),
                (_, Value::String(text)) => format!("`{}`", text.trim()),
                (_, Value::Object(body)) if body.contains_key("message") => {
                    format!("`{}`", body["message"].as_str().unwrap_or_default())
                }
                (_, Value::Object(body)) if body.contains_key("sha") => "the commit".into(),
                (_, Value::Object(body)) if body.contains_key("commit") => "the branch".into(),
                (_, Value::Object(body)) if body.contains_key("full_name") => {
                    "the repository".into()
                }
                (Value::Null, Value::Null) => "git packets".into(),
                (_, Value::Array(list)) => format!("a list of {}", list.len()),
                _ => String::new(),
            };
            let (what, who, by, status) = (row.what, row.who, row.service, &answer["status"]);
            writeln!(table, "| {what} | {who} | {by} | {status} | {says} |").unwrap();
        }
        table
    }
}

/// Without addresses, ids and dates.
fn scrub(value: &mut Value, url: &str) {
    match value {
        Value::String(text) => *text = scrubbed(text, url),
        Value::Array(list) => list.iter_mut().for_each(|item| scrub(item, url)),
        Value::Object(fields) => {
            for (name, field) in fields {
                match name.as_str() {
                    "id" | "size" if field.is_number() => *field = json!(1),
                    _ => scrub(field, url),
                }
            }
        }
        _ => {}
    }
}

fn scrubbed(text: &str, url: &str) -> String {
    let text = text.replace(url, "http://gitea.example.com");
    // A date, of this run or of none.
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
                // Commits, and hashes of what is in a user's name.
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
