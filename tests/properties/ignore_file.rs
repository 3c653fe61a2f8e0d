//! Any ignore file is parsed or refused quickly, and comments, line endings and a byte order mark do not
//! change the result.

use std::time::{Duration, Instant};

use mol::testing::internals::Ignores;

/// Longer than the worst case for one file takes with a sanitizer on a busy machine.
const TIME_LIMIT: Duration = Duration::from_secs(20);

pub fn is_parsed_or_refused(file: &str, paths: &[&str]) {
    let is_name = |name: &str| !matches!(name, "" | "." | "..");
    let paths: Vec<&str> = paths
        .iter()
        .copied()
        .filter(|path| path.split('/').all(is_name))
        .collect();
    let paths = &*paths;
    let begun = Instant::now();
    let verdicts = ignored(file, paths);
    assert!(begun.elapsed() < TIME_LIMIT, "{:?}", begun.elapsed());
    let Ok(verdicts) = verdicts else {
        return;
    };
    assert_eq!(verdicts.len(), paths.len());

    let same = |other: &str| assert_eq!(ignored(other, paths).as_ref(), Ok(&verdicts), "{file:?}");
    same(&format!("{file}\n# a comment\n\n \t\n"));
    if file.lines().all(|line| line.len() < 60_000) {
        same(&file.replace('\n', "\r\n"));
    }
    if !file.starts_with('\u{feff}') {
        same(&format!("\u{feff}{file}"));
    }
    // With a last pattern that keeps everything.
    let none = ignored(&format!("{file}\n!**\n"), paths);
    let lines = || file.trim_start_matches('\u{feff}').lines();
    if lines().all(|line| !line.trim_start().starts_with('!')) {
        for (path, ignored) in paths.iter().zip(&verdicts) {
            // Without exceptions, everything below an ignored path is ignored.
            let below = format!("{path}/below");
            let file = Ignores::parse(file).unwrap();
            assert!(!ignored || file.ignores(&below), "{below:?}");
        }
        let first = |path: &&str| !path.contains('/');
        if let Ok(none) = none {
            for (path, ignored) in paths.iter().zip(none).filter(|(path, _)| first(path)) {
                assert!(!ignored, "{file:?}: {path:?}");
            }
        }
    }
}

/// Which of the paths the file ignores.
fn ignored(file: &str, paths: &[&str]) -> Result<Vec<bool>, String> {
    let file = Ignores::parse(file)?;
    Ok(paths.iter().map(|path| file.ignores(path)).collect())
}
