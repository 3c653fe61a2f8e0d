//! Templates of a few kilobytes that would take gigabytes of memory, or minutes (promise P9). Each is
//! fetched by a process of its own, which must stay far below the library's limit, and is told what is
//! too large and what the limit is. Packs within the limits are fetched in little memory too.

use std::time::{Duration, Instant};

use mol::event::Kind;
use mol::{Code, OptionName};
use serde_json::json;

use crate::support::child::{Peak, peak};
use crate::support::git::{
    Object, deflate, deflated_zeros, entry, fetch_answer, pack, packed, packet, ref_delta, size,
};
use crate::support::server::dockerfile;
use crate::support::{AT_ONCE, Bed, Files, block_on, file, until};

const MIB: u64 = 1 << 20;

/// The memory that a refused bomb may take, in MiB: much less than the limit of 512.
const LITTLE: u64 = 96;

/// The time in which it must be refused, on a busy machine too.
const SOON: Duration = Duration::from_secs(10);

/// The time in which a client is closed, whatever runs: 2 s, and the moment that it takes to see them pass.
const CLOSED: Duration = Duration::from_millis(2500);

/// A tree entry: mode, name, object.
type Row<'a> = (&'a str, Vec<u8>, &'a Object);

fn tree(rows: Vec<Row<'_>>) -> Object {
    Object::tree(
        rows.iter()
            .map(|(mode, name, object)| (*mode, &name[..], object.id())),
    )
}

fn named(names: impl IntoIterator<Item = String>, mode: &'static str, object: &Object) -> Object {
    let names: Vec<String> = names.into_iter().collect();
    Object::tree(
        names
            .iter()
            .map(|name| (mode, name.as_bytes(), object.id())),
    )
}

/// The objects, a Dockerfile beside the entries of the last one, which is a tree, and a commit.
fn template(mut objects: Vec<Object>) -> Vec<Object> {
    let dockerfile = Object::blob("FROM scratch\nCOPY Dockerfile /\n");
    let below = objects.last().unwrap().clone();
    let root = tree(vec![
        ("100644", b"Dockerfile".to_vec(), &dockerfile),
        ("40000", b"x".to_vec(), &below),
    ]);
    objects.extend([dockerfile, root.clone(), Object::commit(&root)]);
    objects
}

/// The template, and in its pack what stands there for entries besides.
fn with(objects: &[Object], more: Vec<Vec<u8>>) -> Vec<u8> {
    let mut entries: Vec<Vec<u8>> = objects.iter().map(Object::entry).collect();
    entries.extend(more);
    pack(u32::try_from(entries.len()).unwrap(), &entries)
}

/// A template with one file, under a name, besides the Dockerfile.
fn one_file(mode: &str, name: &str, content: impl AsRef<[u8]>) -> Vec<Object> {
    let file = Object::blob(content);
    let folder = tree(vec![(mode, name.as_bytes().to_vec(), &file)]);
    template(vec![file, folder])
}

/// A folder in a folder, so many levels deep; each has the file besides, if there is one.
fn well(
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

/// A file, a thousand names of it, of `length` letters, and so many folders of those: the last one has
/// them all.
fn thousands(folders: usize, length: usize) -> Vec<Object> {
    let file = Object::blob("spam\n");
    let names = (0..1000).map(|number| format!("{number:0length$}"));
    let thousand = named(names, "100644", &file);
    let folder = named(numbers(folders), "40000", &thousand);
    vec![file, thousand, folder]
}

/// The objects, and beside the last one, a folder, a `.gitattributes`.
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

/// Numbers with leading zeros, which stay in order.
fn numbers(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|number| format!("{number:06}"))
}

/// A delta that makes `length` zeros of the first 16 MiB of a base of zeros.
fn zeros_of(base: u64, length: u64) -> Vec<u8> {
    let mut delta = [size(base), size(length)].concat();
    let mut left = length;
    while left > 0 {
        // A copy from 0, whose length has three bytes.
        let piece = left.min(0xff_ffff);
        delta.push(0xf0);
        delta.extend_from_slice(&piece.to_le_bytes()[..3]);
        left -= piece;
    }
    delta
}

/// A chain of deltas by offset, each of the one before: the first is `length` zeros, compressed.
/// `siblings` more are of each.
fn chain(length: u64, links: usize, siblings: usize) -> Vec<Vec<u8>> {
    let mut entries = vec![entry(3, length, &deflated_zeros(length))];
    // Not to be equal to its base, each begins with a byte of its own.
    for link in 0..links {
        let mut delta = [size(length), size(length), vec![1, link as u8 + 1]].concat();
        delta.extend_from_slice(&zeros_of(length, length - 1)[2 * size(length).len()..]);
        for sibling in 0..=siblings {
            // The base is the first entry of the link before.
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

/// An empty stored block of deflate, again and again (RFC 1951, section 3.2.4).
fn blocks_without_content(count: usize) -> Vec<u8> {
    [vec![0x78, 0x01], [0, 0, 0, 0xff, 0xff].repeat(count)].concat()
}

fn served(bed: &Bed, pack: &[u8], commit: &Object) -> (Peak, Duration) {
    bed.server
        .answer_with(&bed.server.template("hermes"), commit, pack);
    // Not the whole commit, as Gitea's answer has it: that can be too large as well.
    let branch = json!({ "commit": { "id": commit.hex() } }).to_string();
    bed.server
        .more_faults(json!([{ "match": "/api/", "status": 200, "body": branch }]));
    measured(bed)
}

fn measured(bed: &Bed) -> (Peak, Duration) {
    let begun = Instant::now();
    let end = peak(bed, &[], Some(Duration::from_secs(120)));
    (end, begun.elapsed())
}

fn assert_refused(bed: &Bed, what: &str, says: &str, (end, took): (Peak, Duration)) {
    println!("{what}: {} MiB, {took:?}: {}", end.growth_mib, end.message);
    assert_eq!(end.status, "fetch", "{what}: {end:?}");
    assert!(end.message.contains(says), "{what}: {end:?}");
    assert!(end.growth_mib < LITTLE, "{what}: {end:?}");
    assert!(took < SOON, "{what}: {took:?}");
    assert!(bed.is_clean(), "{what}: {:?}", bed.fetched());
}

#[test]
fn trees_that_are_larger_than_they_look_are_refused_in_little_memory() {
    let bed = Bed::new();
    let file = Object::blob("spam\n");
    let hundred = named(numbers(100), "100644", &file);
    let hundreds = named(numbers(100), "40000", &hundred);
    let attributes = Object::blob("* text\n".repeat(1000));
    let empty = Object::tree([]);
    let long = "n".repeat(255);
    let many = named(numbers(100_000), "100644", &file);
    let unique = numbers(6).map(|name| {
        let rows = numbers(100_000).map(|number| format!("{name}-{number}"));
        named(rows, "100644", &file)
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
        levels.push(named(numbers(10), "40000", below));
    }

    let rows: Vec<(&str, &str, Vec<Object>)> = vec![
        (
            "a folder name of 1 MiB above 10,000 files",
            "a name of more than 255 bytes",
            template(vec![
                file.clone(),
                hundred.clone(),
                hundreds.clone(),
                named(["n".repeat(MIB as usize)], "40000", &hundreds),
            ]),
        ),
        (
            "900 levels of names of 255 bytes",
            "a path of more than 4095 bytes",
            template(well(900, &long, vec![file.clone(), hundred.clone()], None)),
        ),
        (
            "100,000 files below 15 such levels",
            "paths of more than 64.0 MiB",
            template(well(15, &long, vec![file.clone(), many.clone()], None)),
        ),
        (
            "100,000 files under a path, from 100 folders",
            "more than 500000 files",
            template(vec![
                file.clone(),
                many.clone(),
                named(numbers(100), "40000", &many),
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
                named(names, "100644", &file)
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
            template(well(
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
                let folder = named([".gitattributes".to_owned()], "100644", &few);
                let folders = named(numbers(20_000), "40000", &folder);
                template(vec![few, folder, folders])
            },
        ),
        (
            "a pattern that takes for ever",
            "more than 2 times ** in a pattern",
            one_file(
                "100644",
                ".gitattributes",
                format!("{}b text\n", "**/".repeat(60)),
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
            "of more than 4.0 MiB, is to be converted (eol",
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
    ];
    for (what, says, objects) in rows {
        let end = served(&bed, &packed(&objects), objects.last().unwrap());
        assert_refused(&bed, what, says, end);
    }
}

#[test]
fn packs_that_are_larger_than_they_look_are_refused_in_little_memory() {
    let bed = Bed::new();
    let file = Object::blob("spam\n");
    let objects = template(vec![file.clone(), named(numbers(10), "100644", &file)]);
    let commit = objects.last().unwrap();
    let large = 500 * MIB;
    let zeros = entry(3, large, &deflated_zeros(large));
    let rows: Vec<(&str, &str, Vec<u8>)> = vec![
        (
            "ten objects of 500 MiB",
            "objects of more than 4.0 GiB",
            with(&objects, vec![zeros; 10]),
        ),
        (
            "a chain of 300 MiB objects with siblings that wait",
            "objects of more than 4.0 GiB",
            with(&objects, chain(300 * MIB, 10, 2)),
        ),
        (
            "a delta that announces 600 MiB",
            "a file of more than 512.0 MiB",
            with(
                &objects,
                vec![ref_delta(
                    &file,
                    &zeros_of(file.data.len() as u64, 600 * MIB),
                )],
            ),
        ),
        (
            "an object of 5 bytes in empty blocks without end",
            "compressed to more than its own size",
            with(
                &objects,
                vec![entry(3, 5, &blocks_without_content(1_000_000))],
            ),
        ),
        (
            "a million objects",
            "more than 500002 objects",
            pack(1_000_000, &vec![file.entry(); 1_000_000]),
        ),
    ];
    for (what, says, pack) in rows {
        assert_refused(&bed, what, says, served(&bed, &pack, commit));
    }
}

#[test]
fn talk_of_git_without_end_is_refused_in_little_memory() {
    let bed = Bed::new();
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
    let remark = packet([&[2][..], &b"counting objects: done\n".repeat(2000)].concat());
    let whole = fetch_answer(&commit.hex(), &packed(&objects));
    let end = whole.len() - 4;
    let rows: Vec<(&str, Vec<u8>)> = vec![
        (
            "where the history is cut",
            [packet("shallow-info\n"), shallow.repeat(300_000)].concat(),
        ),
        ("remarks", [before.clone(), remark.repeat(300)].concat()),
        (
            "remarks without content",
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
            "remarks after the pack",
            [&whole[..end], &remark.repeat(300)].concat(),
        ),
    ];
    for (what, answer) in rows {
        bed.server
            .answer_fetch(&bed.server.template("hermes"), commit, &answer);
        let (end, took) = measured(&bed);
        println!("{what}: {} MiB, {took:?}: {}", end.growth_mib, end.message);
        // What comes after the pack is not even read.
        let expected = if what == "remarks after the pack" {
            "ok"
        } else {
            "fetch"
        };
        assert_eq!(end.status, expected, "{what}: {end:?}");
        // Without the limit, what is well formed would be refused at its end.
        let well_formed = [
            "where the history is cut",
            "remarks",
            "remarks without content",
        ];
        if well_formed.contains(&what) {
            let why = "that is not part of the pack";
            assert!(end.message.contains(why), "{what}: {end:?}");
        }
        assert!(end.growth_mib < LITTLE, "{what}: {end:?}");
        assert!(took < 2 * SOON, "{what}: {took:?}");
    }
}

#[test]
fn a_chain_of_large_deltas_is_resolved_in_little_memory() {
    let bed = Bed::new();
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
    let (end, took) = served(&bed, &all, objects.last().unwrap());
    println!("{} MiB, {took:?}", end.growth_mib);
    assert_eq!(end.status, "ok", "{end:?}");
    assert!(end.growth_mib < LITTLE, "{end:?}");
    let commit = objects.last().unwrap().hex();
    let tree = bed.cache().join("hermes").join(&commit[..12]);
    let found = std::fs::read(tree.join("x/large")).unwrap();
    assert!(found == file.data, "the file is another one");
}

#[test]
fn a_chain_of_100000_deltas_is_resolved() {
    let bed = Bed::new();
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
    let (end, took) = served(&bed, &all, objects.last().unwrap());
    println!("{} MiB, {took:?}", end.growth_mib);
    assert_eq!(end.status, "ok", "{end:?}");
    assert!(end.growth_mib < LITTLE, "{end:?}");
}

#[test]
fn an_object_many_times_with_as_many_deltas_of_it_is_resolved_once() {
    let bed = Bed::new();
    let base = Object::blob("base");
    // It makes the same object again.
    let delta = [size(4), size(4), vec![0x90, 4]].concat();
    let mut entries = vec![base.entry(); 20_000];
    entries.extend(vec![ref_delta(&base, &delta); 20_000]);
    let objects = template(vec![Object::tree([])]);
    let all = with(&objects, entries);
    let (end, took) = served(&bed, &all, objects.last().unwrap());
    println!("{} MiB, {took:?}", end.growth_mib);
    assert_eq!(end.status, "ok", "{end:?}");
    assert!(end.growth_mib < LITTLE, "{end:?}");
    // With the build, which other tests hold up.
    assert!(took < 6 * SOON, "{took:?}");
}

#[test]
fn a_template_at_the_limits_stays_below_the_memory_of_the_library() {
    let bed = Bed::new();
    let attributes = (0..16_000).map(|n| format!("f{n:05} a{n:05}\n")).collect();
    let objects = template(with_attributes(thousands(490, 64), attributes));
    bed.server.answer_with(
        &bed.server.template("hermes"),
        objects.last().unwrap(),
        &packed(&objects),
    );
    // It is too slow to be waited for; the lists are made by then.
    let end = peak(&bed, &[], Some(Duration::from_secs(20)));
    println!("{} MiB: {}", end.growth_mib, end.message);
    assert_eq!(end.status, "deadline_exceeded", "{end:?}");
    assert!(end.growth_mib < 400, "{end:?}");
}

#[test]
fn a_template_that_needs_more_than_the_option_allows_is_refused() {
    let bed = Bed::new();
    let objects = template(thousands(490, 100));
    bed.server.answer_with(
        &bed.server.template("hermes"),
        objects.last().unwrap(),
        &packed(&objects),
    );
    let least = [(OptionName::Memory, "256")];
    let end = peak(&bed, &least, Some(Duration::from_secs(60)));
    assert_eq!(end.status, "fetch", "{end:?}");
    assert!(end.message.contains("of the 256.0 MiB"), "{end:?}");
    assert!(end.growth_mib < 64, "{end:?}");
}

#[test]
fn servers_that_only_announce_much_hold_up_no_other() {
    use base64::Engine as _;
    let calls = [500_000_u32, 170_000].map(|announced| {
        let bed = Bed::new();
        let objects = template(vec![Object::tree([])]);
        let commit = objects.last().unwrap();
        let repository = bed.server.template("hermes");
        bed.server.plant(&repository, &objects);
        // The header of the pack, and then nothing.
        let header = &pack(announced, &[])[..12];
        let whole = fetch_answer(&commit.hex(), header);
        bed.server.faults(json!([{
            "match": "/git-upload-pack$", "match_body": "command=fetch",
            "headers": { "Content-Type": "application/x-git-upload-pack-result" },
            "body_base64": base64::engine::general_purpose::STANDARD.encode(&whole),
            "truncate_after": whole.len() - 4, "hang": true,
        }]));
        let client = bed.client();
        let call = client.begin("hermes");
        client.wait_for(Kind::FetchProgress, |event| event.objects_total.is_some());
        (bed, client, call)
    });
    let bed = Bed::new();
    let many = (0..2000).map(|number| (format!("f/{number}"), file(&number.to_string())));
    let mut files: Files = many.collect();
    files.extend(dockerfile("FROM scratch\nCOPY Dockerfile /\n"));
    bed.template("hermes", files);
    let begun = Instant::now();
    bed.client().ensure("hermes").unwrap();
    assert!(begun.elapsed() < 3 * SOON, "{:?}", begun.elapsed());
    for (_, client, call) in &calls {
        client.cancel(call);
    }
}

#[test]
fn a_checkout_that_takes_minutes_stops_at_once_when_it_is_cancelled() {
    let bed = Bed::new();
    let patterns = (0..16_000).map(|n| format!("f{n:05}* a\n")).collect();
    let objects = template(with_attributes(thousands(400, 6), patterns));
    bed.server.answer_with(
        &bed.server.template("hermes"),
        objects.last().unwrap(),
        &packed(&objects),
    );
    for close in [false, true] {
        let client = bed.client();
        let call = client.begin("hermes");
        let files = || bed.cached_paths().len();
        until("some files", || (files() > 1000).then_some(()));
        let since = Instant::now();
        if !close {
            client.cancel(&call);
            assert_eq!(call.end().unwrap_err().code, Code::Canceled);
            assert!(since.elapsed() < AT_ONCE, "{:?}", since.elapsed());
        }
        let since = Instant::now();
        block_on(client.inner().close());
        assert!(since.elapsed() < CLOSED, "{:?}", since.elapsed());
        // What is not removed by then is not added to either.
        std::thread::sleep(Duration::from_millis(100));
        let before = files();
        std::thread::sleep(Duration::from_millis(300));
        assert!(files() <= before, "{before} files, then {}", files());
        assert!(bed.is_clean(), "{} files are left", files());
    }
}
