//! What another user of the machine could have put where the cache is: a clear error or a safe way
//! round, and nothing outside of the cache is touched (promise P5).

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use mol::{Code, Error, OptionName};
use rustix::fs::{CWD, FileType, Mode};

use crate::support::server::dockerfile;
use crate::support::{Bed, Files, file};

const SOMEBODY: u32 = 12345;

/// A template, and the folders of its cache as the library makes them.
struct Cache {
    bed: Bed,
    sha: String,
    folder: PathBuf,
}

impl Cache {
    fn new() -> Self {
        let bed = Bed::new();
        let files = Files::from([
            ("Dockerfile".to_owned(), file("FROM scratch\nCOPY . /\n")),
            ("content".to_owned(), file("right")),
        ]);
        let sha = bed.template("hermes", files);
        let folder = bed.cache().join("hermes");
        private(&bed.cache());
        private(&folder);
        Self { bed, sha, folder }
    }

    /// Where something of the commit is, such as its lock.
    fn place(&self, before: &str, after: &str) -> PathBuf {
        self.folder
            .join(format!("{before}{}{after}", &self.sha[..12]))
    }

    fn assert_right(&self) {
        let image = self.bed.client().ensure("hermes").unwrap();
        let files = self.bed.engine.files(&image.reference);
        assert_eq!(files["content"].content, "right");
        assert_eq!(files.len(), 2, "{files:?}");
    }
}

fn private(folder: &Path) {
    fs::create_dir(folder).unwrap();
    mode(folder, 0o700);
}

fn mode(folder: &Path, mode: u32) {
    fs::set_permissions(folder, PermissionsExt::from_mode(mode)).unwrap();
}

/// A link that somebody else has made.
fn link_of_somebody(target: &Path, link: &Path) {
    symlink(target, link).unwrap();
    lchown(link, Some(SOMEBODY), None).expect("the tests run as root, as their engine does");
}

/// A folder of this user's with something in it, which is nobody else's business.
fn victim(bed: &Bed) -> PathBuf {
    let folder = bed.scratch().join("victim");
    private(&folder);
    fs::write(folder.join("precious"), "precious").unwrap();
    folder
}

fn assert_untouched(victim: &Path) {
    let names: Vec<_> = fs::read_dir(victim)
        .unwrap()
        .flatten()
        .map(|e| e.file_name())
        .collect();
    assert_eq!(names, ["precious"]);
    assert_eq!(
        fs::read_to_string(victim.join("precious")).unwrap(),
        "precious"
    );
}

/// The cache cannot be used, and the error says which place is to blame.
fn refused(bed: &Bed, cache: &Path, place: &Path, why: &str) -> Error {
    let cache = cache.to_str().unwrap();
    let client = bed.client_with(&[(OptionName::CacheDir, cache)]);
    let error = client.refused("hermes");
    assert_eq!(error.code, Code::Cache, "{error:?}");
    let said = format!("{} {why}", place.display());
    assert!(error.message.contains(&said), "{said} in {error:?}");
    assert!(!error.hint.is_empty(), "{error:?}");
    error
}

#[test]
fn a_link_of_another_user_on_the_way_to_the_cache_is_not_followed() {
    let bed = Bed::new();
    bed.template("hermes", dockerfile("FROM scratch\nCOPY Dockerfile /\n"));
    let victim = victim(&bed);
    let link = bed.scratch().join("link");
    link_of_somebody(&victim, &link);
    let why = "is a link of another user (uid 12345)";
    refused(&bed, &link, &link, why);
    assert_untouched(&victim);
    refused(&bed, &link.join("below/it"), &link, why);
    assert_untouched(&victim);
    // A link of one's own leads to the other one.
    let own = bed.scratch().join("own");
    symlink("link", &own).unwrap();
    refused(&bed, &own, &link, why);
    assert_untouched(&victim);
}

#[test]
fn a_link_that_leads_nowhere_is_told() {
    let bed = Bed::new();
    bed.template("hermes", dockerfile("FROM scratch\nCOPY Dockerfile /\n"));
    let (dangling, circle) = (bed.scratch().join("dangling"), bed.scratch().join("circle"));
    symlink("nowhere", &dangling).unwrap();
    symlink("circle", &circle).unwrap();
    for link in [dangling, circle] {
        refused(&bed, &link, &link, "cannot be resolved");
        refused(&bed, &link.join("below"), &link, "cannot be resolved");
    }
}

#[test]
fn a_folder_above_the_cache_where_others_can_put_something_is_refused() {
    let bed = Bed::new();
    bed.template("hermes", dockerfile("FROM scratch\nCOPY Dockerfile /\n"));
    let above = bed.scratch().join("above");
    private(&above);
    let cache = above.join("between/cache");
    mode(&above, 0o777);
    refused(&bed, &cache, &above, "can be written by every user");
    mode(&above, 0o700);
    chown(&above, Some(SOMEBODY), None).unwrap();
    refused(&bed, &cache, &above, "belongs to another user (uid 12345)");
    assert_eq!(
        fs::read_dir(&above).unwrap().count(),
        0,
        "nothing was made there"
    );

    // As /tmp: everybody may put something there, but nobody may touch what is another's.
    chown(&above, Some(0), None).unwrap();
    mode(&above, 0o1777);
    let client = bed.client_with(&[(OptionName::CacheDir, cache.to_str().unwrap())]);
    client.ensure("hermes").unwrap();
    assert!(cache.join("hermes").exists());
}

#[test]
fn a_runtimes_folder_that_is_not_this_users_is_refused() {
    let cache = Cache::new();
    let (bed, folder) = (&cache.bed, &cache.folder);
    let victim = victim(bed);
    chown(folder, Some(SOMEBODY), None).unwrap();
    refused(
        bed,
        &bed.cache(),
        folder,
        "belongs to another user (uid 12345",
    );
    fs::remove_dir(folder).unwrap();
    link_of_somebody(&victim, folder);
    refused(bed, &bed.cache(), folder, "is a link of another user");
    assert_untouched(&victim);
    fs::remove_file(folder).unwrap();
    private(folder);
    mode(folder, 0o770);
    refused(bed, &bed.cache(), folder, "can be written by other users");
}

#[test]
fn a_lock_that_is_no_lock_is_refused_and_what_it_leads_to_stays_as_it_is() {
    let cache = Cache::new();
    let (bed, lock) = (&cache.bed, cache.place(".", ".lock"));
    let victim = victim(bed);
    let precious = victim.join("precious");
    symlink(&precious, &lock).unwrap();
    refused(bed, &bed.cache(), &lock, "cannot be opened");
    fs::remove_file(&lock).unwrap();
    fs::hard_link(&precious, &lock).unwrap();
    refused(bed, &bed.cache(), &lock, "is not this user's lock file");
    assert_untouched(&victim);
    fs::remove_file(&lock).unwrap();
    fs::write(&lock, "").unwrap();
    chown(&lock, Some(SOMEBODY), None).unwrap();
    refused(bed, &bed.cache(), &lock, "is not this user's lock file");
    fs::remove_file(&lock).unwrap();
    fs::create_dir(&lock).unwrap();
    refused(bed, &bed.cache(), &lock, "cannot be opened");
    fs::remove_dir(&lock).unwrap();
    rustix::fs::mknodat(CWD, &lock, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    refused(bed, &bed.cache(), &lock, "is not this user's lock file");
    fs::remove_file(&lock).unwrap();
    cache.assert_right();
}

/// A tree of somebody else's making, and what would vouch for it.
fn planted_tree(cache: &Cache) -> (PathBuf, String) {
    let tree = cache.place("", "");
    private(&tree);
    fs::write(tree.join("Dockerfile"), "FROM scratch\nCOPY . /\n").unwrap();
    fs::write(tree.join("planted"), "").unwrap();
    let voucher = format!(r#"{{"commit":"{}","commit_time":1}}"#, cache.sha);
    (tree, voucher)
}

#[test]
fn a_tree_of_another_user_is_thrown_away() {
    let cache = Cache::new();
    let (tree, voucher) = planted_tree(&cache);
    chown(&tree, Some(SOMEBODY), None).unwrap();
    fs::write(cache.place(".", ".json"), voucher).unwrap();
    cache.assert_right();
}

#[test]
fn a_voucher_of_another_user_vouches_for_nothing() {
    let cache = Cache::new();
    let (_, text) = planted_tree(&cache);
    let voucher = cache.place(".", ".json");
    fs::write(&voucher, text).unwrap();
    chown(&voucher, Some(SOMEBODY), None).unwrap();
    cache.assert_right();
}

#[test]
fn a_voucher_that_is_no_file_vouches_for_nothing() {
    for kind in ["link", "folder", "pipe", "endless"] {
        let cache = Cache::new();
        let (_, text) = planted_tree(&cache);
        let voucher = cache.place(".", ".json");
        let elsewhere = cache.bed.scratch().join("voucher");
        fs::write(&elsewhere, &text).unwrap();
        match kind {
            "link" => symlink(&elsewhere, &voucher).unwrap(),
            "endless" => symlink("/dev/zero", &voucher).unwrap(),
            "folder" => fs::create_dir_all(voucher.join("below")).unwrap(),
            _ => rustix::fs::mknodat(CWD, &voucher, FileType::Fifo, Mode::RUSR, 0).unwrap(),
        }
        cache.assert_right();
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), text, "{kind}");
    }
}

#[test]
fn a_link_in_the_place_of_a_fetch_is_removed_and_not_followed() {
    let cache = Cache::new();
    let victim = victim(&cache.bed);
    symlink(&victim, cache.place(".work-", "-abcdef")).unwrap();
    symlink(&victim, cache.folder.join(".work-another")).unwrap();
    cache.assert_right();
    assert_untouched(&victim);
    assert!(!cache.place(".work-", "-abcdef").exists());
}
