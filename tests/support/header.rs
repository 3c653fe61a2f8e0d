//! Parses the declarations of include/mol.h, limited to the C that its generator writes.

use super::child::source;

pub struct Header {
    /// In the order of the file.
    pub declarations: Vec<Declaration>,
}

/// Texts are on one line, without comments.
#[derive(Debug)]
pub enum Declaration {
    Function {
        name: String,
        parameters: Vec<String>,
        text: String,
    },
    Enum {
        name: String,
        constants: Vec<String>,
    },
    /// Fields by name, with their declarations.
    Struct {
        name: String,
        fields: Vec<(String, String)>,
    },
}

impl Header {
    pub fn read() -> Self {
        let text = std::fs::read_to_string(source("include/mol.h")).unwrap();
        let (_, code) = text.split_once("#define MOL_H").unwrap();
        // Without comments, preprocessor lines and C++ parts; one declaration per piece.
        let mut code: String = code
            .lines()
            .map(|line| line.split("//").next().unwrap())
            .filter(|line| !line.starts_with('#'))
            .flat_map(|line| [line, " "])
            .collect();
        code = code
            .replace("extern \"C\" {", "")
            .replace("MOL_NODISCARD", "");
        let mut declarations = Vec::new();
        while let Some((piece, rest)) = piece(&code) {
            declarations.extend(declaration(&piece));
            code = rest;
        }
        let functions = |d: &&Declaration| matches!(d, Declaration::Function { .. });
        assert!(
            declarations.iter().filter(functions).count() > 10,
            "{declarations:?}"
        );
        Self { declarations }
    }

    /// The functions, and the names of their parameters.
    pub fn functions(&self) -> impl Iterator<Item = (&str, &[String])> {
        self.declarations
            .iter()
            .filter_map(|declaration| match declaration {
                Declaration::Function {
                    name, parameters, ..
                } => Some((&**name, &**parameters)),
                _ => None,
            })
    }
}

/// The code up to the next semicolon outside braces, with single spaces, and the rest.
fn piece(code: &str) -> Option<(String, String)> {
    let mut depth = 0;
    for (at, c) in code.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ';' if depth == 0 => {
                let words: Vec<&str> = code[..at].split_whitespace().collect();
                return Some((words.join(" "), code[at + 1..].to_owned()));
            }
            _ => {}
        }
    }
    None
}

fn declaration(text: &str) -> Option<Declaration> {
    let last_word = |text: &str| text.rsplit([' ', '*']).next().unwrap().to_owned();
    if let Some((head, body)) = text.split_once('{') {
        let (body, tail) = body.rsplit_once('}').unwrap();
        let head = head.strip_prefix("typedef ").unwrap().trim();
        let (keyword, tag) = head.split_once(' ').unwrap();
        let name = tail.trim().to_owned();
        assert_eq!(tag, name, "the tag is the name of the type");
        let separator = if keyword == "enum" { ',' } else { ';' };
        let parts = body.split(separator).map(str::trim);
        let parts = parts.filter(|part| !part.is_empty());
        return Some(match keyword {
            "enum" => Declaration::Enum {
                name,
                constants: parts
                    .map(|c| c.split(' ').next().unwrap().to_owned())
                    .collect(),
            },
            "struct" => Declaration::Struct {
                name,
                fields: parts
                    .map(|field| (last_word(field), field.to_owned()))
                    .collect(),
            },
            _ => panic!("{text}"),
        });
    }
    let (head, parameters) = text.split_once('(')?;
    let parameters = parameters.strip_suffix(')').unwrap();
    let parameters = match parameters {
        "void" => Vec::new(),
        parameters => parameters.split(',').map(last_word).collect(),
    };
    Some(Declaration::Function {
        name: last_word(head),
        parameters,
        text: text.to_owned(),
    })
}
