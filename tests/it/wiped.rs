//! The token in the memory of the process: it is wiped when the library is done with it, wherever the
//! library has put it itself (promise P6; what it cannot promise is in docs/security.md).

use std::io::Write;
use std::process::Stdio;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mol::OptionName;

use crate::support::Bed;
use crate::support::child::{Link, command, program, text};
use crate::support::server::dockerfile;

/// No word that a compiler or a library could hold by chance, and of more than one kind of letter.
const TOKEN: &str = "Tk7f3c0b5e9d2A4f6188c1e0b7a6d5943210fedQ";

/// One spelling, and how often it was in memory while the client was alive, and after its end.
#[derive(Debug)]
struct Found {
    spelling: String,
    alive: u32,
    gone: u32,
}

/// Makes a client, has it do a job, frees it, and searches its memory.
fn search(bed: &Bed, more: &[(OptionName, &str)]) -> (String, Vec<Found>) {
    // The part of base64 that depends on the token alone, as in the header for git.
    let basic = STANDARD.encode(format!("x-access-token:{TOKEN}"));
    let spellings = [
        TOKEN.to_owned(),
        TOKEN.to_ascii_uppercase(),
        TOKEN.to_ascii_lowercase(),
        basic[20..].trim_end_matches('=').to_owned(),
        // A part of it is too much as well.
        TOKEN[8..].to_owned(),
    ];
    let mut input = format!("{TOKEN}\n");
    for spelling in &spellings {
        input.extend(spelling.bytes().map(|byte| format!("{:02x}", byte ^ 0x5a)));
        input.push('\n');
    }
    let mut command = command(bed, &program("wiped", Link::Shared));
    for (name, value) in more {
        command.env(name.name(), value);
    }
    let mut child = command
        .arg("hermes")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    let status = text.lines().find_map(|line| line.strip_prefix("status "));
    let numbers = text.lines().filter_map(|line| line.strip_prefix("found "));
    let found = numbers.zip(spellings).map(|(line, spelling)| {
        let numbers: Vec<u32> = line.split(' ').map(|word| word.parse().unwrap()).collect();
        Found {
            spelling,
            alive: numbers[1],
            gone: numbers[2],
        }
    });
    (status.unwrap().to_owned(), found.collect())
}

#[test]
fn the_token_is_wiped_with_the_client() {
    let bed = Bed::new();
    // It makes every header, and sends none.
    let nobody = "http://127.0.0.1:1/o/workspace-template-";
    let (status, found) = search(&bed, &[(OptionName::RepoPrefix, nobody)]);
    assert_eq!(status, "gitea_unreachable");
    assert!(
        found[0].alive > 0,
        "the search finds it while it is there: {found:?}"
    );
    for found in found {
        assert_eq!(found.gone, 0, "{} is still there", found.spelling);
    }
}

#[test]
fn what_is_left_of_a_job_is_one_buffer_of_the_http_stack() {
    let bed = Bed::with(&["--token", TOKEN]);
    bed.template("hermes", dockerfile("FROM scratch\nCOPY Dockerfile /\n"));
    let (status, found) = search(&bed, &[]);
    assert_eq!(status, "ok");
    // The head of the last request of its one connection, which the stack frees as it is.
    let left: u32 = found[..4].iter().map(|found| found.gone).sum();
    assert!(left <= 1, "{found:?}");
}
