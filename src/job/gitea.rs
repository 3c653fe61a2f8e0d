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
use crate::names::image::CommitSha;
use crate::names::runtimes::Runtime;
use crate::net::http::{Answer, Http, MAX_ANSWER};
use crate::net::retry;
use crate::options::Repository;
use crate::redact::printable::quoted;

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

/// `GET /repos/{owner}/{repo}/git/refs/{ref}` (`modules/structs/repo_ref.go`).
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a reference, or a list of references")]
enum References {
    One(Object<Reference>),
    Many(Vec<Object<Reference>>),
}

#[derive(Deserialize)]
struct Reference {
    #[serde(rename = "ref")]
    name: String,
    object: Object<Target>,
}

#[derive(Deserialize)]
struct Target {
    sha: String,
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
    runtime: &Runtime,
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
    runtime: &Runtime,
    repository: &Repository,
    branch: Option<&str>,
) -> Result<Head> {
    if let Some(head) = head_of(http, repository, branch.unwrap_or(MAIN)).await? {
        return Ok(head);
    }
    if let Some(branch) = branch {
        let what = format!("the branch {} or its repository", quoted(branch));
        let hint = match http.has_token() {
            true => {
                "check MOLECULE_LOCAL_TEMPLATE_BRANCH, or unset it to build the default branch; the server \
                 answers the same where the token in MOLECULE_GITEA_TOKEN may not read the repository"
            }
            false => {
                "check MOLECULE_LOCAL_TEMPLATE_BRANCH, or unset it to build the default branch; for a \
                 private repository, set MOLECULE_GITEA_TOKEN"
            }
        };
        return Err(not_found(runtime, repository, &what).hint(hint));
    }

    let info = http.get_api(&repository.api).await?;
    if info.status == StatusCode::NOT_FOUND && info.body.is_some() {
        // Gitea answers so too for what the caller may not read.
        let hint = match http.has_token() {
            true => {
                "set MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX to a fork that has it; the server answers the \
                 same where the token in MOLECULE_GITEA_TOKEN may not read the repository"
            }
            false => {
                "set MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX to a fork that has it; for a private repository, \
                 set MOLECULE_GITEA_TOKEN"
            }
        };
        return Err(not_found(runtime, repository, "the template repository").hint(hint));
    }
    let info = expect_ok(&repository.api, info, http.has_token())?;
    let Object(info): Object<RepositoryInfo> = parse(&repository.api, info)?;
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
    let head = head_of(http, repository, &info.default_branch).await?;
    head.ok_or_else(|| {
        let what = format!("the default branch {}", quoted(&info.default_branch));
        not_found(runtime, repository, &what)
            .hint("set MOLECULE_LOCAL_TEMPLATE_BRANCH to a branch that it has")
    })
}

/// The head of a branch; `None` if the server knows no such branch or repository.
async fn head_of(http: &Http, repository: &Repository, branch: &str) -> Result<Option<Head>> {
    let url = branch_url(repository, branch);
    let answer = http.get_api(&url).await?;
    match (answer.status, &answer.body) {
        (StatusCode::NOT_FOUND, Some(_)) => Ok(None),
        // The commit's message is in it, more than once if the commit is signed.
        (StatusCode::OK, None) => head_of_ref(http, repository, branch).await,
        _ => head_from(branch, &url, answer, http.has_token()).map(Some),
    }
}

/// The same, by an answer that has no commit's message in it: a list of all references whose names begin
/// with the branch's. Where there is only one, some versions answer with that instead.
async fn head_of_ref(http: &Http, repository: &Repository, branch: &str) -> Result<Option<Head>> {
    let url = ref_url(repository, branch);
    let answer = http.get_api(&url).await?;
    if answer.status == StatusCode::NOT_FOUND && answer.body.is_some() {
        return Ok(None);
    }
    let found = match parse(&url, expect_ok(&url, answer, http.has_token())?)? {
        References::One(Object(found)) => vec![found],
        References::Many(found) => found.into_iter().map(|Object(found)| found).collect(),
    };
    let wanted = format!("refs/heads/{branch}");
    let Some(found) = found.into_iter().find(|found| found.name == wanted) else {
        return Ok(None);
    };
    let Object(target) = found.object;
    let commit = commit_id(&url, "object.sha", &target.sha)?;
    Ok(Some(Head {
        branch: branch.to_owned(),
        commit,
    }))
}

pub(crate) fn head_from(branch: &str, url: &Url, answer: Answer, has_token: bool) -> Result<Head> {
    let body = expect_ok(url, answer, has_token)?;
    let Object(Branch {
        commit: Object(commit),
    }) = parse(url, body)?;
    let commit = commit_id(url, "commit.id", &commit.id)?;
    Ok(Head {
        branch: branch.to_owned(),
        commit,
    })
}

fn commit_id(url: &Url, field: &str, id: &str) -> Result<CommitSha> {
    CommitSha::parse(id).ok_or_else(|| {
        let what = "is not a full commit id (40 or 64 lower-case hexadecimal digits)";
        bad(url, &format!("its {field} {what}"))
    })
}

/// Finds out why git refuses a commit: the repository or the commit may not be there, or not any more if a lookup has
/// found them. `refused` is what git said.
pub(crate) async fn explain_refusal(
    http: &Http,
    repository: &Repository,
    commit: &CommitSha,
    looked_up: bool,
    refused: Error,
) -> Error {
    let url = &repository.url;
    let since = match looked_up {
        true => " any more, since its branch was looked up",
        false => "",
    };
    let absent = |what: String, hint: &'static str| {
        let text = format!("{what}: {}", refused.message);
        Error::new(Code::RepoNotFound, text).hint(hint)
    };
    match http.get_api(&repository.api).await {
        Ok(answer) if answer.status == StatusCode::NOT_FOUND => absent(
            format!("{url} is not there{since}"),
            match (looked_up, http.has_token()) {
                (true, true) => "see whether it was deleted, or the token may not read it any more",
                (true, false) => "see whether it was deleted, or made private",
                (false, true) => "see whether it exists, and whether the token may read it",
                (false, false) => {
                    "see whether it exists; for a private one, set MOLECULE_GITEA_TOKEN"
                }
            },
        ),
        Ok(answer) if matches!(answer.status.as_u16(), 401 | 403) => {
            let Err(mut error) = expect_ok(&repository.api, answer, http.has_token()) else {
                return refused;
            };
            let message = error.message;
            error.message = format!("{url} may not be read{since}: {message}");
            error
        }
        Ok(answer) if answer.status == StatusCode::OK && refused.code == Code::Fetch => {
            let mut url = repository.api.clone();
            url.set_path(&format!("{}/git/commits/{commit}", url.path()));
            // Without what makes the answer long.
            url.set_query(Some("stat=false&verification=false&files=false"));
            match http.get_api(&url).await {
                Ok(answer) if answer.status == StatusCode::NOT_FOUND => {
                    let mut error = match looked_up {
                        true => absent(
                            format!("the commit {commit} is gone from {}", repository.url),
                            "try again: its branch was force-pushed since it was looked up, and the next \
                             call sees its new head",
                        ),
                        false => absent(
                            format!("{} does not have the commit {commit}", repository.url),
                            "check the commit: it may be another repository's, or of a branch that was deleted",
                        ),
                    };
                    error.code = Code::Fetch;
                    error
                }
                _ => refused,
            }
        }
        _ => refused,
    }
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

/// `<api>/git/refs/heads/<branch>`, whose path has the branch's slashes as they are.
fn ref_url(repository: &Repository, branch: &str) -> Url {
    let mut url = repository.api.clone();
    let names = branch
        .split('/')
        .map(|name| utf8_percent_encode(name, SEGMENT).to_string());
    let path = format!(
        "{}/git/refs/heads/{}",
        url.path(),
        names.collect::<Vec<_>>().join("/")
    );
    url.set_path(&path);
    url
}

/// What a server says besides its status, for an error.
pub(crate) fn says(reason: &str) -> String {
    match reason.trim_end_matches('.') {
        "" => String::new(),
        reason => format!("; the server says: {reason}"),
    }
}

/// The body of a 200, or what another status means.
fn expect_ok(url: &Url, answer: Answer, has_token: bool) -> Result<bytes::Bytes> {
    let (status, retry, says) = (answer.status, answer.retry, says(&answer.reason));
    let Some(body) = answer.body else {
        return Err(bad(url, &format!("it is larger than {MAX_ANSWER} bytes")));
    };
    match status.as_u16() {
        200 => Ok(body),
        401 | 403 => Err(
            Error::new(Code::Auth, format!("{url} refuses access ({status}){says}"))
                .hint(access_hint(status, has_token)),
        ),
        408 | 429 | 500..=599 => Err(Error::new(
            Code::GiteaUnreachable,
            format!(
                "{url} has a problem ({status}){}{says}",
                retry::asked(retry)
            ),
        )
        .hint("try again in a while")
        .retryable(retry)),
        _ => Err(bad(url, &format!("the status is {status}{says}"))),
    }
}

/// What to do where access is refused. Gitea answers 401 where it wants a token or does not know the one it
/// got, and 403 where that is not enough: its scopes, or a server that lets nobody in without one.
pub(crate) fn access_hint(status: StatusCode, has_token: bool) -> &'static str {
    match (status, has_token) {
        (_, false) => "set MOLECULE_GITEA_TOKEN to a token that may read the template repositories",
        (StatusCode::UNAUTHORIZED, true) => {
            "the server does not accept the token in MOLECULE_GITEA_TOKEN: replace it if it is wrong or \
             has expired, or unset it if the repositories are public"
        }
        (_, true) => {
            "give the token in MOLECULE_GITEA_TOKEN the scope read:repository for this repository, or \
             replace it by one that has it"
        }
    }
}

fn parse<T: for<'de> Deserialize<'de>>(url: &Url, body: bytes::Bytes) -> Result<T> {
    debug_assert!(body.len() <= MAX_ANSWER);
    // serde_json does not look at the bytes of a string that nobody asks for.
    let body = str::from_utf8(&body).map_err(|_| bad(url, "it is not UTF-8"))?;
    serde_json::from_str(body).map_err(|error| {
        bad(
            url,
            &format!("it is not the JSON that was expected: {}", reason(&error)),
        )
    })
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

fn not_found(runtime: &Runtime, repository: &Repository, what: &str) -> Error {
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
