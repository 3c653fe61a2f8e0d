//! Trees that git itself never writes, as a hostile template may contain them. Git's own server sends
//! them; where git refuses to, the test sends its own pack. Each is refused or checked out as git does it, and
//! nothing is written outside the tree (promises P5 and P7).

use std::time::{Duration, Instant};

use mol::Code;
use mol::event::Kind;

use crate::support::git::{Object, packed};
use crate::support::server::dockerfile;
use crate::support::{TestClient, TestEnv};

const DOCKERFILE: &str = "FROM scratch\nCOPY . /\n";

/// What a tree entry points to.
#[derive(Clone)]
enum Node {
    File,
    Link(String),
    Folder(Vec<Entry>),
    /// A submodule commit.
    Gitlink,
}

/// A tree entry: mode, name, target.
type Entry = (&'static str, String, Node);

fn entry(mode: &'static str, name: &str, node: Node) -> Entry {
    (mode, name.to_owned(), node)
}

fn file(name: &str) -> Entry {
    entry("100644", name, Node::File)
}

fn link(name: &str, to: &str) -> Entry {
    entry("120000", name, Node::Link(to.to_owned()))
}

fn folder(name: &str, entries: Vec<Entry>) -> Entry {
    entry("40000", name, Node::Folder(entries))
}

/// The objects of a template with these entries and a Dockerfile; the commit comes last.
fn template(entries: &[Entry]) -> Vec<Object> {
    let mut objects = vec![Object::blob(DOCKERFILE)];
    let dockerfile = ("100644", &b"Dockerfile"[..], objects[0].id());
    let root = tree(entries, Some(dockerfile), &mut objects);
    objects.push(Object::commit(&root));
    objects
}

fn tree(
    entries: &[Entry],
    first: Option<(&str, &[u8], Vec<u8>)>,
    objects: &mut Vec<Object>,
) -> Object {
    let mut list: Vec<_> = first.into_iter().collect();
    for (mode, name, node) in entries {
        let object = match node {
            Node::File => Object::blob("something\n"),
            Node::Link(to) => Object::blob(to),
            Node::Folder(entries) => tree(entries, None, objects),
            Node::Gitlink => {
                list.push((mode, name.as_bytes(), vec![7; 20]));
                continue;
            }
        };
        list.push((mode, name.as_bytes(), object.id()));
        objects.push(object);
    }
    let tree = Object::tree(list);
    objects.push(tree.clone());
    tree
}

/// The tree is refused with a message containing `says`, before the build, and nothing is left behind.
fn assert_refused(env: &TestEnv, client: &TestClient, what: &str, says: &str) {
    let begun = Instant::now();
    let error = client.ensure_err("hermes");
    assert_eq!(error.code, Code::Fetch, "{what}: {error:?}");
    assert!(error.message().contains(says), "{what}: {error:?}");
    assert!(!error.hint.is_empty(), "{what}: {error:?}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{what}");
    assert_eq!(client.count(Kind::BuildStarted), 0, "{what}");
    assert!(env.is_clean(), "{what}: {:?}", env.fetched());
}

#[test]
fn a_tree_that_git_would_not_check_out_is_refused() {
    let env = TestEnv::new();
    let outside = env.scratch().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let out = outside.to_str().unwrap();
    let hook = entry("100755", "post-checkout", Node::File);
    let long = "n".repeat(256);

    // (label, entries, part of the error message)
    let rows = [
        ("the parent folder", vec![file("..")], "'..'"),
        (
            "a file in the parent folder",
            vec![folder("..", vec![file("x")])],
            "'..'",
        ),
        ("the folder itself", vec![file(".")], "'.'"),
        (
            "an absolute path",
            vec![file(&format!("{out}/x"))],
            "separators",
        ),
        (
            "a path that leads out",
            vec![file("../outside/x")],
            "separators",
        ),
        ("a name with a slash", vec![file("a/b")], "separators"),
        (".git", vec![file(".git")], ".git"),
        (
            "a hook",
            vec![folder(".git", vec![folder("hooks", vec![hook])])],
            ".git",
        ),
        (
            ".git further down",
            vec![folder("a", vec![folder(".git", vec![file("config")])])],
            ".git",
        ),
        (
            ".git in capitals",
            vec![folder(".GIT", vec![file("config")])],
            ".git",
        ),
        (
            ".git as a short name on Windows",
            vec![file("git~1")],
            ".git",
        ),
        (
            ".git with characters that Windows ignores",
            vec![file(".git. .")],
            ".git",
        ),
        (
            ".git as an NTFS stream",
            vec![file(".git::$INDEX_ALLOCATION")],
            ".git",
        ),
        (
            ".git with a character that macOS ignores",
            vec![file(".g\u{200c}it")],
            ".git",
        ),
        (
            "a link that git would follow",
            vec![link(".gitmodules", out)],
            ".gitmodules",
        ),
        ("a name twice", vec![file("a"), file("a")], "twice"),
        (
            "a file and a folder with the same name",
            vec![file("a"), folder("a", vec![file("x")])],
            "twice",
        ),
        (
            "the same, with another entry between them",
            vec![file("a"), file("a.b"), folder("a", vec![file("x")])],
            "twice",
        ),
        (
            "a link and a file through it",
            vec![link("a", out), folder("a", vec![file("x")])],
            "twice",
        ),
        (
            "a file through a later link",
            vec![folder("a", vec![file("x")]), link("a", out)],
            "twice",
        ),
        (
            "a link twice, and a file",
            vec![link("a", out), link("a", "b"), file("a")],
            "twice",
        ),
        (
            "a file of mode 0",
            vec![entry("0", "a", Node::File)],
            "mode 0",
        ),
        (
            "a device",
            vec![entry("60000", "a", Node::File)],
            "mode 60000",
        ),
        (
            "a file with every mode bit set",
            vec![entry("777777", "a", Node::File)],
            "mode",
        ),
        (
            "a folder with the mode of a file",
            vec![entry("100644", "a", Node::Folder(vec![file("x")]))],
            "is a tree",
        ),
        (
            "a link with an empty target",
            vec![link("a", "")],
            "checked out",
        ),
        ("a link with a NUL", vec![link("a", "b\0c")], "NUL"),
        (
            "a link that is too long",
            vec![link("a", &"x".repeat(5000))],
            "a link to a path of more than 4095 bytes",
        ),
        (
            "a name that is too long",
            vec![file(&long)],
            "a name of more than 255 bytes",
        ),
    ];
    for (what, entries, says) in rows {
        let objects = template(&entries);
        let client = env.client();
        env.server.plant(&env.server.template("hermes"), &objects);
        assert_refused(&env, &client, what, says);
        let written: Vec<_> = std::fs::read_dir(&outside).unwrap().collect();
        assert!(written.is_empty(), "{what}: {written:?}");
    }
    env.template("hermes", dockerfile(DOCKERFILE));
    env.client().ensure("hermes").unwrap();
}

#[test]
fn a_malformed_tree_object_is_refused() {
    let env = TestEnv::new();
    let rows = [
        ("a file without a name", vec![file("")], "no name"),
        (
            "a folder without a name",
            vec![folder("", vec![file("x")])],
            "no name",
        ),
        (
            "the same further down",
            vec![folder("a", vec![file("")])],
            "\"a\" has no name",
        ),
        (
            "a mode in letters",
            vec![entry("rw-r--", "a", Node::File)],
            "parsing",
        ),
        (
            "a mode that is too long",
            vec![entry("1006440000000", "a", Node::File)],
            "parsing",
        ),
        (
            "a file with the mode of a folder",
            vec![entry("40000", "a", Node::File)],
            "tree",
        ),
    ];
    for (what, entries, says) in rows {
        let objects = template(&entries);
        env.server.answer_with(
            &env.server.template("hermes"),
            objects.last().unwrap(),
            &packed(&objects),
        );
        assert_refused(&env, &env.client(), what, says);
    }
}

#[test]
fn an_unusual_but_valid_tree_is_checked_out() {
    let env = TestEnv::new();
    let all = |names: &[&str]| {
        names
            .iter()
            .map(|name| (*name).to_owned())
            .collect::<Vec<_>>()
    };
    let rows = [
        // A case-insensitive file system refuses this instead.
        (
            "names that differ in case only",
            vec![file("README"), file("readme")],
            all(&["README", "readme"]),
        ),
        (
            "modes written by old versions of git",
            vec![
                entry("100664", "a", Node::File),
                entry("100600", "b", Node::File),
            ],
            all(&["a", "b"]),
        ),
        (
            "a mode with a leading zero",
            vec![entry("040000", "d", Node::Folder(vec![file("x")]))],
            all(&["d/x"]),
        ),
        (
            "a setuid file",
            vec![entry("104755", "a", Node::File)],
            all(&["a"]),
        ),
        (
            "names out of order",
            vec![file("b"), file("a")],
            all(&["a", "b"]),
        ),
        (
            "a submodule commit",
            vec![entry("160000", "other", Node::Gitlink), file("a")],
            all(&["a"]),
        ),
        (
            "names that are special on Windows only",
            vec![file("a\\..\\b"), file("c:d"), file("con")],
            all(&["a\\..\\b", "c:d", "con"]),
        ),
        (
            "a name with a line break",
            vec![file("a\nb")],
            all(&["a\nb"]),
        ),
        (
            "links that lead out",
            vec![link("a", "/etc/passwd"), link("b", "../../..")],
            all(&["a", "b"]),
        ),
    ];
    for (what, entries, mut want) in rows {
        env.engine.remove_all_of(&env.isolation);
        env.server
            .plant(&env.server.template("hermes"), &template(&entries));
        let image = env.client().ensure("hermes");
        let image = image.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        let files = env.engine.files(&image.reference);
        want.insert(0, "Dockerfile".to_owned());
        want.sort();
        assert_eq!(files.keys().cloned().collect::<Vec<_>>(), want, "{what}");
        for (path, entry) in files {
            assert_eq!(
                entry.mode & 0o7000,
                0,
                "{what}: {path} has setuid, setgid or sticky bits"
            );
        }
    }
}

#[test]
fn excessively_nested_folders_are_refused_at_once() {
    let env = TestEnv::new();
    let mut objects = vec![Object::tree([])];
    for _ in 0..20_000 {
        let below = objects.last().unwrap().id();
        objects.push(Object::tree([("40000", &b"d"[..], below)]));
    }
    objects.push(Object::commit(objects.last().unwrap()));
    env.server.answer_with(
        &env.server.template("hermes"),
        objects.last().unwrap(),
        &packed(&objects),
    );
    assert_refused(
        &env,
        &env.client(),
        "20000 nested folders",
        "nested more than 128 levels deep",
    );
}

#[test]
fn folders_may_be_nested_128_levels_deep() {
    let env = TestEnv::new();
    for levels in [128, 129] {
        let file = Object::blob(DOCKERFILE);
        let leaf = Object::tree([("100644", &b"file"[..], file.id())]);
        // Both names refer to the same tree object, so its second use needs no read.
        let leaves = [&b"a"[..], b"b"].map(|name| ("40000", name, leaf.id()));
        let mut objects = vec![file.clone(), leaf.clone(), Object::tree(leaves)];
        for _ in 0..levels - 3 {
            let below = objects.last().unwrap().id();
            objects.push(Object::tree([("40000", &b"d"[..], below)]));
        }
        let root = Object::tree([
            ("100644", &b"Dockerfile"[..], file.id()),
            ("40000", b"d", objects.last().unwrap().id()),
        ]);
        objects.extend([root.clone(), Object::commit(&root)]);
        env.server.answer_with(
            &env.server.template("hermes"),
            objects.last().unwrap(),
            &packed(&objects),
        );
        match env.client().ensure("hermes") {
            Ok(_) => assert_eq!(levels, 128),
            Err(error) => {
                assert_eq!(levels, 129, "{error:?}");
                let text = "too large: it has folders nested more than 128 levels deep";
                assert!(error.message().contains(text), "{error:?}");
            }
        }
    }
}

#[test]
fn patterns_prone_to_backtracking_match_quickly() {
    let env = TestEnv::new();
    let pattern = format!("{}b", "*a".repeat(60));
    let mut files = dockerfile(DOCKERFILE);
    for name in [".gitattributes", ".dockerignore"] {
        files.insert(
            name.to_owned(),
            crate::support::file(&format!("{pattern} text\n{pattern}\n")),
        );
    }
    files.insert("a".repeat(200), crate::support::file("x"));
    env.template("hermes", files);
    let begun = Instant::now();
    env.client().ensure("hermes").unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "{:?}",
        begun.elapsed()
    );
}
