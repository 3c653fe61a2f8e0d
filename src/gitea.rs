//! Step two of the pipeline: which commit is the head of the branch?
//!
//! The shapes are those of Gitea's API v1, `GET /repos/{owner}/{repo}` and
//! `GET /repos/{owner}/{repo}/branches/{branch}` (`modules/structs/repo.go` and `repo_branch.go` in
//! go-gitea/gitea). Only the fields that are needed are read; all others may change.

use std::fmt;
use std::marker::PhantomData;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::StatusCode;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, Visitor};
use url::Url;

use crate::error::{Code, Error, Result};
use crate::http::{Answer, Http, MAX_ANSWER};
use crate::image::CommitSha;
use crate::options::Repository;
use crate::printable::quoted;
use crate::runtimes::{MIRRORED, Runtime};

/// The branch that is built when none is set and the repository has it.
const MAIN: &str = "main";

/// What stands in a path segment as it is (RFC 3986, unreserved characters).
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The head of a branch.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) branch: String,
    pub(crate) commit: CommitSha,
}

#[derive(Deserialize)]
struct Branch {
    commit: Object<Commit>,
}

#[derive(Deserialize)]
struct Commit {
    id: String,
}

#[derive(Deserialize)]
struct RepositoryInfo {
    #[serde(default)]
    default_branch: String,
    #[serde(default)]
    empty: bool,
}

/// Finds the commit to build: the head of `branch` if one is set; else of `main`; else of the
/// repository's default branch. In the usual case that is one call. Every error names the repository.
pub(crate) async fn head(
    http: &Http,
    runtime: Runtime,
    repository: &Repository,
    branch: Option<&str>,
) -> Result<Head> {
    let head = ask(http, runtime, repository, branch).await;
    head.and_then(|head| not_the_token(http, repository, head))
        .map_err(|mut error| {
            if !error.message.contains(repository.url.as_str()) {
                let message = error.message;
                error.message = format!("{} cannot be looked up: {message}", repository.url);
            }
            error
        })
}

/// The commit is in the names of images and folders, which are never masked. No commit has the token in
/// its id by chance.
fn not_the_token(http: &Http, repository: &Repository, head: Head) -> Result<Head> {
    match http.token_is_in(head.commit.as_str()) {
        false => Ok(head),
        true => Err(bad(&repository.api, "its commit.id holds the token")),
    }
}

async fn ask(
    http: &Http,
    runtime: Runtime,
    repository: &Repository,
    branch: Option<&str>,
) -> Result<Head> {
    let wanted = branch.unwrap_or(MAIN);
    let url = branch_url(repository, wanted);
    let answer = http.get_api(&url).await?;
    if answer.status != StatusCode::NOT_FOUND {
        return head_from(wanted, &url, answer);
    }
    if let Some(branch) = branch {
        return Err(not_found(
            runtime,
            repository,
            &format!("the branch {} or its repository", quoted(branch)),
        )
        .hint("check MOLECULE_LOCAL_TEMPLATE_BRANCH, or unset it to build the default branch"));
    }

    let info = http.get_api(&repository.api).await?;
    if info.status == StatusCode::NOT_FOUND {
        return Err(not_found(runtime, repository, "the template repository").hint(format!(
            "mirrored today: {}; for another runtime, set MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX to a \
             fork that has it; for a private repository, set MOLECULE_GITEA_TOKEN",
            MIRRORED.join(", ")
        )));
    }
    let info: RepositoryInfo = parse(&repository.api, expect_ok(&repository.api, info)?)?;
    if info.empty || info.default_branch.is_empty() {
        return Err(Error::new(
            Code::RepoNotFound,
            format!(
                "the template repository {} is empty: it has no commit yet",
                repository.url
            ),
        )
        .hint("push a commit to it, and try again"));
    }
    let url = branch_url(repository, &info.default_branch);
    let answer = http.get_api(&url).await?;
    if answer.status == StatusCode::NOT_FOUND {
        return Err(not_found(
            runtime,
            repository,
            &format!("the default branch {}", quoted(&info.default_branch)),
        )
        .hint("set MOLECULE_LOCAL_TEMPLATE_BRANCH to a branch that it has"));
    }
    head_from(&info.default_branch, &url, answer)
}

pub(crate) fn head_from(branch: &str, url: &Url, answer: Answer) -> Result<Head> {
    let body = expect_ok(url, answer)?;
    let Object(commit) = parse::<Branch>(url, body)?.commit;
    let commit = CommitSha::parse(&commit.id).ok_or_else(|| {
        bad(
            url,
            "its commit.id is not a full commit id (40 or 64 lower-case hexadecimal digits)",
        )
    })?;
    Ok(Head {
        branch: branch.to_owned(),
        commit,
    })
}

/// `<api>/branches/<branch>`, with `/` and everything that is not plain ASCII escaped.
pub(crate) fn branch_url(repository: &Repository, branch: &str) -> Url {
    let mut url = repository.api.clone();
    let path = format!(
        "{}/branches/{}",
        url.path(),
        utf8_percent_encode(branch, SEGMENT)
    );
    url.set_path(&path);
    url
}

/// The body of a 200, or what another status means.
fn expect_ok(url: &Url, answer: Answer) -> Result<bytes::Bytes> {
    let (status, retry) = (answer.status, answer.retry);
    match status.as_u16() {
        200 => Ok(answer.body),
        401 | 403 => Err(Error::new(
            Code::Auth,
            format!("{url} refuses access ({status})"),
        )
        .hint(
            "set MOLECULE_GITEA_TOKEN to a token that may read the template repositories, or unset \
             it if they are public and the token has expired",
        )),
        408 | 429 | 500..=599 => Err(Error::new(
            Code::GiteaUnreachable,
            format!("{url} has a problem ({status})"),
        )
        .hint("try again in a while")
        .once_more(retry)),
        _ => Err(bad(url, &format!("the status is {status}"))),
    }
}

fn parse<T: for<'de> Deserialize<'de>>(url: &Url, body: bytes::Bytes) -> Result<T> {
    debug_assert!(body.len() <= MAX_ANSWER);
    // serde_json does not look at the bytes of a string that nobody asks for.
    let body = str::from_utf8(&body).map_err(|_| bad(url, "it is not UTF-8"))?;
    let Object(answer) = serde_json::from_str(body).map_err(|error| {
        bad(
            url,
            &format!("it is not the JSON that was expected: {}", reason(&error)),
        )
    })?;
    Ok(answer)
}

/// What serde says, without the text of the answer that it quotes: that is escaped already, so that a
/// token could not be found in it.
fn reason(error: &serde_json::Error) -> String {
    let said = error.to_string();
    match (said.split_once('"'), said.rsplit_once('"')) {
        (Some((before, _)), Some((_, after))) => format!("{before}\"…\"{after}"),
        _ => said,
    }
}

/// An object. By itself, serde would take a list of a struct's values for the struct as well.
pub(crate) struct Object<T>(pub(crate) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct Reader<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Reader<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                map: A,
            ) -> std::result::Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        from.deserialize_map(Reader(PhantomData))
    }
}

fn not_found(runtime: Runtime, repository: &Repository, what: &str) -> Error {
    Error::new(
        Code::RepoNotFound,
        format!(
            "{what} for the runtime {runtime} is not there: {}",
            repository.url
        ),
    )
}

fn bad(url: &Url, what: &str) -> Error {
    Error::new(
        Code::BadResponse,
        format!("{url} did not answer as Gitea does: {what}"),
    )
    .hint("check that MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX is the address of a Gitea, and that no proxy or login page stands in between")
}
