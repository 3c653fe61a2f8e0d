//! Files that another user of the machine could place in or above the cache. The library reports an
//! error or works around them safely, and touches nothing outside the cache (promise P5).

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use mol::{Code, Error, OptionName};
use rustix::fs::{CWD, FileType, Mode};

use crate::support::TestEnv;
use crate::support::server::{PLAIN, copying_all, dockerfile};

const OTHER_USER: u32 = 12345;

/// A template, and its cache folders with the permissions that the library gives them.
struct Cache {
    env: TestEnv,
    sha: String,
    folder: PathBuf,
}

impl Cache {
    fn new() -> Self {
        let env = TestEnv::new();
        let sha = env.template("hermes", copying_all("right"));
        let folder = env.cache().join("hermes");
        private(&env.cache());
        private(&folder);
        Self { env, sha, folder }
    }

    /// The path of a file of this commit, such as its lock.
    fn path(&self, before: &str, after: &str) -> PathBuf {
        self.folder
            .join(format!("{before}{}{after}", &self.sha[..12]))
    }

    fn assert_right(&self) {
        let image = self.env.client().ensure("hermes").unwrap();
        let files = self.env.engine.files(&image.reference);
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

/// A symlink that belongs to another user.
fn link_of_other_user(target: &Path, link: &Path) {
    symlink(target, link).unwrap();
    lchown(link, Some(OTHER_USER), None).expect("the tests run as root, as the engine does");
}

/// A private folder of this user with a file in it.
fn victim(env: &TestEnv) -> PathBuf {
    let folder = env.scratch().join("victim");
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

/// The call fails with an error that names `place` and the reason.
fn refused(env: &TestEnv, cache: &Path, place: &Path, why: &str) -> Error {
    let cache = cache.to_str().unwrap();
    let client = env.client_with(&[(OptionName::CacheDir, cache)]);
    let error = client.ensure_err("hermes");
    assert_eq!(error.code, Code::Cache, "{error:?}");
    let said = format!("{} {why}", place.display());
    assert!(error.message().contains(&said), "{said} in {error:?}");
    assert!(!error.hint.is_empty(), "{error:?}");
    error
}

#[test]
fn another_users_symlink_in_the_cache_path_is_not_followed() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    let victim = victim(&env);
    let link = env.scratch().join("link");
    link_of_other_user(&victim, &link);
    let why = "is a link of another user (uid 12345)";
    refused(&env, &link, &link, why);
    assert_untouched(&victim);
    refused(&env, &link.join("below/it"), &link, why);
    assert_untouched(&victim);
    // A symlink of this user that points to that of the other user.
    let own = env.scratch().join("own");
    symlink("link", &own).unwrap();
    refused(&env, &own, &link, why);
    assert_untouched(&victim);
}

#[test]
fn a_dangling_symlink_in_the_cache_path_is_reported() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    let (dangling, circle) = (env.scratch().join("dangling"), env.scratch().join("circle"));
    symlink("nowhere", &dangling).unwrap();
    symlink("circle", &circle).unwrap();
    for link in [dangling, circle] {
        refused(&env, &link, &link, "cannot be resolved");
        refused(&env, &link.join("below"), &link, "cannot be resolved");
    }
}

#[test]
fn a_parent_folder_that_others_can_write_to_is_refused() {
    let env = TestEnv::new();
    env.template("hermes", dockerfile(PLAIN));
    let above = env.scratch().join("above");
    private(&above);
    let cache = above.join("between/cache");
    mode(&above, 0o777);
    refused(&env, &cache, &above, "can be written by every user");
    mode(&above, 0o700);
    chown(&above, Some(OTHER_USER), None).unwrap();
    refused(&env, &cache, &above, "belongs to another user (uid 12345)");
    assert_eq!(
        fs::read_dir(&above).unwrap().count(),
        0,
        "nothing was created there"
    );

    // As /tmp: everyone may create files, but only their owner may replace them (sticky bit).
    chown(&above, Some(0), None).unwrap();
    mode(&above, 0o1777);
    let client = env.client_with(&[(OptionName::CacheDir, cache.to_str().unwrap())]);
    client.ensure("hermes").unwrap();
    assert!(cache.join("hermes").exists());
}

#[test]
fn an_unsafe_runtime_folder_is_refused() {
    let cache = Cache::new();
    let (env, folder) = (&cache.env, &cache.folder);
    let victim = victim(env);
    chown(folder, Some(OTHER_USER), None).unwrap();
    refused(
        env,
        &env.cache(),
        folder,
        "belongs to another user (uid 12345",
    );
    fs::remove_dir(folder).unwrap();
    link_of_other_user(&victim, folder);
    refused(env, &env.cache(), folder, "is a link of another user");
    assert_untouched(&victim);
    fs::remove_file(folder).unwrap();
    private(folder);
    mode(folder, 0o770);
    refused(env, &env.cache(), folder, "can be written by other users");
}

#[test]
fn an_unsafe_lock_file_is_refused_and_its_target_is_untouched() {
    let cache = Cache::new();
    let (env, lock) = (&cache.env, cache.path(".", ".lock"));
    let victim = victim(env);
    let precious = victim.join("precious");
    symlink(&precious, &lock).unwrap();
    refused(env, &env.cache(), &lock, "cannot be opened");
    fs::remove_file(&lock).unwrap();
    fs::hard_link(&precious, &lock).unwrap();
    refused(env, &env.cache(), &lock, "is not this user's lock file");
    assert_untouched(&victim);
    fs::remove_file(&lock).unwrap();
    fs::write(&lock, "").unwrap();
    chown(&lock, Some(OTHER_USER), None).unwrap();
    refused(env, &env.cache(), &lock, "is not this user's lock file");
    fs::remove_file(&lock).unwrap();
    fs::create_dir(&lock).unwrap();
    refused(env, &env.cache(), &lock, "cannot be opened");
    fs::remove_dir(&lock).unwrap();
    rustix::fs::mknodat(CWD, &lock, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    refused(env, &env.cache(), &lock, "is not this user's lock file");
    fs::remove_file(&lock).unwrap();
    cache.assert_right();
}

/// A forged tree, and the text of its completion marker.
fn planted_tree(cache: &Cache) -> (PathBuf, String) {
    let tree = cache.path("", "");
    private(&tree);
    fs::write(tree.join("Dockerfile"), "FROM scratch\nCOPY . /\n").unwrap();
    fs::write(tree.join("planted"), "").unwrap();
    let marker = format!(r#"{{"commit":"{}","commit_time":1}}"#, cache.sha);
    (tree, marker)
}

#[test]
fn a_tree_of_another_user_is_discarded() {
    let cache = Cache::new();
    let (tree, marker) = planted_tree(&cache);
    chown(&tree, Some(OTHER_USER), None).unwrap();
    fs::write(cache.path(".", ".json"), marker).unwrap();
    cache.assert_right();
}

#[test]
fn a_completion_marker_of_another_user_is_ignored() {
    let cache = Cache::new();
    let (_, text) = planted_tree(&cache);
    let marker = cache.path(".", ".json");
    fs::write(&marker, text).unwrap();
    chown(&marker, Some(OTHER_USER), None).unwrap();
    cache.assert_right();
}

#[test]
fn a_completion_marker_that_is_not_a_regular_file_is_ignored() {
    for kind in ["link", "folder", "pipe", "endless"] {
        let cache = Cache::new();
        let (_, text) = planted_tree(&cache);
        let marker = cache.path(".", ".json");
        let elsewhere = cache.env.scratch().join("marker");
        fs::write(&elsewhere, &text).unwrap();
        match kind {
            "link" => symlink(&elsewhere, &marker).unwrap(),
            "endless" => symlink("/dev/zero", &marker).unwrap(),
            "folder" => fs::create_dir_all(marker.join("below")).unwrap(),
            _ => rustix::fs::mknodat(CWD, &marker, FileType::Fifo, Mode::RUSR, 0).unwrap(),
        }
        cache.assert_right();
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), text, "{kind}");
    }
}

#[test]
fn a_symlink_in_place_of_a_fetch_folder_is_removed() {
    let cache = Cache::new();
    let victim = victim(&cache.env);
    symlink(&victim, cache.path(".work-", "-abcdef")).unwrap();
    cache.assert_right();
    assert_untouched(&victim);
    assert!(!cache.path(".work-", "-abcdef").exists());
}
