//! JSON with the rules of Go's `encoding/json`, for the files of docker and the output of its helpers.
//!
//! Go's decoder reads the first value and ignores the text after it. Keys match field names regardless of case, the
//! last of several equal keys counts, and null leaves a field unchanged. Invalid UTF-8 becomes U+FFFD.
//! tests/vectors/go_json.json has examples with Go's results.
//!
//! Libraries looked at: serde_json parses the text. serde's derive is not used, because it matches keys exactly
//! (serde-rs/serde#586) and rejects a field that occurs twice; no crate was found that reads JSON as Go does.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

/// How many levels of objects are read. Docker's files have three.
const MAX_DEPTH: usize = 8;

/// A JSON value. Numbers, and what is below [`MAX_DEPTH`] levels, are never needed, and become
/// [`Json::Other`]: only their syntax is checked, so a number may have any size.
#[derive(Debug)]
pub(super) enum Json {
    Null,
    Bool(bool),
    /// Wiped on drop: it may be a secret.
    Text(Zeroizing<String>),
    /// All entries in the order of the text, with duplicate keys.
    Object(Vec<(String, Json)>),
    List(Vec<Json>),
    Other,
}

/// A syntax error. The message does not quote the text, which may contain secrets.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("it starts with a byte-order mark")]
    ByteOrderMark,
    #[error("it is not valid JSON at line {0}, column {1}")]
    At(usize, usize),
}

/// A value that does not have the type of its field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not {0}")]
pub(super) struct WrongType(&'static str);

const TEXT: WrongType = WrongType("a string");
const FLAG: WrongType = WrongType("true or false");
const OBJECT: WrongType = WrongType("an object");
const LIST: WrongType = WrongType("a list");

/// Parses the first value of a text; `None` if there is only white space.
pub(super) fn first(text: &[u8]) -> Result<Option<Json>, Malformed> {
    if text.iter().all(|byte| b" \t\r\n".contains(byte)) {
        return Ok(None);
    }
    if text.starts_with(b"\xef\xbb\xbf") {
        return Err(Malformed::ByteOrderMark);
    }
    let text = Zeroizing::new(replaced(text).into_owned());
    <&RawValue>::deserialize(&mut serde_json::Deserializer::from_str(&text))
        .and_then(|raw| value(raw, 0))
        .map(Some)
        .map_err(|error| Malformed::At(error.line(), error.column()))
}

impl Json {
    /// The values of a field, in order. Null has no fields.
    fn field(&self, name: &str) -> Result<impl Iterator<Item = &Json>, WrongType> {
        let fields = match self {
            Json::Object(fields) => fields.as_slice(),
            Json::Null => &[],
            _ => return Err(OBJECT),
        };
        let named = fields.iter().filter(move |(key, _)| folds_to(key, name));
        Ok(named.map(|(_, value)| value))
    }

    /// A string field; empty if it is not set.
    pub(super) fn text(&self, name: &str) -> Result<&str, WrongType> {
        let mut text = "";
        for value in self.field(name)? {
            text = value.as_text()?.unwrap_or(text);
        }
        Ok(text)
    }

    /// A boolean field; false if it is not set.
    pub(super) fn flag(&self, name: &str) -> Result<bool, WrongType> {
        let mut flag = false;
        for value in self.field(name)? {
            flag = match value {
                Json::Bool(value) => *value,
                Json::Null => flag,
                _ => return Err(FLAG),
            };
        }
        Ok(flag)
    }

    /// A map field; empty if it is not set. Its keys are case-sensitive. Several fields with this name are merged.
    pub(super) fn map(&self, name: &str) -> Result<BTreeMap<&str, &Json>, WrongType> {
        let mut map = BTreeMap::new();
        for value in self.field(name)? {
            match value {
                Json::Object(entries) => {
                    map.extend(entries.iter().map(|(key, value)| (key.as_str(), value)));
                }
                Json::Null => map.clear(),
                _ => return Err(OBJECT),
            }
        }
        Ok(map)
    }

    /// A list field; empty if it is not set.
    pub(super) fn list(&self, name: &str) -> Result<&[Json], WrongType> {
        let mut list: &[Json] = &[];
        for value in self.field(name)? {
            list = match value {
                Json::List(values) => values,
                Json::Null => &[],
                _ => return Err(LIST),
            };
        }
        Ok(list)
    }

    /// The value as a string; `None` for null.
    pub(super) fn as_text(&self) -> Result<Option<&str>, WrongType> {
        match self {
            Json::Text(text) => Ok(Some(text)),
            Json::Null => Ok(None),
            _ => Err(TEXT),
        }
    }

    /// The value itself, if it is an object or null.
    pub(super) fn as_object(&self) -> Result<&Self, WrongType> {
        match self {
            Json::Object(_) | Json::Null => Ok(self),
            _ => Err(OBJECT),
        }
    }
}

/// Whether a key matches the name of a field, regardless of case. The name is ASCII; two letters outside of ASCII
/// fold to an ASCII letter (Unicode's CaseFolding.txt, as in Go's `foldName`).
fn folds_to(key: &str, name: &str) -> bool {
    let folded = key.chars().map(|letter| match letter {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        letter => letter.to_ascii_lowercase(),
    });
    folded.eq(name.chars().map(|letter| letter.to_ascii_lowercase()))
}

/// The text with U+FFFD in place of each byte that is not UTF-8 and of each escaped lone surrogate, as in Go.
fn replaced(text: &[u8]) -> Cow<'_, str> {
    let text = match std::str::from_utf8(text) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => Cow::Owned(
            text.utf8_chunks()
                .flat_map(|chunk| {
                    [
                        chunk.valid(),
                        &"\u{fffd}\u{fffd}\u{fffd}"[..3 * chunk.invalid().len()],
                    ]
                })
                .collect(),
        ),
    };
    let alone = lone_surrogates(&text);
    if alone.is_empty() {
        return text;
    }
    let mut text = text.into_owned();
    for at in alone {
        text.replace_range(at..at + ESCAPE, r"\ufffd");
    }
    Cow::Owned(text)
}

/// The length of `\ud800`.
const ESCAPE: usize = 6;

/// The offsets of escaped lone surrogates.
fn lone_surrogates(text: &str) -> Vec<usize> {
    let unit = |at: usize| -> Option<u16> {
        let escape = text.get(at..at + ESCAPE)?.strip_prefix("\\u")?;
        u16::from_str_radix(escape, 16).ok()
    };
    let mut alone = Vec::new();
    let mut at = 0;
    while let Some(next) = text[at..].find('\\') {
        at += next;
        match unit(at) {
            Some(0xd800..0xdc00) if matches!(unit(at + ESCAPE), Some(0xdc00..0xe000)) => {
                at += 2 * ESCAPE;
            }
            Some(0xd800..0xe000) => {
                alone.push(at);
                at += ESCAPE;
            }
            // Skips the escaped character, which may be a backslash too.
            _ => at += 1 + text[at + 1..].chars().next().map_or(0, char::len_utf8),
        }
    }
    alone
}

/// A value whose syntax was checked.
fn value(raw: &RawValue, depth: usize) -> serde_json::Result<Json> {
    let text = raw.get();
    Ok(match text.as_bytes().first() {
        Some(b'n') => Json::Null,
        Some(b't' | b'f') => Json::Bool(text == "true"),
        Some(b'"') => Json::Text(Zeroizing::new(serde_json::from_str(text)?)),
        Some(b'{') if depth < MAX_DEPTH => {
            let Fields(fields) = serde_json::from_str(text)?;
            let fields = fields.into_iter();
            let fields = fields.map(|(key, raw)| Ok((key, value(raw, depth + 1)?)));
            Json::Object(fields.collect::<serde_json::Result<_>>()?)
        }
        Some(b'[') if depth < MAX_DEPTH => {
            let values: Vec<&RawValue> = serde_json::from_str(text)?;
            let values = values.into_iter().map(|raw| value(raw, depth + 1));
            Json::List(values.collect::<serde_json::Result<_>>()?)
        }
        _ => Json::Other,
    })
}

/// The fields of an object in the order of the text, with duplicate keys.
struct Fields<'t>(Vec<(String, &'t RawValue)>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        from.deserialize_map(Reader)
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;

    use super::*;

    #[derive(serde::Deserialize)]
    struct Case {
        json: Option<String>,
        bytes: Option<String>,
        #[serde(default)]
        want: String,
        #[serde(default)]
        text: String,
        #[serde(default)]
        flag: bool,
        #[serde(default)]
        map: BTreeMap<String, String>,
    }

    type Fields = (String, bool, BTreeMap<String, String>);

    /// The three fields of the vectors, or the name that they give to the error.
    fn fields(text: &[u8]) -> Result<Fields, &'static str> {
        let json = first(text).map_err(|_| "syntax")?.ok_or("empty")?;
        let fields = || -> Result<Fields, WrongType> {
            let mut map = BTreeMap::new();
            for (key, value) in json.map("credHelpers")? {
                map.insert(
                    key.to_owned(),
                    value.as_text()?.unwrap_or_default().to_owned(),
                );
            }
            Ok((
                json.text("credsStore")?.to_owned(),
                json.flag("SkipTLSVerify")?,
                map,
            ))
        };
        fields().map_err(|_| "type")
    }

    #[test]
    fn texts_are_read_as_in_go() {
        #[derive(serde::Deserialize)]
        struct Vectors {
            cases: Vec<Case>,
        }
        let text = include_str!("../../tests/vectors/go_json.json");
        let vectors: Vectors = serde_json::from_str(text).unwrap();
        for case in vectors.cases {
            let text = match (case.json, case.bytes) {
                (Some(json), None) => json.into_bytes(),
                (None, Some(bytes)) => BASE64_STANDARD.decode(bytes).unwrap(),
                _ => panic!("a case has one text"),
            };
            let want = match case.want.as_str() {
                "" => Ok((case.text, case.flag, case.map)),
                _ => Err(case.want.as_str()),
            };
            let shown = String::from_utf8_lossy(&text);
            assert_eq!(fields(&text), want, "{shown:?}");
        }
    }

    #[test]
    fn a_value_that_is_not_needed_may_have_any_size_and_depth() {
        let deep = format!("{}{}", r#"{"a":"#.repeat(5_000), "1");
        let deep = deep + &"}".repeat(5_000);
        for unknown in [
            "1e999",
            "-1e-999",
            &"9".repeat(400),
            &deep,
            &format!("[{deep}]"),
        ] {
            for text in [
                format!(r#"{{"x":{unknown},"credsStore":"a"}}"#),
                format!(r#"{{"auths":{{"r":{{"x":{unknown}}}}},"credsStore":"a"}}"#),
            ] {
                let json = first(text.as_bytes()).unwrap().unwrap();
                assert_eq!(json.text("credsStore"), Ok("a"));
            }
        }
    }

    #[test]
    fn a_syntax_error_names_the_place_and_quotes_nothing() {
        for (text, place) in [
            ("{\n \"a\": hunter2}", "line 2, column 7"),
            ("\u{feff}{}", "byte-order mark"),
            ("{\"a\": \"hunter2\"", "line 1, column 15"),
        ] {
            let error = first(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(place), "{text:?}: {error}");
            assert!(!error.contains("hunter"), "{error}");
        }
    }

    #[test]
    fn deep_and_long_texts_do_not_overflow_the_stack() {
        assert!(first("[".repeat(1 << 20).as_bytes()).is_err());
        assert!(first(r"\ud800".repeat(1 << 17).as_bytes()).is_err());
        let many = format!("{{{}\"z\":0}}", r#""a":0,"#.repeat(100_000));
        assert!(first(many.as_bytes()).unwrap().is_some());
    }
}
