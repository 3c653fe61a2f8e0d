package mol

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"
)

// GiteaBranchAPIURL returns the URL of Gitea's API for a branch of a runtime's template repository. The prefix is the
// repository's URL without the runtime name at its end. Gitea may be below a path:
//
//	https://host/git/org/tpl- + hermes + main -> https://host/git/api/v1/repos/org/tpl-hermes/branches/main
//
// The branch name is percent-encoded, with a slash as %2F, which Gitea's route (/branches/*) accepts like a plain slash.
// Scheme and host are in lower case, without the default port of the scheme.
//
// The error is an [*Error] with [CodeInvalidOption]: for a prefix that is not http or https, contains an @, a query or
// a fragment, ends with an incomplete percent escape, or has no organisation and repository in its path; for a runtime
// that cannot be part of a repository's name; for a branch that git itself would refuse (git-check-ref-format(1)). It
// never shows userinfo.
func GiteaBranchAPIURL(repoPrefix, runtime, branch string) (string, error) {
	if !validRepoNamePart(runtime) {
		return "", &Error{
			Code:    CodeInvalidOption,
			Message: fmt.Sprintf("runtime %s cannot be part of a repository name", quoteShort(runtime)),
			Hint:    "the known runtimes are " + strings.Join(defaultRuntimes, ", "),
		}
	}
	if problem := branchProblem(branch); problem != "" {
		return "", &Error{
			Code:    CodeInvalidOption,
			Runtime: runtime,
			Message: fmt.Sprintf("template branch %s %s", quoteShort(branch), problem),
			Hint:    "set MOLECULE_LOCAL_TEMPLATE_BRANCH to a branch of the template repository, or unset it",
		}
	}
	origin, segments, err := splitRepoURL(repoPrefix, runtime)
	if err != nil {
		return "", &Error{
			Code:    CodeInvalidOption,
			Runtime: runtime,
			Message: fmt.Sprintf("template repository prefix%s %s", shownPrefix(repoPrefix), err),
			Hint: "set MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX to something like https://git.example.com/org/template-, " +
				"and a token, if one is needed, as MOLECULE_GITEA_TOKEN",
		}
	}
	base, repo := segments[:len(segments)-2], segments[len(segments)-2:]
	var b strings.Builder
	b.WriteString(origin)
	for _, segment := range base {
		b.WriteString("/")
		b.WriteString(segment)
	}
	b.WriteString("/api/v1/repos/")
	b.WriteString(repo[0])
	b.WriteString("/")
	b.WriteString(repo[1])
	b.WriteString("/branches/")
	writePercentEncoded(&b, branch)
	return b.String(), nil
}

// splitRepoURL splits a repository URL into its origin and the segments of its path, still encoded. There are at least
// two segments; the last two are the organisation and the repository. The error texts continue a sentence.
func splitRepoURL(prefix, runtime string) (origin string, segments []string, err error) {
	if prefix == "" {
		return "", nil, errors.New("is empty")
	}
	if !utf8.ValidString(prefix) {
		return "", nil, errors.New("is not valid UTF-8")
	}
	for i := range len(prefix) {
		// url.Parse treats a backslash as part of the path, browsers and WHATWG parsers treat it as a slash, so they
		// would disagree about the host.
		if c := prefix[i]; c <= ' ' || c == 0x7f || c == '\\' {
			return "", nil, fmt.Errorf("contains a character that a URL cannot have (%q)", c)
		}
	}
	scheme, rest, found := strings.Cut(prefix, "://")
	scheme = strings.ToLower(scheme)
	if !found || (scheme != "http" && scheme != "https") {
		return "", nil, errors.New("does not begin with https:// or http://")
	}
	if strings.ContainsAny(rest, "?#") {
		return "", nil, errors.New("has a query or a fragment")
	}
	if strings.Contains(rest, "@") { // anywhere: a password may have an unencoded slash
		return "", nil, errors.New("has a user name or a password in it")
	}
	if strings.Contains(rest[max(0, len(rest)-2):], "%") { // the runtime would complete it: %2 and autogen
		return "", nil, errors.New("ends with an incomplete percent escape")
	}
	authority, path, _ := strings.Cut(rest, "/")
	// url.Parse checks the path. Its error quotes the URL, so it is not passed on.
	u, err := url.Parse(scheme + "://" + authority + "/" + path + runtime)
	if err != nil || !validAuthority(authority) {
		return "", nil, errors.New("is not a valid URL")
	}
	segments = strings.Split(strings.TrimPrefix(u.EscapedPath(), "/"), "/")
	if len(segments) < 2 {
		return "", nil, errors.New("has no organisation and repository in its path")
	}
	for _, segment := range segments {
		decoded, err := url.PathUnescape(segment)
		if err != nil || decoded == "" || decoded == "." || decoded == ".." || strings.ContainsAny(decoded, "/\\") {
			return "", nil, errors.New(`has an empty segment, a "." or ".." segment, or an encoded slash or backslash in its path`)
		}
	}
	authority = strings.ToLower(authority)
	if scheme == "https" {
		authority = strings.TrimSuffix(authority, ":443")
	} else {
		authority = strings.TrimSuffix(authority, ":80")
	}
	return scheme + "://" + authority, segments, nil
}

// validAuthority reports whether authority is host[:port], where host is a name, an IPv4 address or a bracketed IPv6
// address.
func validAuthority(authority string) bool {
	u := url.URL{Host: authority}
	host, port := u.Hostname(), u.Port()
	if host == "" || strings.HasSuffix(authority, ":") {
		return false
	}
	if port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return false
		}
	}
	bracketed := strings.HasPrefix(authority, "[")
	for i := range len(host) {
		c := host[i]
		switch {
		case isAlnum(c), c == '.', c == '-', c == '_':
		case c == ':' && bracketed:
		default:
			// A name that is not ASCII must be in its xn-- form, as in Gitea's ROOT_URL.
			return false
		}
	}
	return true
}

// shownPrefix returns the part of a prefix that an error may show: no query and no fragment, which may contain a token,
// and nothing at all if there may be userinfo.
func shownPrefix(prefix string) string {
	if i := strings.IndexAny(prefix, "?#"); i >= 0 {
		prefix = prefix[:i]
	}
	if prefix == "" || strings.Contains(prefix, "@") {
		return ""
	}
	return " " + quoteShort(prefix)
}

// validRepoNamePart reports whether name has only characters that Gitea allows in a repository name and that are safe
// in a URL path.
func validRepoNamePart(name string) bool {
	if name == "" {
		return false
	}
	for i := range len(name) {
		c := name[i]
		if !isAlnum(c) && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return true
}

// branchProblem returns why git refuses a branch name, as the end of a sentence, or "" for a valid name. The rules are
// those of git-check-ref-format(1).
func branchProblem(branch string) string {
	switch {
	case branch == "":
		return "is empty"
	case !utf8.ValidString(branch):
		return "is not valid UTF-8"
	case len(branch) > 255:
		return "is longer than 255 bytes"
	case branch == "@":
		return "is not a branch name"
	case strings.HasPrefix(branch, "-"):
		return "begins with a dash"
	case strings.HasSuffix(branch, "."):
		return "ends with a dot"
	case strings.Contains(branch, ".."):
		return "contains two dots in a row"
	case strings.Contains(branch, "@{"):
		return "contains @{"
	}
	for i := range len(branch) {
		if c := branch[i]; c <= ' ' || c == 0x7f || strings.IndexByte(`~^:?*[\`, c) >= 0 {
			return fmt.Sprintf("contains %q", c)
		}
	}
	for part := range strings.SplitSeq(branch, "/") {
		switch {
		case part == "":
			return "begins or ends with a slash, or has two in a row"
		case strings.HasPrefix(part, "."):
			return "has a part that begins with a dot"
		case strings.HasSuffix(part, ".lock"):
			return "has a part that ends with .lock"
		}
	}
	return ""
}

// writePercentEncoded encodes everything but the unreserved characters of RFC 3986 (section 2.3). url.PathEscape leaves
// more characters (+, =, &, …), which proxies interpret differently.
func writePercentEncoded(b *strings.Builder, s string) {
	const hexDigits = "0123456789ABCDEF"
	for i := range len(s) {
		c := s[i]
		if isAlnum(c) || c == '-' || c == '.' || c == '_' || c == '~' {
			b.WriteByte(c)
			continue
		}
		b.WriteByte('%')
		b.WriteByte(hexDigits[c>>4])
		b.WriteByte(hexDigits[c&15])
	}
}

// maxAnswerBytes is the largest API response that is read, 64 KiB.
const maxAnswerBytes = 64 << 10

// ParseGiteaBranchHeadSha returns the id of a branch's newest commit (commit.id) from Gitea's response. The id has 40 hex
// digits, or 64 in a SHA-256 repository, in lower case, as git writes them.
//
// The error is an [*Error] with [CodeBadResponse]: for more than 64 KiB, for anything but one valid JSON object, if
// "commit" or its "id" is missing, duplicated or of another type, and for an invalid id.
func ParseGiteaBranchHeadSha(body []byte) (string, error) {
	sha, err := branchHeadSHA(body)
	if err != nil {
		return "", &Error{
			Code:    CodeBadResponse,
			Message: fmt.Sprintf("gitea's answer about the branch %s", err),
			Hint: "check that MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX is the address of a Gitea server, and that no proxy or " +
				"login page is in between",
		}
	}
	return sha, nil
}

func branchHeadSHA(body []byte) (string, error) {
	if len(body) > maxAnswerBytes {
		return "", fmt.Errorf("is larger than %d KiB", maxAnswerBytes>>10)
	}
	if !utf8.Valid(body) || !json.Valid(body) {
		return "", errors.New("is not valid JSON")
	}
	commit, err := jsonField(body, "commit")
	if err != nil {
		return "", err
	}
	id, err := jsonField(commit, "id")
	if err != nil {
		return "", fmt.Errorf("has a commit that %w", err)
	}
	var sha string
	if err := json.Unmarshal(id, &sha); err != nil || string(id) == "null" {
		return "", errors.New("has a commit id that is not a string")
	}
	if !isCommitID(sha) {
		return "", fmt.Errorf("has a commit id that is not 40 or 64 lower-case hex digits: %s", quoteShort(sha))
	}
	return sha, nil
}

// jsonField returns a field of a valid JSON object. Unlike json.Unmarshal into a struct, it compares names exactly and
// refuses a duplicate, because parsers differ in which of the two they use.
func jsonField(object []byte, name string) (json.RawMessage, error) {
	decoder := json.NewDecoder(bytes.NewReader(object))
	if token, err := decoder.Token(); err != nil || token != json.Delim('{') {
		return nil, errors.New("is not a JSON object")
	}
	var found json.RawMessage
	for decoder.More() {
		key, err := decoder.Token()
		if err != nil {
			return nil, errors.New("is not valid JSON")
		}
		var value json.RawMessage
		if err := decoder.Decode(&value); err != nil {
			return nil, errors.New("is not valid JSON")
		}
		if key != name {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("has %q twice", name)
		}
		found = value
	}
	if found == nil {
		return nil, fmt.Errorf("has no %q", name)
	}
	return found, nil
}

func isCommitID(sha string) bool {
	if len(sha) != 40 && len(sha) != 64 {
		return false
	}
	for i := range len(sha) {
		if c := sha[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// quoteShort quotes untrusted text on one line, truncated.
func quoteShort(s string) string {
	const limit = 80
	if len(s) > limit {
		return strconv.Quote(strings.ToValidUTF8(s[:limit], "")) + "…"
	}
	return strconv.Quote(s)
}
