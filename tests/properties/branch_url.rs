//! The API URL of a branch ends with the branch name, and the rest of it does not depend on the branch.

use mol::Code;
use mol::testing::internals::branch_url;
use percent_encoding::percent_decode_str;
use url::Url;

pub fn url_names_the_branch(prefix: &str, runtime: &str, branch: &str) {
    // An empty option counts as not set.
    if prefix.is_empty() || branch.is_empty() {
        return;
    }
    let main = branch_url(prefix, runtime, "main");
    let url = match branch_url(prefix, runtime, branch) {
        Ok(url) => Url::parse(&url).unwrap(),
        Err(error) => {
            assert!(
                matches!(error.code, Code::InvalidOption | Code::UnknownRuntime),
                "{error:?}"
            );
            assert!(
                !error.message().is_empty() && !error.hint.is_empty(),
                "{error:?}"
            );
            return;
        }
    };
    let main = Url::parse(&main.unwrap()).unwrap();
    assert_eq!(url.origin(), main.origin());
    assert_eq!(
        url.origin(),
        Url::parse(&format!("{prefix}{runtime}")).unwrap().origin()
    );
    assert!(matches!(url.scheme(), "http" | "https"), "{url}");
    assert_eq!((url.username(), url.password()), ("", None), "{url}");
    assert_eq!((url.query(), url.fragment()), (None, None), "{url}");
    assert_eq!(
        url.as_str(),
        Url::parse(url.as_str()).unwrap().as_str(),
        "the URL must be normalized"
    );

    let (repository, last) = url.path().rsplit_once('/').unwrap();
    assert!(repository.ends_with("/branches"), "{url}");
    assert!(repository.contains("/api/v1/repos/"), "{url}");
    assert_eq!(main.path(), format!("{repository}/main"));
    assert_eq!(
        percent_decode_str(last).decode_utf8().unwrap(),
        branch,
        "{url}"
    );
    // Gitea splits the path into segments before it decodes them.
    assert!(!last.is_empty() && last != "." && last != "..", "{url}");
}
