//! The one masking layer: whatever leaves the library goes through here.
//!
//! It is deliberately blind to where a text came from. An error made from a server's answer, a line
//! of a build's output and a panic's message are all treated alike, so there is no list of places
//! to keep in step with the code.

use std::borrow::Cow;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use regex::bytes::Regex;
use zeroize::Zeroizing;

use crate::error::Error;
use crate::event::Event;
use crate::image::Image;

/// What stands in the place of a secret.
pub const MASK: &str = "***";

/// The longest token. Gitea's have 40 characters; a JSON web token has a few hundred.
pub(crate) const MAX_TOKEN: usize = 1024;

/// What is cut before it is masked must be cut this much later than where it ends in the end: a part
/// of a token that the cut has left is no longer recognised, and this is more than its longest
/// spelling, so that the part lies in what is cut off afterwards.
pub(crate) const MARGIN: usize = 4 * MAX_TOKEN;

/// The longest text of an event, and the longest line of an error's log, in bytes.
pub(crate) const MAX_LINE: usize = 4 * 1024;

/// A secret that is wiped from memory when dropped and never shows itself.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes charge of `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The secret itself: for the one header it is meant for.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_empty() { "unset" } else { MASK })
    }
}

/// Replaces a token, in every spelling, and the user information of every URL.
#[derive(Clone, Debug, Default)]
pub struct Masker {
    token: Option<Regex>,
}

/// The user information of a URL, up to the last `@` before the path (RFC 3986, section 3.2.1; a
/// password with an unescaped `@` in it must not survive in part).
static USERINFO: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r#"(?-u)([A-Za-z][A-Za-z0-9+.\-]*://)[^/?#\s"'<>\\]*@"#).ok());

impl Masker {
    /// A masker for `token`. The empty token masks nothing but the user information of URLs.
    pub fn new(token: &Secret) -> Self {
        Self {
            token: token_pattern(token.expose().as_bytes()),
        }
    }

    /// Masks `text`.
    pub fn text<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let mut masked = self.without_token(text);
        if masked.contains("://")
            && let Some(userinfo) = USERINFO.as_ref()
        {
            replace(&mut masked, userinfo, b"${1}***@");
        }
        masked
    }

    fn without_token<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let mut masked = Cow::Borrowed(text);
        if let Some(token) = &self.token {
            replace(&mut masked, token, MASK.as_bytes());
        }
        masked
    }

    fn in_place(&self, text: &mut String) {
        if let Cow::Owned(masked) = self.text(text) {
            *text = masked;
        }
    }

    /// Masks `text`, then cuts it to a length at which it can be shown.
    pub(crate) fn shown(&self, text: &str, max: usize) -> String {
        let mut text = self.text(text).into_owned();
        cut(&mut text, max);
        text
    }

    /// Masks every text of an error.
    pub fn error(&self, mut error: Error) -> Error {
        for text in [
            &mut error.runtime,
            &mut error.url,
            &mut error.message,
            &mut error.hint,
        ] {
            self.in_place(text);
        }
        if let Some(build) = &mut error.build {
            self.in_place(&mut build.step);
            self.in_place(&mut build.log_tail);
            let lines = build.log_tail.lines().map(|line| {
                let mut line = line.to_owned();
                cut(&mut line, MAX_LINE);
                line
            });
            build.log_tail = lines.collect::<Vec<_>>().join("\n");
        }
        error
    }

    /// Masks every text of an event.
    pub fn event(&self, mut event: Event) -> Event {
        for text in event.texts_mut() {
            self.in_place(text);
            cut(text, MAX_LINE);
        }
        event
    }

    /// Masks every text of an image.
    pub fn image(&self, mut image: Image) -> Image {
        for text in [
            &mut image.reference,
            &mut image.latest_reference,
            &mut image.commit_sha,
            &mut image.image_id,
            &mut image.platform,
        ] {
            self.in_place(text);
        }
        // It is there to be connected to: `ssh://me@host` without the user is another address. It has
        // no password, which no address of an engine may have.
        image.endpoint = self.without_token(&image.endpoint).into_owned();
        image
    }
}

/// Masks `token` in every spelling, and the user information of every URL, in `text`.
pub fn mask_token(text: &str, token: &str) -> String {
    Masker::new(&Secret::new(token)).text(text).into_owned()
}

/// Cuts a text that is longer than `max` bytes, at a character's boundary.
fn cut(text: &mut String, max: usize) {
    if text.len() > max {
        text.truncate(text.floor_char_boundary(max));
        text.push('…');
    }
}

fn replace(text: &mut Cow<'_, str>, pattern: &Regex, with: &[u8]) {
    if let Cow::Owned(masked) = pattern.replace_all(text.as_bytes(), with) {
        *text = Cow::Owned(String::from_utf8_lossy(&masked).into_owned());
    }
}

/// One pattern for every spelling of `token`:
///
/// - byte by byte, each plain, percent-encoded in either case (RFC 3986, section 2.1; encoders
///   differ in which bytes they leave alone), or escaped as in a JSON or debug string;
/// - inside base64 of `user:token` (RFC 7617), in both alphabets, whatever the user is: the part of
///   the encoding that depends on the token alone, for each of the three ways in which the user can
///   shift it, widened to the whole run of base64.
fn token_pattern(token: &[u8]) -> Option<Regex> {
    if token.is_empty() {
        return None;
    }
    let mut pattern = Zeroizing::new(String::from("(?-u)"));
    for &byte in token {
        // The longer form first: where a % of the token is encoded, both would do.
        pattern.push_str(&format!(r"(?:%(?i:{byte:02x})|\x{byte:02x}"));
        match byte {
            b' ' => pattern.push_str(r"|\+"),
            b'"' | b'\\' | b'\'' => pattern.push_str(&format!(r"|\\\x{byte:02x}")),
            _ => {}
        }
        pattern.push(')');
    }
    let mut cores: Vec<String> = (0..3)
        .flat_map(|shift| base64_cores(token, shift))
        .collect();
    cores.sort_unstable();
    cores.dedup();
    for core in cores {
        pattern.push_str(&format!(
            "|[A-Za-z0-9+/_-]*{}[A-Za-z0-9+/_-]*=*",
            regex::escape(&core)
        ));
    }
    Regex::new(&pattern).ok()
}

/// The characters of base64 of `<shift bytes><token><anything>` that depend on the token alone.
fn base64_cores(token: &[u8], shift: usize) -> Vec<String> {
    /// Shorter pieces would match by chance.
    const SHORTEST: usize = 8;
    let mut plain = Zeroizing::new(vec![0; shift]);
    plain.extend_from_slice(token);
    let skip = [0, 2, 3][shift];
    let whole = plain.len() / 3 * 4;
    [
        STANDARD_NO_PAD.encode(&*plain),
        URL_SAFE_NO_PAD.encode(&*plain),
    ]
    .into_iter()
    .filter_map(|text| text.get(skip..whole).map(str::to_owned))
    .filter(|core| core.len() >= SHORTEST)
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::STANDARD;

    const TOKEN: &str = "s3cr3t/töken+with spaces&more";

    #[test]
    fn every_spelling_of_the_token_is_masked() {
        let percent =
            percent_encoding::utf8_percent_encode(TOKEN, percent_encoding::NON_ALPHANUMERIC)
                .to_string();
        let mut spellings = vec![
            TOKEN.to_owned(),
            percent.clone(),
            percent.to_lowercase(),
            TOKEN.replace(' ', "+"),
            TOKEN.replace('/', "%2f"),
        ];
        for user in ["", "a", "git", "x-access-token", "oauth2"] {
            spellings.push(STANDARD.encode(format!("{user}:{TOKEN}")));
            spellings.push(URL_SAFE_NO_PAD.encode(format!("{user}:{TOKEN}")));
        }
        for spelling in spellings {
            let masked = mask_token(&format!("before {spelling} after"), TOKEN);
            assert_eq!(masked, "before *** after", "{spelling}");
        }
    }

    #[test]
    fn an_empty_token_changes_nothing() {
        assert_eq!(
            mask_token("nothing to hide: äöü", ""),
            "nothing to hide: äöü"
        );
    }

    #[test]
    fn the_user_information_of_every_url_is_masked() {
        assert_eq!(
            mask_token(
                "from https://u:p@ss@host/x to ssh://git@h, not http://h/a@b",
                ""
            ),
            "from https://***@host/x to ssh://***@h, not http://h/a@b"
        );
    }

    #[test]
    fn text_around_a_token_keeps_its_letters() {
        assert_eq!(mask_token("ä=tok;ö=tok", "tok"), "ä=***;ö=***");
    }

    #[test]
    fn a_text_is_masked_before_it_is_cut() {
        let masker = Masker::new(&Secret::new(TOKEN));
        for before in 0..TOKEN.len() + 4 {
            let text = format!("{}{TOKEN} and more", "x".repeat(before));
            let shown = masker.shown(&text, TOKEN.len());
            assert!(!shown.contains("s3c"), "{shown}");
        }
    }

    #[test]
    #[cfg(feature = "silent")]
    fn no_dependency_logs_anything_at_any_level() {
        assert_eq!(log::STATIC_MAX_LEVEL, log::LevelFilter::Off);
        let tracing = tracing::level_filters::STATIC_MAX_LEVEL;
        assert_eq!(tracing, tracing::level_filters::LevelFilter::OFF);
    }

    #[test]
    fn a_secret_does_not_show_itself() {
        assert_eq!(format!("{:?}", Secret::new("x")), "***");
    }
}
