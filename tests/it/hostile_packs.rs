//! Hostile packs: corrupt, for another commit, or much larger than they look. None is used, none takes
//! much memory, and the next call works (promises P2, P5 and P9).

use std::time::{Duration, Instant};

use mol::Code;
use mol::event::Kind;

use crate::support::TestEnv;
use crate::support::git::{
    Object, deflate, deflated_zeros, entry, fetch_answer, pack, packed, packet, ref_delta, sha1,
    size,
};
use crate::support::server::{PLAIN, dockerfile, fetches};

/// More than the largest file that is accepted.
const TOO_LARGE: u64 = 600 << 20;

/// A template with this Dockerfile: the file, its tree, and the commit.
fn template(text: &str) -> [Object; 3] {
    let file = Object::blob(text);
    let tree = Object::tree([("100644", &b"Dockerfile"[..], file.id())]);
    let commit = Object::commit(&tree);
    [file, tree, commit]
}

/// The pack entries of these objects.
fn entries(objects: &[Object]) -> Vec<Vec<u8>> {
    objects.iter().map(Object::entry).collect()
}

/// A pack with one entry more than the template has.
fn with(extra: Vec<u8>) -> Vec<u8> {
    let mut entries = entries(&template(PLAIN));
    entries.push(extra);
    pack(4, &entries)
}

/// The pack of the template with one byte flipped, at this distance from the end, and a correct
/// trailing checksum.
fn corrupted(from_end: usize) -> Vec<u8> {
    let mut pack = packed(&template(PLAIN));
    let end = pack.len() - 20;
    pack[end - from_end] ^= 0x40;
    let sum = sha1(&pack[..end]);
    pack[end..].copy_from_slice(&sum);
    pack
}

/// Bad packs, each with its defect. The requested commit is always that of `template`.
fn broken_packs() -> Vec<(&'static str, Vec<u8>)> {
    let whole = template(PLAIN);
    let [file, tree, commit] = whole.clone();
    let good = packed(&whole);
    let base = (file.data.len() as u64, &file);
    let delta = |parts: &[&[u8]]| with(ref_delta(base.1, &parts.concat()));
    let other = template("FROM scratch\nCOPY Dockerfile /evil\n");
    let bad_commit = |text: &str| {
        let mut commit = Object::blob(text);
        commit.kind = crate::support::git::Kind::Commit;
        commit
    };
    let mut bad_sum = good.clone();
    *bad_sum.last_mut().unwrap() ^= 1;
    let mut version = good.clone();
    version[7] = 9;
    let mut signature = good.clone();
    signature[0] = b'K';
    let renumbered = |count: u32| pack(count, &entries(&whole));

    vec![
        ("nothing at all", Vec::new()),
        ("no objects", pack(0, &[])),
        ("another signature", signature),
        ("another version", version),
        ("a wrong trailing checksum", bad_sum),
        ("a wrong checksum of a zlib stream", corrupted(1)),
        ("a corrupt zlib stream", corrupted(12)),
        ("more objects than declared", renumbered(2)),
        ("fewer objects than declared", renumbered(4)),
        ("four billion objects declared", renumbered(u32::MAX)),
        ("an object of type 0", with(entry(0, 3, &deflate(b"abc")))),
        (
            "an object of the reserved type 5",
            with(entry(5, 3, &deflate(b"abc"))),
        ),
        (
            "an object shorter than declared",
            with(entry(3, 4, &deflate(b"abc"))),
        ),
        (
            "an object longer than declared",
            with(entry(3, 2, &deflate(b"abc"))),
        ),
        (
            "an object declared as a terabyte",
            with(entry(3, 1 << 40, &deflate(b"abc"))),
        ),
        (
            "an object of the largest declared size",
            with(entry(3, u64::MAX, &deflate(b"abc"))),
        ),
        ("an unterminated length", with(vec![0xff; 300])),
        (
            "an object that is not a zlib stream",
            with(entry(3, 3, b"abcdefgh")),
        ),
        (
            "an object that decompresses to 600 MiB",
            with(entry(3, TOO_LARGE, &deflated_zeros(TOO_LARGE))),
        ),
        (
            "a delta without its base",
            with(ref_delta(&Object::blob("not here"), &[3, 1, 1, b'x'])),
        ),
        (
            "a delta to the byte before it",
            with(entry(
                6,
                4,
                &[&[1][..], &deflate(&[3, 1, 1, b'x'])].concat(),
            )),
        ),
        (
            "a delta to before the start of the pack",
            with(entry(
                6,
                4,
                &[&[0xff, 0xff, 0x7f][..], &deflate(&[3, 1, 1, b'x'])].concat(),
            )),
        ),
        (
            "a delta to itself",
            with(entry(
                6,
                4,
                &[&[0][..], &deflate(&[3, 1, 1, b'x'])].concat(),
            )),
        ),
        (
            "a delta with a wrong base size",
            delta(&[&size(base.0 + 1), &[1, 1, b'x']]),
        ),
        (
            "a delta that copies from outside its base",
            delta(&[&size(base.0), &[20, 0x91, 250, 20]]),
        ),
        (
            "a delta result longer than declared",
            delta(&[&size(base.0), &[1, 3, b'x', b'y', b'z']]),
        ),
        (
            "a delta result shorter than declared",
            delta(&[&size(base.0), &[9, 1, b'x']]),
        ),
        ("a truncated delta", delta(&[&size(base.0), &[9, 9, b'x']])),
        (
            "a delta with the reserved instruction 0",
            delta(&[&size(base.0), &[1, 0]]),
        ),
        (
            "a delta result declared as a terabyte",
            delta(&[&size(base.0), &size(1 << 40), &[1, b'x']]),
        ),
        (
            "a delta with an unterminated result size",
            delta(&[&size(base.0), &[0xff; 30]]),
        ),
        ("another commit", packed(&other)),
        (
            "the commit without its tree",
            packed(&[file.clone(), commit.clone()]),
        ),
        (
            "the tree without its file",
            packed(&[tree.clone(), commit.clone()]),
        ),
        ("everything but the commit", packed(&[file.clone(), tree])),
        (
            "a commit without a tree",
            packed(&[bad_commit("author nobody\n\n")]),
        ),
        ("a commit that is empty", packed(&[bad_commit("")])),
    ]
}

#[test]
fn a_corrupt_or_wrong_pack_fails_the_fetch() {
    let env = TestEnv::new();
    let repository = env.server.template("hermes");
    for (what, pack) in broken_packs() {
        let commit = &template(PLAIN)[2];
        env.server.answer_with(&repository, commit, &pack);
        env.server.requests();
        let client = env.client();
        let begun = Instant::now();
        let error = client.ensure_err("hermes");
        assert_eq!(error.code, Code::Fetch, "{what}: {error:?}");
        assert!(error.message().contains(&commit.hex()), "{what}: {error:?}");
        assert!(
            error.message().contains(&env.server.repo_prefix),
            "{what}: {error:?}"
        );
        assert!(!error.hint.is_empty(), "{what}: {error:?}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{what}");
        assert_eq!(client.count(Kind::BuildStarted), 0, "{what}");
        assert!(env.is_clean(), "{what}: {:?}", env.fetched());
        assert_eq!(
            fetches(&env.server.requests()),
            1,
            "{what}: not retried, the same pack would come again"
        );
    }
    env.server.faults(serde_json::json!([]));
    env.template("codex", dockerfile(PLAIN));
    env.client().ensure("codex").unwrap();
}

#[test]
fn a_commit_id_of_a_blob_or_tree_fails_the_fetch() {
    let env = TestEnv::new();
    let whole = template(PLAIN);
    for object in &whole[..2] {
        env.server.plant(&env.server.template("hermes"), &whole);
        env.server
            .answer_with(&env.server.template("hermes"), object, &packed(&whole));
        let branch = serde_json::json!({ "commit": { "id": object.hex() } });
        env.server.more_faults(
            serde_json::json!([{ "match": "/api/", "status": 200, "body": branch.to_string() }]),
        );
        let error = env.client().ensure_err("hermes");
        assert_eq!(error.code, Code::Fetch, "{error:?}");
        assert!(env.is_clean());
    }
}

#[test]
fn a_server_error_instead_of_a_pack_is_reported() {
    let env = TestEnv::new();
    let commit = &template(PLAIN)[2];
    let said = "upload-pack: the disk of this server is full";
    let band = [b"\x03", said.as_bytes()].concat();
    let answers = [
        packet(format!("ERR {said}\n")),
        [packet("packfile\n"), packet(&band), b"0000".to_vec()].concat(),
        [
            packet("packfile\n"),
            packet([b"\x01", &packed(&template(PLAIN))[..40]].concat()),
            packet(&band),
            b"0000".to_vec(),
        ]
        .concat(),
    ];
    for answer in answers {
        env.server
            .answer_fetch(&env.server.template("hermes"), commit, &answer);
        let error = env.client().ensure_err("hermes");
        assert_eq!(error.code, Code::Fetch, "{error:?}");
        assert!(error.message().contains(said), "{error:?}");
        assert!(env.is_clean());
    }
}

#[test]
fn a_response_that_violates_the_protocol_fails_the_fetch() {
    let env = TestEnv::new();
    let [file, tree, commit] = template(PLAIN);
    let good = packed(&[file, tree, commit.clone()]);
    let whole = fetch_answer(&commit.hex(), &good);
    let rows: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("a flush packet only", b"0000".to_vec()),
        (
            "an unknown section",
            [packet("surprise\n"), packet("x"), b"0000".to_vec()].concat(),
        ),
        (
            "a packet with an invalid length",
            b"zzzzpackfile\n".to_vec(),
        ),
        (
            "a packet shorter than its length",
            b"ffffpackfile\n".to_vec(),
        ),
        ("a packet of length one", b"0001000200030001".to_vec()),
        (
            "the pack on an unknown side band",
            [
                packet("packfile\n"),
                packet([b"\x07", &good[..]].concat()),
                b"0000".to_vec(),
            ]
            .concat(),
        ),
        (
            "the pack without a side band",
            [packet("packfile\n"), good.clone()].concat(),
        ),
        (
            "a shallow line without a commit",
            [
                packet("shallow-info\n"),
                packet("shallow zzzz\n"),
                b"0001".to_vec(),
                packet("packfile\n"),
            ]
            .concat(),
        ),
        (
            "the pack without its last bytes",
            whole[..whole.len() - 40].to_vec(),
        ),
    ];
    for (what, answer) in rows {
        env.server
            .answer_fetch(&env.server.template("hermes"), &commit, &answer);
        let client = env.client();
        let error = client.ensure_err("hermes");
        assert_eq!(error.code, Code::Fetch, "{what}: {error:?}");
        assert!(!error.hint.is_empty(), "{what}: {error:?}");
        assert!(env.is_clean(), "{what}: {:?}", env.fetched());
    }
}
