//! Decompression bombs: templates of a few kilobytes that would expand to gigabytes of memory, or take
//! minutes (promise P9). A separate process fetches each one. Its memory must stay far below the
//! library's limit, and its error must name what is too large and the limit. Packs within the limits
//! must be fetched in little memory too.

use std::time::{Duration, Instant};

use mol::OptionName;
use mol::event::Kind;
use serde_json::json;

use crate::support::child::{Peak, peak};
use crate::support::git::{
    Object, deflate, deflated_zeros, entry, fetch_answer, pack, packed, packet, ref_delta, size,
};
use crate::support::server::{PLAIN, dockerfile};
use crate::support::{Files, TestEnv, block_on, file, wait_until};

const MIB: u64 = 1 << 20;

/// Upper bound for the memory growth of one fetch, in MiB: much less than the library's limit of 512.
const MAX_GROWTH_MIB: u64 = 96;

/// A bomb must be refused within this time, on a busy machine too. Without a limit it would take minutes.
const TIME_LIMIT: Duration = Duration::from_secs(45);

/// Closing a client takes at most 2 s, whatever is running, plus some time to measure it.
const CLOSE_LIMIT: Duration = Duration::from_millis(2500);

/// A tree entry: mode, name, object.
type Row<'a> = (&'a str, Vec<u8>, &'a Object);

fn tree(rows: Vec<Row<'_>>) -> Object {
    Object::tree(
        rows.iter()
            .map(|(mode, name, object)| (*mode, &name[..], object.id())),
    )
}

fn tree_of(names: impl IntoIterator<Item = String>, mode: &'static str, object: &Object) -> Object {
    let names: Vec<String> = names.into_iter().collect();
    Object::tree(
        names
            .iter()
            .map(|name| (mode, name.as_bytes(), object.id())),
    )
}

/// Adds a root tree and its commit. The root has a Dockerfile and a folder `x`, which is the last of `objects` (a
/// tree).
fn template(mut objects: Vec<Object>) -> Vec<Object> {
    let dockerfile = Object::blob(PLAIN);
    let below = objects.last().unwrap().clone();
    let root = tree(vec![
        ("100644", b"Dockerfile".to_vec(), &dockerfile),
        ("40000", b"x".to_vec(), &below),
    ]);
    objects.extend([dockerfile, root.clone(), Object::commit(&root)]);
    objects
}

/// A pack of these objects and of more raw entries.
fn pack_with(objects: &[Object], more: Vec<Vec<u8>>) -> Vec<u8> {
    let mut entries: Vec<Vec<u8>> = objects.iter().map(Object::entry).collect();
    entries.extend(more);
    pack(u32::try_from(entries.len()).unwrap(), &entries)
}

/// A template with one file besides the Dockerfile.
fn one_file(mode: &str, name: &str, content: impl AsRef<[u8]>) -> Vec<Object> {
    let file = Object::blob(content);
    let folder = tree(vec![(mode, name.as_bytes().to_vec(), &file)]);
    template(vec![file, folder])
}

/// Nested folders, `levels` deep. Each also contains `file`, if there is one.
fn nested(
    levels: usize,
    name: &str,
    bottom: Vec<Object>,
    file: Option<(&str, &Object)>,
) -> Vec<Object> {
    let mut objects = bottom;
    for _ in 0..levels {
        let below = objects.last().unwrap().clone();
        let mut rows = vec![("40000", name.as_bytes().to_vec(), &below)];
        if let Some((name, file)) = file {
            rows.push(("100644", name.as_bytes().to_vec(), file));
        }
        let folder = tree(rows);
        objects.push(folder);
    }
    objects
}

/// A tree with `folders` entries, all the same folder, whose 1000 entries are all the same file. The
/// file names have `length` letters. The tree is the last object.
fn many_files(folders: usize, length: usize) -> Vec<Object> {
    let file = Object::blob("spam\n");
    let names = (0..1000).map(|number| format!("{number:0length$}"));
    let thousand = tree_of(names, "100644", &file);
    let folder = tree_of(numbers(folders), "40000", &thousand);
    vec![file, thousand, folder]
}

/// Adds a tree with a `.gitattributes` and, as `folder`, the last object (a tree).
fn with_attributes(mut objects: Vec<Object>, text: String) -> Vec<Object> {
    let attributes = Object::blob(text);
    let folder = objects.last().unwrap().clone();
    let root = tree(vec![
        ("100644", b".gitattributes".to_vec(), &attributes),
        ("40000", b"folder".to_vec(), &folder),
    ]);
    objects.extend([attributes, root]);
    objects
}

/// Numbers with leading zeros, so that git's order is the numeric one.
fn numbers(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|number| format!("{number:06}"))
}

/// A delta that produces `length` zeros by copying the first 16 MiB of a base of zeros.
fn zeros_of(base: u64, length: u64) -> Vec<u8> {
    let mut delta = [size(base), size(length)].concat();
    let mut left = length;
    while left > 0 {
        // A copy instruction: offset 0, a length of three bytes.
        let piece = left.min(0xff_ffff);
        delta.push(0xf0);
        delta.extend_from_slice(&piece.to_le_bytes()[..3]);
        left -= piece;
    }
    delta
}

/// A chain of OFS_DELTA entries, each based on the one before. The first is `length` zeros, compressed.
/// Each link has `siblings` more deltas with the same base.
fn chain(length: u64, links: usize, siblings: usize) -> Vec<Vec<u8>> {
    let mut entries = vec![entry(3, length, &deflated_zeros(length))];
    // Each link begins with a different byte, so that it is not equal to its base.
    for link in 0..links {
        let mut delta = [size(length), size(length), vec![1, link as u8 + 1]].concat();
        delta.extend_from_slice(&zeros_of(length, length - 1)[2 * size(length).len()..]);
        for sibling in 0..=siblings {
            // The base is the first entry of the previous link.
            let back = match link {
                0 => 1 + sibling,
                _ => siblings + 1 + sibling,
            };
            let first = entries.len() - back;
            let distance: usize = entries[first..].iter().map(Vec::len).sum();
            let rest = [offset(distance as u64), deflate(&delta)].concat();
            entries.push(entry(6, delta.len() as u64, &rest));
        }
    }
    entries
}

/// The distance of an OFS_DELTA (gitformat-pack(5), "offset encoding").
fn offset(mut distance: u64) -> Vec<u8> {
    let mut bytes = vec![(distance & 0x7f) as u8];
    while distance > 0x7f {
        distance = (distance >> 7) - 1;
        bytes.push((distance & 0x7f) as u8 | 0x80);
    }
    bytes.reverse();
    bytes
}

/// Many empty stored blocks of deflate (RFC 1951, section 3.2.4).
fn blocks_without_content(count: usize) -> Vec<u8> {
    [vec![0x78, 0x01], [0, 0, 0, 0xff, 0xff].repeat(count)].concat()
}

fn fetch_pack(env: &TestEnv, pack: &[u8], commit: &Object) -> (Peak, Duration) {
    env.server
        .answer_with(&env.server.template("hermes"), commit, pack);
    // Only the id, not the whole commit as in Gitea's answer: that could exceed a limit too.
    let branch = json!({ "commit": { "id": commit.hex() } }).to_string();
    env.server
        .more_faults(json!([{ "match": "/api/", "status": 200, "body": branch }]));
    measure_fetch(env)
}

fn measure_fetch(env: &TestEnv) -> (Peak, Duration) {
    let begun = Instant::now();
    let end = peak(env, &[], Some(Duration::from_secs(120)));
    (end, begun.elapsed())
}

fn assert_refused(env: &TestEnv, what: &str, says: &str, (end, took): (Peak, Duration)) {
    println!("{what}: {} MiB, {took:?}: {}", end.growth_mib, end.message);
    assert_eq!(end.status, "fetch", "{what}: {end:?}");
    assert!(end.message.contains(says), "{what}: {end:?}");
    assert!(end.growth_mib < MAX_GROWTH_MIB, "{what}: {end:?}");
    assert!(took < TIME_LIMIT, "{what}: {took:?}");
    assert_eq!((end.sockets, end.files), (0, 0), "{what}: {end:?}");
    assert!(env.is_clean(), "{what}: {:?}", env.fetched());
}

#[test]
fn tree_bombs_are_refused_in_little_memory() {
    let env = TestEnv::new();
    let file = Object::blob("spam\n");
    let hundred = tree_of(numbers(100), "100644", &file);
    let hundreds = tree_of(numbers(100), "40000", &hundred);
    let attributes = Object::blob("* text\n".repeat(1000));
    let empty = Object::tree([]);
    let long = "n".repeat(255);
    let many = tree_of(numbers(100_000), "100644", &file);
    let unique = numbers(6).map(|name| {
        let rows = numbers(100_000).map(|number| format!("{name}-{number}"));
        tree_of(rows, "100644", &file)
    });
    let mut wide: Vec<Object> = std::iter::once(file.clone()).chain(unique).collect();
    let folders: Vec<Object> = wide[1..].to_vec();
    wide.push(tree(
        (folders.iter().enumerate())
            .map(|(number, folder)| ("40000", format!("{number}").into_bytes(), folder))
            .collect(),
    ));
    let mut levels = vec![empty.clone()];
    for _ in 0..10 {
        let below = levels.last().unwrap();
        levels.push(tree_of(numbers(10), "40000", below));
    }

    let rows: Vec<(&str, &str, Vec<Object>)> = vec![
        (
            "a folder name of 1 MiB above 10,000 files",
            "a name of more than 255 bytes",
            template(vec![
                file.clone(),
                hundred.clone(),
                hundreds.clone(),
                tree_of(["n".repeat(MIB as usize)], "40000", &hundreds),
            ]),
        ),
        (
            "900 levels of names of 255 bytes",
            "a path of more than 4095 bytes",
            template(nested(
                900,
                &long,
                vec![file.clone(), hundred.clone()],
                None,
            )),
        ),
        (
            "100,000 files below 15 such levels",
            "paths of more than 64.0 MiB",
            template(nested(15, &long, vec![file.clone(), many.clone()], None)),
        ),
        (
            "100,000 files under a path, from 100 folders",
            "more than 500000 files",
            template(vec![
                file.clone(),
                many.clone(),
                tree_of(numbers(100), "40000", &many),
            ]),
        ),
        (
            "600,000 names in six folders",
            "more than 500000 files",
            template(wide),
        ),
        (
            "ten billion empty folders",
            "more than 500000 files",
            template(levels),
        ),
        (
            "a list of files of 64 MiB",
            "a list of files of more than 32.0 MiB",
            template(vec![file.clone(), {
                let names = (0..240_000).map(|number| format!("{number:0255}"));
                tree_of(names, "100644", &file)
            }]),
        ),
        (
            "a .gitattributes of 48 MiB",
            "more than 256.0 KiB of .gitattributes",
            one_file("100644", ".gitattributes", "* text\n".repeat(7 << 20)),
        ),
        (
            "a .gitattributes with one line of 48 MiB",
            "more than 256.0 KiB of .gitattributes",
            one_file("100644", ".gitattributes", "a".repeat(48 << 20)),
        ),
        (
            "a .gitattributes in each of 100 folders",
            "more than 256.0 KiB of .gitattributes",
            template(nested(
                100,
                "d",
                vec![
                    attributes.clone(),
                    hundred.clone(),
                    file.clone(),
                    empty.clone(),
                ],
                Some((".gitattributes", &attributes)),
            )),
        ),
        (
            "20,000 files named .gitattributes",
            "10000 files named .gitattributes",
            {
                let few = Object::blob("a b\n");
                let folder = tree_of([".gitattributes".to_owned()], "100644", &few);
                let folders = tree_of(numbers(20_000), "40000", &folder);
                template(vec![few, folder, folders])
            },
        ),
        (
            "a pattern with 60 times **",
            "pattern with more than 2 \"**\"",
            one_file(
                "100644",
                ".gitattributes",
                format!("{}b text\n", "**/".repeat(60)),
            ),
        ),
        (
            "a quoted pattern with 60 times **",
            "pattern with more than 2 \"**\"",
            one_file(
                "100644",
                ".gitattributes",
                format!("\"{}b\" text\n", r"\052\052/".repeat(60)),
            ),
        ),
        (
            "a link to a path of 48 MiB",
            "a link to a path of more than 4095 bytes",
            one_file("120000", "link", "a".repeat(48 << 20)),
        ),
        (
            "a commit with a message of 48 MiB",
            "a commit of more than 4.0 MiB",
            {
                let mut objects = template(vec![file.clone(), hundred.clone()]);
                let commit = objects.last_mut().unwrap();
                commit.data.extend(vec![b'a'; 48 << 20]);
                objects
            },
        ),
        (
            "a file of 24 MiB that is to be converted",
            "of more than 4.0 MiB that .gitattributes converts (eol",
            {
                let text = Object::blob("line\n".repeat(24 << 20 >> 2));
                let attributes = Object::blob("* text eol=crlf\n");
                let folder = tree(vec![
                    ("100644", b".gitattributes".to_vec(), &attributes),
                    ("100644", b"text".to_vec(), &text),
                ]);
                template(vec![text, attributes, folder])
            },
        ),
        (
            "a file of 2 MiB of $Id$",
            "of more than 4.0 MiB with each $Id$ replaced",
            {
                let text = Object::blob("$Id$".repeat(2 << 20 >> 2));
                let attributes = Object::blob("* ident\n");
                let folder = tree(vec![
                    ("100644", b".gitattributes".to_vec(), &attributes),
                    ("100644", b"text".to_vec(), &text),
                ]);
                template(vec![text, attributes, folder])
            },
        ),
    ];
    for (what, says, objects) in rows {
        let end = fetch_pack(&env, &packed(&objects), objects.last().unwrap());
        assert_refused(&env, what, says, end);
    }
}

#[test]
fn pack_bombs_are_refused_in_little_memory() {
    let env = TestEnv::new();
    let file = Object::blob("spam\n");
    let objects = template(vec![file.clone(), tree_of(numbers(10), "100644", &file)]);
    let commit = objects.last().unwrap();
    let large = 500 * MIB;
    let zeros = entry(3, large, &deflated_zeros(large));
    let delta = [&file.id()[..], &deflated_zeros(large)].concat();
    let large_delta = entry(7, large, &delta);
    let rows: Vec<(&str, &str, Vec<u8>)> = vec![
        (
            "ten objects of 500 MiB",
            "objects of more than 4.0 GiB",
            pack_with(&objects, vec![zeros; 10]),
        ),
        (
            // Each makes an empty object.
            "ten deltas of 500 MiB",
            "objects of more than 4.0 GiB",
            pack_with(&objects, vec![large_delta; 10]),
        ),
        (
            "a chain of 300 MiB objects with pending siblings",
            "objects of more than 4.0 GiB",
            pack_with(&objects, chain(300 * MIB, 10, 2)),
        ),
        (
            "a delta that announces 600 MiB",
            "a file of more than 512.0 MiB",
            pack_with(
                &objects,
                vec![ref_delta(
                    &file,
                    &zeros_of(file.data.len() as u64, 600 * MIB),
                )],
            ),
        ),
        (
            "an object of 5 bytes in a million empty blocks",
            "compressed data is far larger than the object",
            pack_with(
                &objects,
                vec![entry(3, 5, &blocks_without_content(1_000_000))],
            ),
        ),
        (
            "a delta that announces a terabyte",
            "a file of more than 512.0 MiB",
            pack_with(
                &objects,
                vec![ref_delta(
                    &file,
                    &[size(file.data.len() as u64), size(1 << 40)].concat(),
                )],
            ),
        ),
        (
            "an object that decompresses to 600 MiB",
            "a file of more than 512.0 MiB",
            pack_with(
                &objects,
                vec![entry(3, 600 * MIB, &deflated_zeros(600 * MIB))],
            ),
        ),
        (
            "an object that announces a terabyte",
            "a file of more than 512.0 MiB",
            pack_with(&objects, vec![entry(3, 1 << 40, &deflate(b"abc"))]),
        ),
        (
            "a million objects",
            "more than 500002 objects",
            pack(1_000_000, &vec![file.entry(); 1_000_000]),
        ),
        (
            "four billion announced objects",
            "more than 500002 objects",
            pack(u32::MAX, &vec![Object::blob("").entry(); 100_000]),
        ),
    ];
    for (what, says, pack) in rows {
        assert_refused(&env, what, says, fetch_pack(&env, &pack, commit));
    }
}

#[test]
fn endless_git_messages_cost_little_memory() {
    let env = TestEnv::new();
    let objects = template(vec![Object::blob("spam\n"), Object::tree([])]);
    let commit = objects.last().unwrap();
    let shallow = packet(format!("shallow {}", commit.hex()));
    let before = [
        packet("shallow-info\n"),
        shallow.clone(),
        b"0001".to_vec(),
        packet("packfile\n"),
    ]
    .concat();
    let progress = packet([&[2][..], &b"counting objects: done\n".repeat(2000)].concat());
    let whole = fetch_answer(&commit.hex(), &packed(&objects));
    let end = whole.len() - 4;
    let rows: Vec<(&str, Vec<u8>)> = vec![
        (
            "shallow info",
            [packet("shallow-info\n"), shallow.repeat(300_000)].concat(),
        ),
        (
            "progress messages",
            [before.clone(), progress.repeat(300)].concat(),
        ),
        (
            "empty progress messages",
            [before.clone(), packet([2]).repeat(3_000_000)].concat(),
        ),
        (
            "empty packets",
            [before, b"0004".repeat(3_000_000)].concat(),
        ),
        (
            "acknowledgements",
            [
                packet("acknowledgments\n"),
                packet("NAK\n").repeat(2_000_000),
            ]
            .concat(),
        ),
        (
            "progress messages after the pack",
            [&whole[..end], &progress.repeat(300)].concat(),
        ),
    ];
    for (what, answer) in rows {
        env.server
            .answer_fetch(&env.server.template("hermes"), commit, &answer);
        let (end, took) = measure_fetch(&env);
        println!("{what}: {} MiB, {took:?}: {}", end.growth_mib, end.message);
        // Nothing after the pack is read.
        let expected = if what == "progress messages after the pack" {
            "ok"
        } else {
            "fetch"
        };
        assert_eq!(end.status, expected, "{what}: {end:?}");
        // Without the limit, a well-formed answer would be refused only at its end.
        let well_formed = [
            "shallow info",
            "progress messages",
            "empty progress messages",
        ];
        if well_formed.contains(&what) {
            let why = "that is not part of the pack";
            assert!(end.message.contains(why), "{what}: {end:?}");
        }
        assert!(end.growth_mib < MAX_GROWTH_MIB, "{what}: {end:?}");
        assert!(took < TIME_LIMIT, "{what}: {took:?}");
    }
}

#[test]
fn a_chain_of_large_deltas_is_resolved_in_little_memory() {
    let env = TestEnv::new();
    let length = 96 * MIB;
    let mut links = chain(length, 4, 1);
    // The second object of the chain is a file of the template.
    let mut content = vec![0; length as usize];
    content[0] = 1;
    let file = Object::blob(content);
    let folder = tree(vec![("100644", b"large".to_vec(), &file)]);
    let objects = template(vec![folder]);
    links.extend(objects.iter().map(Object::entry));
    let all = pack(u32::try_from(links.len()).unwrap(), &links);
    let (end, took) = fetch_pack(&env, &all, objects.last().unwrap());
    println!("{} MiB, {took:?}", end.growth_mib);
    assert_eq!(end.status, "ok", "{end:?}");
    assert!(end.growth_mib < MAX_GROWTH_MIB, "{end:?}");
    let commit = objects.last().unwrap().hex();
    let tree = env.cache().join("hermes").join(&commit[..12]);
    let found = std::fs::read(tree.join("x/large")).unwrap();
    assert!(found == file.data, "the file has the wrong content");
}

#[test]
fn a_chain_of_100000_deltas_is_resolved() {
    let env = TestEnv::new();
    let mut links = chain(1000, 1, 0);
    for _ in 0..100_000 {
        let delta = [size(1000), size(1000), vec![0xb0, 0xe8, 0x03]].concat();
        let distance = links.last().unwrap().len() as u64;
        let rest = [offset(distance), deflate(&delta)].concat();
        links.push(entry(6, delta.len() as u64, &rest));
    }
    let objects = template(vec![Object::tree([])]);
    links.extend(objects.iter().map(Object::entry));
    let all = pack(u32::try_from(links.len()).unwrap(), &links);
    let (end, took) = fetch_pack(&env, &all, objects.last().unwrap());
    println!("{} MiB, {took:?}", end.growth_mib);
    assert_eq!(end.status, "ok", "{end:?}");
    assert!(end.growth_mib < MAX_GROWTH_MIB, "{end:?}");
}

#[test]
fn duplicate_objects_and_deltas_cost_little() {
    let env = TestEnv::new();
    let base = Object::blob("base");
    // The delta produces the base object again.
    let delta = [size(4), size(4), vec![0x90, 4]].concat();
    let mut entries = vec![base.entry(); 20_000];
    entries.extend(vec![ref_delta(&base, &delta); 20_000]);
    let objects = template(vec![Object::tree([])]);
    let all = pack_with(&objects, entries);
    let (end, took) = fetch_pack(&env, &all, objects.last().unwrap());
    println!("{} MiB, {took:?}", end.growth_mib);
    assert_eq!(end.status, "ok", "{end:?}");
    assert!(end.growth_mib < MAX_GROWTH_MIB, "{end:?}");
    // Includes the build, which other tests slow down.
    assert!(took < 2 * TIME_LIMIT, "{took:?}");
}

#[test]
fn a_template_at_the_limits_stays_within_the_memory_limit() {
    let env = TestEnv::new();
    let attributes = (0..16_000).map(|n| format!("f{n:05} a{n:05}\n")).collect();
    let objects = template(with_attributes(many_files(490, 64), attributes));
    env.server.answer_with(
        &env.server.template("hermes"),
        objects.last().unwrap(),
        &packed(&objects),
    );
    // The checkout is too slow to wait for. The lists, which need the memory, exist by then.
    let end = peak(&env, &[], Some(Duration::from_secs(20)));
    println!("{} MiB: {}", end.growth_mib, end.message);
    assert_eq!(end.status, "deadline_exceeded", "{end:?}");
    assert!(end.growth_mib > 64, "without the lists: {end:?}");
    assert!(end.growth_mib < 400, "{end:?}");
}

#[test]
fn a_template_above_the_memory_option_is_refused() {
    let env = TestEnv::new();
    let objects = template(many_files(490, 100));
    env.server.answer_with(
        &env.server.template("hermes"),
        objects.last().unwrap(),
        &packed(&objects),
    );
    let least = [(OptionName::Memory, "256")];
    let end = peak(&env, &least, Some(Duration::from_secs(60)));
    assert_eq!(end.status, "fetch", "{end:?}");
    assert!(
        end.message.contains("of 256.0 MiB for the library"),
        "{end:?}"
    );
    assert!(end.growth_mib < 64, "{end:?}");
}

#[test]
fn announced_object_counts_do_not_block_other_fetches() {
    use base64::Engine as _;
    let calls = [500_000_u32, 170_000].map(|announced| {
        let env = TestEnv::new();
        let objects = template(vec![Object::tree([])]);
        let commit = objects.last().unwrap();
        let repository = env.server.template("hermes");
        env.server.plant(&repository, &objects);
        // The header of the pack, and then nothing.
        let header = &pack(announced, &[])[..12];
        let whole = fetch_answer(&commit.hex(), header);
        env.server.faults(json!([{
            "match": "/git-upload-pack$", "match_body": "command=fetch",
            "headers": { "Content-Type": "application/x-git-upload-pack-result" },
            "body_base64": base64::engine::general_purpose::STANDARD.encode(&whole),
            "truncate_after": whole.len() - 4, "hang": true,
        }]));
        let client = env.client();
        let call = client.begin("hermes");
        client.wait_for(Kind::FetchProgress, |event| event.objects_total.is_some());
        (env, client, call)
    });
    let env = TestEnv::new();
    let many = (0..2000).map(|number| (format!("f/{number}"), file(&number.to_string())));
    let mut files: Files = many.collect();
    files.extend(dockerfile(PLAIN));
    env.template("hermes", files);
    let begun = Instant::now();
    env.client().ensure("hermes").unwrap();
    assert!(begun.elapsed() < TIME_LIMIT, "{:?}", begun.elapsed());
    for (_, client, call) in &calls {
        client.inner().cancel(call.id);
    }
}

#[test]
fn a_slow_checkout_stops_at_once_when_cancelled() {
    let env = TestEnv::new();
    let patterns = (0..16_000).map(|n| format!("f{n:05}* a\n")).collect();
    let objects = template(with_attributes(many_files(400, 6), patterns));
    env.server.answer_with(
        &env.server.template("hermes"),
        objects.last().unwrap(),
        &packed(&objects),
    );
    for close in [false, true] {
        let client = env.client();
        let call = client.begin("hermes");
        let files = || env.cached_paths().len();
        wait_until("some files", || (files() > 1000).then_some(()));
        if !close {
            client.cancel_in_time(call);
        }
        let since = Instant::now();
        block_on(client.inner().close());
        assert!(since.elapsed() < CLOSE_LIMIT, "{:?}", since.elapsed());
        // The removal may go on after the close, but no file may be added.
        std::thread::sleep(Duration::from_millis(100));
        let before = files();
        std::thread::sleep(Duration::from_millis(300));
        assert!(files() <= before, "{before} files, then {}", files());
        assert!(env.is_clean(), "{} files are left", files());
    }
}
