//! The commit at the head of a branch, from the template server: the first step of the job.
//!
//! The shapes are those of Gitea's API v1, `GET /repos/{owner}/{repo}` and
//! `GET /repos/{owner}/{repo}/branches/{branch}` (`modules/structs/repo.go` and `repo_branch.go` in
//! go-gitea/gitea). Only the fields that are used are read; all others may change.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::StatusCode;
use serde::Deserialize;
use url::Url;

use crate::error::{Code, Error, Result};
use crate::names::commit::CommitSha;
use crate::names::runtimes::Runtime;
use crate::net::http::{Answer, HINT_NO_GITEA, Http, MAX_ANSWER};
use crate::net::json::Object;
use crate::net::retry;
use crate::options::Repository;
use crate::printable::quoted;

/// The branch to build if none is set, and the repository has it.
const MAIN: &str = "main";

/// Characters that need no escape in a path segment (RFC 3986, unreserved characters).
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
enum RefsAnswer {
    One(Object<Reference>),
    Many(Vec<Object<Reference>>),
}

#[derive(Deserialize)]
struct Reference {
    #[serde(rename = "ref")]
    name: String,
    object: Object<GitObject>,
}

#[derive(Deserialize)]
struct GitObject {
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
/// repository's default branch. Usually this is one request. Every error names the repository.
pub(crate) async fn head(
    http: &Http,
    runtime: &Runtime,
    repository: &Repository,
    branch: Option<&str>,
) -> Result<Head> {
    let failed =
        |error: Error| error.context(format_args!("{} cannot be looked up", repository.url));
    if let Some(head) = head_of(http, repository, branch.unwrap_or(MAIN))
        .await
        .map_err(failed)?
    {
        return Ok(head);
    }
    if let Some(branch) = branch {
        let what = format!("the branch {} or its repository", quoted(branch));
        let hint = match http.has_token() {
            true => {
                "check MOLECULE_LOCAL_TEMPLATE_BRANCH, or unset it to build the default branch; the server \
                 gives the same answer if the token in MOLECULE_GITEA_TOKEN may not read the repository"
            }
            false => {
                "check MOLECULE_LOCAL_TEMPLATE_BRANCH, or unset it to build the default branch; for a \
                 private repository, set MOLECULE_GITEA_TOKEN"
            }
        };
        return Err(not_found(runtime, repository, &what).hint(hint));
    }

    let Some(info) = info(http, repository).await.map_err(failed)? else {
        // Gitea gives the same answer for a repository that the caller may not read.
        let hint = match http.has_token() {
            true => {
                "set MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX to a fork that has it; the server gives the same \
                 answer if the token in MOLECULE_GITEA_TOKEN may not read the repository"
            }
            false => {
                "set MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX to a fork that has it; for a private repository, \
                 set MOLECULE_GITEA_TOKEN"
            }
        };
        return Err(not_found(runtime, repository, "the template repository").hint(hint));
    };
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
    let head = head_of(http, repository, &info.default_branch)
        .await
        .map_err(failed)?;
    head.ok_or_else(|| {
        let what = format!("the default branch {}", quoted(&info.default_branch));
        not_found(runtime, repository, &what)
            .hint("set MOLECULE_LOCAL_TEMPLATE_BRANCH to a branch that it has")
    })
}

/// The repository's description; `None` if the server knows no such repository.
async fn info(http: &Http, repository: &Repository) -> Result<Option<RepositoryInfo>> {
    let answer = http.get_api(&repository.api).await?;
    if answer.status == StatusCode::NOT_FOUND {
        return Ok(None);
    }
    let body = expect_ok(&repository.api, answer, http.has_token())?;
    let Object(info) = parse(&repository.api, body)?;
    Ok(Some(info))
}

/// The head of a branch; `None` if the server knows no such branch or repository.
async fn head_of(http: &Http, repository: &Repository, branch: &str) -> Result<Option<Head>> {
    let head = read_head(http, repository, branch).await?;
    match &head {
        // A commit is in the names of images and folders, which are never masked. No commit has the token in its id
        // by chance.
        Some(head) if http.token_is_in(head.commit.as_str()) => {
            Err(bad(&repository.api, "its commit.id contains the token"))
        }
        _ => Ok(head),
    }
}

async fn read_head(http: &Http, repository: &Repository, branch: &str) -> Result<Option<Head>> {
    let url = branch_url(repository, branch);
    let answer = http.get_api(&url).await?;
    match (answer.status, &answer.body) {
        (StatusCode::NOT_FOUND, _) => Ok(None),
        // Too large: it has the commit's message, more than once if the commit is signed.
        (StatusCode::OK, None) => head_of_ref(http, repository, branch).await,
        _ => head_from(branch, &url, answer, http.has_token()).map(Some),
    }
}

/// The head, by a request whose answer has no commit messages: the list of all references whose names begin with the
/// branch's. Some versions answer with the reference itself if there is only one.
async fn head_of_ref(http: &Http, repository: &Repository, branch: &str) -> Result<Option<Head>> {
    let url = ref_url(repository, branch);
    let answer = http.get_api(&url).await?;
    match (answer.status, &answer.body) {
        (StatusCode::NOT_FOUND, _) => return Ok(None),
        // Too large: hundreds of branches have names that begin like this one's.
        (StatusCode::OK, None) => return head_of_tree(http, repository, branch).await.map(Some),
        _ => {}
    }
    let found = match parse(&url, expect_ok(&url, answer, http.has_token())?)? {
        RefsAnswer::One(Object(found)) => vec![found],
        RefsAnswer::Many(found) => found.into_iter().map(|Object(found)| found).collect(),
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

/// The head, by a request whose answer has neither messages nor other branches: the branch's tree, cut off after the
/// first file. In Gitea, `sha` is the commit at the head of the branch (`services/repository/files/tree.go`). In
/// GitHub's API it is the id of the tree. So this request is only the last resort.
async fn head_of_tree(http: &Http, repository: &Repository, branch: &str) -> Result<Head> {
    let name = format!("refs/heads/{branch}");
    let name = utf8_percent_encode(&name, SEGMENT);
    let mut url = below(repository, &format!("git/trees/{name}"));
    url.set_query(Some("per_page=1"));
    let answer = http.get_api(&url).await?;
    let Object(tree): Object<GitObject> = parse(&url, expect_ok(&url, answer, http.has_token())?)?;
    Ok(Head {
        branch: branch.to_owned(),
        commit: commit_id(&url, "sha", &tree.sha)?,
    })
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

/// Finds out why git refuses a commit: the repository or the commit does not exist, or was removed after the lookup had
/// found it. `refused` is git's error.
pub(crate) async fn explain_refusal(
    http: &Http,
    repository: &Repository,
    commit: &CommitSha,
    looked_up: bool,
    refused: Error,
) -> Error {
    let url = &repository.url;
    let absent = |code, what: String, hint: &'static str| {
        let error = Error {
            code,
            ..refused.clone()
        };
        error.context(what).hint(hint)
    };
    match http.get_api(&repository.api).await {
        Ok(answer) if answer.status == StatusCode::NOT_FOUND => absent(
            Code::RepoNotFound,
            match looked_up {
                true => format!("{url} was deleted or made private after the lookup"),
                false => format!("{url} was not found"),
            },
            match (looked_up, http.has_token()) {
                (true, true) => {
                    "check whether it was deleted, and whether the token may still read it"
                }
                (true, false) => "check whether it was deleted or made private",
                (false, true) => "check whether it exists, and whether the token may read it",
                (false, false) => {
                    "check whether it exists; for a private one, set MOLECULE_GITEA_TOKEN"
                }
            },
        ),
        Ok(answer) if matches!(answer.status.as_u16(), 401 | 403) => {
            let Err(error) = expect_ok(&repository.api, answer, http.has_token()) else {
                return refused;
            };
            error.context(match looked_up {
                true => format!("{url} was readable at the lookup"),
                false => format!("{url} cannot be read"),
            })
        }
        Ok(answer) if answer.status == StatusCode::OK && refused.code == Code::RepoNotFound => refused
            .hint("the API knows the repository, but git does not find it: check that the server allows git over HTTP"),
        Ok(answer) if answer.status == StatusCode::OK && refused.code == Code::Fetch => {
            let mut url = below(repository, &format!("git/commits/{commit}"));
            // Leaves out the long parts of the answer.
            url.set_query(Some("stat=false&verification=false&files=false"));
            match http.get_api(&url).await {
                Ok(answer) if answer.status == StatusCode::NOT_FOUND => match looked_up {
                    true => absent(
                        Code::Fetch,
                        format!("the commit {commit} is gone from {}", repository.url),
                        "try again: its branch was force-pushed since it was looked up, and the next \
                             call sees its new head",
                    ),
                    false => absent(
                        Code::Fetch,
                        format!("{} does not have the commit {commit}", repository.url),
                        "check the commit id: the commit may belong to another repository or to a deleted branch",
                    ),
                },
                _ => refused,
            }
        }
        _ => refused,
    }
}

/// `<api>/branches/<branch>`, with `/` and everything outside of unreserved ASCII escaped.
pub(crate) fn branch_url(repository: &Repository, branch: &str) -> Url {
    let name = utf8_percent_encode(branch, SEGMENT);
    below(repository, &format!("branches/{name}"))
}

/// `<api>/git/refs/heads/<branch>`, with the slashes of the branch name not escaped.
fn ref_url(repository: &Repository, branch: &str) -> Url {
    let names = branch
        .split('/')
        .map(|name| utf8_percent_encode(name, SEGMENT).to_string());
    let names = names.collect::<Vec<_>>().join("/");
    below(repository, &format!("git/refs/heads/{names}"))
}

/// `<api>/<path>`, with `path` as it is.
fn below(repository: &Repository, path: &str) -> Url {
    let mut url = repository.api.clone();
    url.set_path(&format!("{}/{path}", url.path()));
    url
}

/// The reason that a server gives besides its status, for an error.
pub(crate) fn says(reason: &str) -> String {
    match reason.trim_end_matches('.') {
        "" => String::new(),
        reason => format!("; the server says: {reason}"),
    }
}

/// The body of a 200 answer; for any other status its error, even if the body is too large.
fn expect_ok(url: &Url, answer: Answer, has_token: bool) -> Result<bytes::Bytes> {
    let (status, retry, says) = (answer.status, answer.retry, says(&answer.reason));
    match status.as_u16() {
        200 => answer
            .body
            .ok_or_else(|| bad(url, &format!("it is larger than {MAX_ANSWER} bytes"))),
        401 | 403 => Err(
            Error::new(Code::Auth, format!("{url} refuses access ({status}){says}"))
                .hint(access_hint(status, has_token)),
        ),
        408 | 429 | 500..=599 => Err(Error::new(
            Code::GiteaUnreachable,
            format!(
                "{url} answered {status}{}{says}",
                retry::requested_pause(retry)
            ),
        )
        .hint("try again in a while")
        .retryable(retry)),
        _ => Err(bad(url, &format!("the status is {status}{says}"))),
    }
}

/// What to do if access is refused and no token is set.
pub(crate) const HINT_TOKEN: &str =
    "set MOLECULE_GITEA_TOKEN to a token that may read the template repositories";

/// What to do if access is refused. Gitea answers 401 if it requires a token or does not accept the one it got, and 403
/// if the token lacks a scope, or the server is closed for anonymous users.
pub(crate) fn access_hint(status: StatusCode, has_token: bool) -> &'static str {
    match (status, has_token) {
        (_, false) => HINT_TOKEN,
        (StatusCode::UNAUTHORIZED, true) => {
            "the server does not accept the token in MOLECULE_GITEA_TOKEN: replace it if it is wrong or \
             has expired, or unset it if the repositories are public"
        }
        (_, true) => {
            "give the token in MOLECULE_GITEA_TOKEN the scope read:repository for this repository, or \
             replace it with one that has it"
        }
    }
}

fn parse<T: for<'de> Deserialize<'de>>(url: &Url, body: bytes::Bytes) -> Result<T> {
    debug_assert!(body.len() <= MAX_ANSWER);
    // serde_json does not check the strings that it skips.
    let body = str::from_utf8(&body).map_err(|_| bad(url, "it is not UTF-8"))?;
    serde_json::from_str(body).map_err(|error| {
        bad(
            url,
            &format!("it is not the JSON that was expected: {}", reason(&error)),
        )
    })
}

/// serde's message without the part of the answer that it quotes. The quoted part is escaped, so a token in it could
/// not be recognised.
fn reason(error: &serde_json::Error) -> String {
    let said = error.to_string();
    match (said.split_once('"'), said.rsplit_once('"')) {
        (Some((before, _)), Some((_, after))) => format!("{before}\"…\"{after}"),
        _ => said,
    }
}

fn not_found(runtime: &Runtime, repository: &Repository, what: &str) -> Error {
    Error::new(
        Code::RepoNotFound,
        format!(
            "{what} for the runtime {runtime} was not found: {}",
            repository.url
        ),
    )
}

fn bad(url: &Url, what: &str) -> Error {
    Error::new(
        Code::BadResponse,
        format!("{url} did not answer as Gitea does: {what}"),
    )
    .hint(HINT_NO_GITEA)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_does_not_quote_the_json() {
        let url = Url::parse("http://git.example.com/api/v1/repos/org/tpl-hermes").unwrap();
        for body in [r#""t0ken""#, r#""a \"t0\u006ben\" in quotes""#] {
            let error = parse::<u32>(&url, body.into()).unwrap_err().message();
            assert!(
                error.contains("invalid type: string \"…\", expected u32"),
                "{error}"
            );
        }
    }
}
