//! For any answer, the commit id comes from the field `commit.id` and from no other place.

use std::fmt;

use mol::Code;
use mol::testing::internals::head_sha;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

pub fn sha_is_the_commit_id(body: &[u8]) {
    // The simplest parser as the reference. It fails on numbers that are too large.
    let reference = serde_json::from_slice::<Value>(body);
    match head_sha(body) {
        Ok(sha) => {
            assert!(is_id(&sha), "{sha}");
            if let Ok(answer) = reference {
                assert_eq!(answer["commit"]["id"], Value::from(sha));
            }
        }
        Err(error) => {
            assert_eq!(error.code, Code::BadResponse, "{error:?}");
            assert!(
                !error.message().is_empty() && !error.hint.is_empty(),
                "{error:?}"
            );
            let answer = reference.unwrap_or_default();
            let id = answer["commit"]["id"].as_str();
            if id.is_some_and(is_id) {
                assert!(has_duplicate_fields(body), "{id:?}: {error:?}");
            }
        }
    }
}

fn is_id(id: &str) -> bool {
    let digits = id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    digits && matches!(id.len(), 40 | 64)
}

/// Whether `commit` or its `id` is given twice. That is ambiguous; the reference takes the last one.
fn has_duplicate_fields(body: &[u8]) -> bool {
    fn named<'a>(fields: &'a Fields, name: &str) -> Vec<&'a Field> {
        let named = fields.0.iter().filter(|(key, _)| key == name);
        named.map(|(_, value)| value).collect()
    }
    let answer: Fields = serde_json::from_slice(body).unwrap();
    match named(&answer, "commit")[..] {
        [Field::Object(commit)] => named(commit, "id").len() > 1,
        _ => true,
    }
}

/// A JSON object with all its fields in order, including duplicates.
struct Fields(Vec<(String, Field)>);

#[derive(Deserialize)]
#[serde(untagged)]
enum Field {
    Object(Fields),
    Other(IgnoredAny),
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Fields;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
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
