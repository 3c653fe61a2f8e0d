//! The commit comes from `commit.id` of the answer and from nowhere else, whatever the answer is.

use std::fmt;

use mol::Code;
use mol::testing::internals::head_sha;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

pub fn is_the_id_of_the_commit(body: &[u8]) {
    // The simplest way to read it. Some numbers are too large for it.
    let simple = serde_json::from_slice::<Value>(body);
    match head_sha(body) {
        Ok(sha) => {
            assert!(is_id(&sha), "{sha}");
            if let Ok(answer) = simple {
                assert_eq!(answer["commit"]["id"], Value::from(sha));
            }
        }
        Err(error) => {
            assert_eq!(error.code, Code::BadResponse, "{error:?}");
            assert!(
                !error.message.is_empty() && !error.hint.is_empty(),
                "{error:?}"
            );
            let answer = simple.unwrap_or_default();
            let id = answer["commit"]["id"].as_str();
            if id.is_some_and(is_id) {
                assert!(says_it_twice(body), "{id:?}: {error:?}");
            }
        }
    }
}

fn is_id(id: &str) -> bool {
    let digits = id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    digits && matches!(id.len(), 40 | 64)
}

/// Of two commits, or two ids, the simple way takes the last. Which one is meant nobody knows.
fn says_it_twice(body: &[u8]) -> bool {
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

/// An object with all that is in it, in the order in which it is there.
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
