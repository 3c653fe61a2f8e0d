//! JSON as Go's `encoding/json` reads it, for files and answers that docker and its helpers write.
//!
//! A decoder of Go takes the first value and ignores what follows it. Keys are compared with the names of
//! fields without regard to case, of two equal keys the last one counts, and null leaves a field as it is.
//! What is not UTF-8 becomes U+FFFD. tests/vectors/go_json.json has what Go makes of examples.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use zeroize::Zeroizing;

/// A value, as far as docker's files need one: nothing reads a number or a list.
#[derive(Debug)]
pub(super) enum Json {
    Null,
    Bool(bool),
    /// It may be a secret.
    Text(Zeroizing<String>),
    /// In the order of the text, with keys that come twice.
    Object(Vec<(String, Json)>),
    Other,
}

/// Where a text stops being JSON. What is in it is not quoted: it may be a secret.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("it begins with a byte-order mark")]
    ByteOrderMark,
    #[error("it is wrong at line {0}, column {1}")]
    At(usize, usize),
}

/// A value of another type than the field's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not {0}")]
pub(super) struct WrongType(&'static str);

const TEXT: WrongType = WrongType("a string");
const FLAG: WrongType = WrongType("true or false");
const OBJECT: WrongType = WrongType("an object");

/// The first value of a text; `None` if there is only white space.
pub(super) fn first(text: &[u8]) -> Result<Option<Json>, Malformed> {
    if text.iter().all(|byte| b" \t\r\n".contains(byte)) {
        return Ok(None);
    }
    if text.starts_with(b"\xef\xbb\xbf") {
        return Err(Malformed::ByteOrderMark);
    }
    let text = Zeroizing::new(replaced(text).into_owned());
    Json::deserialize(&mut serde_json::Deserializer::from_str(&text))
        .map(Some)
        .map_err(|error| Malformed::At(error.line(), error.column()))
}

impl Json {
    /// The values of a field of the struct that this is, in order. Null is a struct without any.
    fn field(&self, name: &str) -> Result<impl Iterator<Item = &Json>, WrongType> {
        let fields = match self {
            Json::Object(fields) => fields.as_slice(),
            Json::Null => &[],
            _ => return Err(OBJECT),
        };
        let named = fields.iter().filter(move |(key, _)| folds_to(key, name));
        Ok(named.map(|(_, value)| value))
    }

    /// A field that is a string, empty if it is not set.
    pub(super) fn text(&self, name: &str) -> Result<&str, WrongType> {
        let mut text = "";
        for value in self.field(name)? {
            text = value.as_text()?.unwrap_or(text);
        }
        Ok(text)
    }

    /// A field that is a flag.
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

    /// A field that is a map. Its keys are what they are. Two fields of this name become one map.
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

    /// A value that is a string; `None` for null.
    pub(super) fn as_text(&self) -> Result<Option<&str>, WrongType> {
        match self {
            Json::Text(text) => Ok(Some(text)),
            Json::Null => Ok(None),
            _ => Err(TEXT),
        }
    }

    /// That it is an object, or null.
    pub(super) fn as_object(&self) -> Result<&Self, WrongType> {
        match self {
            Json::Object(_) | Json::Null => Ok(self),
            _ => Err(OBJECT),
        }
    }
}

/// Is a key the name of a field, which is ASCII? Two letters beyond ASCII fold to one of it (Unicode's
/// CaseFolding.txt, as Go's `foldName` has it).
fn folds_to(key: &str, name: &str) -> bool {
    let folded = key.chars().map(|letter| match letter {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        letter => letter.to_ascii_lowercase(),
    });
    folded.eq(name.chars().map(|letter| letter.to_ascii_lowercase()))
}

/// The text with U+FFFD for each byte that is not UTF-8, and for each half of a surrogate pair that stands
/// alone as an escape, as Go has it.
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

/// Where escapes of a lone half of a surrogate pair are.
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
            // The character after it, which may be a backslash too.
            _ => at += 1 + text[at + 1..].chars().next().map_or(0, char::len_utf8),
        }
    }
    alone
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Json;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E>(self) -> Result<Json, E> {
                Ok(Json::Null)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
                Ok(Json::Bool(value))
            }

            fn visit_i64<E>(self, _: i64) -> Result<Json, E> {
                Ok(Json::Other)
            }

            fn visit_u64<E>(self, _: u64) -> Result<Json, E> {
                Ok(Json::Other)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
                Ok(Json::Other)
            }

            fn visit_str<E>(self, text: &str) -> Result<Json, E> {
                Ok(Json::Text(Zeroizing::new(text.to_owned())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Json::Other)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Json::Object(fields))
            }
        }
        from.deserialize_any(Reader)
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

    /// The three fields of the vectors; or what is wrong with the text, in their words.
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
    fn a_text_means_what_it_means_to_go() {
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
    fn a_text_that_is_no_json_is_told_by_its_place_alone() {
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
    fn a_deep_or_long_text_costs_what_it_has_bytes() {
        assert!(first("[".repeat(1 << 20).as_bytes()).is_err());
        assert!(first(r"\ud800".repeat(1 << 17).as_bytes()).is_err());
        let many = format!("{{{}\"z\":0}}", r#""a":0,"#.repeat(100_000));
        assert!(first(many.as_bytes()).unwrap().is_some());
    }
}
