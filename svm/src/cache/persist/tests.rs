use super::super::SharedCache;
use super::super::tests::{current, entry, generations, key};
use super::*;
use std::fs;

fn filled(folder: &Path, count: u32) {
    let cache = SharedCache::open(folder, 1000);
    for n in 0..count {
        cache.put(key(&n.to_le_bytes()), entry(1), Noted::default());
    }
    cache.close();
}

fn reopened(folder: &Path) -> u32 {
    let cache = SharedCache::open(folder, 1000);
    let found =
        (0..100u32).filter(|n| current(&cache, &key(&n.to_le_bytes()), &generations(1)).is_some());
    let found = found.count() as u32;
    cache.close();
    found
}

#[test]
fn entries_outlive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("cache");
    filled(&folder, 100);
    assert_eq!(reopened(&folder), 100);
}

/// Without the wait the good copy is set aside, and nothing is found.
#[test]
fn a_copy_that_another_still_holds_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("cache");
    filled(&folder, 100);
    let held = open_unlocked(&sled::Config::new().path(&folder)).unwrap();
    let refused = sled::Config::new().path(&folder).open();
    assert!(refused.is_err_and(|error| is_lock(&error)));
    let holder = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        drop(held);
    });
    assert_eq!(reopened(&folder), 100);
    holder.join().unwrap();
    assert!(!folder.with_extension("damaged").exists());
}

#[test]
fn a_damaged_database_is_never_fatal_and_never_wrong() {
    for damage in ["truncate", "garbage", "file"] {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("cache");
        filled(&folder, 100);
        if damage == "file" {
            fs::remove_dir_all(&folder).unwrap();
            fs::write(&folder, "not a folder").unwrap();
        } else {
            for file in fs::read_dir(&folder).unwrap() {
                let path = file.unwrap().path();
                let Ok(bytes) = fs::read(&path) else { continue };
                let damaged = match damage {
                    "truncate" => bytes[..bytes.len() / 3].to_vec(),
                    _ => vec![0xa5; bytes.len()],
                };
                fs::write(&path, damaged).unwrap();
            }
        }
        assert!(reopened(&folder) <= 100, "{damage}");
        // And from then on it works again.
        let cache = SharedCache::open(&folder, 1000);
        cache.put(key(b"after"), entry(1), Noted::default());
        cache.close();
        drop(cache);
        let cache = SharedCache::open(&folder, 1000);
        assert!(
            current(&cache, &key(b"after"), &generations(1)).is_some(),
            "{damage}"
        );
    }
}

fn malware(fingerprint: u8) -> Entry {
    Entry {
        verdict: palisade_protocol::verdict::Verdict::Malware {
            name: palisade_protocol::bounded::Text::cut("Bad"),
            engine: palisade_protocol::bounded::Text::cut("yara-x"),
        },
        ..entry(fingerprint)
    }
}

fn waited_for(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A folder as a killed process left it: the one that is open is not looked at.
fn copied(folder: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let parent = folder.parent().unwrap();
    let done = std::process::Command::new("cp")
        .arg("-a")
        .arg(parent.join("."))
        .arg(dir.path())
        .status();
    assert!(done.unwrap().success());
    dir
}

fn is_known(folder: &Path) -> bool {
    let cache = SharedCache::open(folder, 10);
    let known = cache.last(&key(b"a")).is_some();
    cache.close();
    known
}

#[tokio::test]
async fn a_clean_verdict_that_was_overruled_does_not_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("cache");
    let notes = folder.with_extension("overruled");
    let cache = SharedCache::open(&folder, 10);
    cache.put(key(b"a"), entry(1), Noted::default());
    cache.close();
    drop(cache);
    assert!(is_known(&folder));

    let cache = SharedCache::open(&folder, 10);
    // The disk takes no batch from here on; notes it takes.
    let health = Arc::clone(&cache.store.as_ref().unwrap().health);
    health.fails.store(true, Ordering::Relaxed);
    let noted = cache.overrule(&key(b"a")).await;
    let killed_now = copied(&folder);
    assert!(!is_known(&killed_now.path().join("cache")));
    cache.put(key(b"a"), malware(2), noted);
    waited_for("a write is lost", || cache.copy_counts().lost > 0);
    let killed_later = copied(&folder);
    assert!(!is_known(&killed_later.path().join("cache")));

    // And when the disk is well again, it is kept as before.
    health.fails.store(false, Ordering::Relaxed);
    waited_for("the copy is begun anew", || {
        cache.copy_counts().begun_anew > 0
    });
    let noted = cache.overrule(&key(b"b")).await;
    cache.put(key(b"b"), malware(2), noted);
    cache.put(key(b"a"), entry(2), Noted::default());
    cache.close();
    drop(cache);
    let cache = SharedCache::open(&folder, 10);
    assert_eq!(
        cache.last(&key(b"b")).map(|entry| entry.verdict),
        None,
        "it was still noted, for the copy before"
    );
    assert!(!notes.exists());
    assert_eq!(cache.copy_counts(), CopyCounts::default());
}

#[tokio::test]
async fn notes_end_when_their_verdicts_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("cache");
    let notes = folder.with_extension("overruled");
    let cache = SharedCache::open(&folder, 10);
    for content in [b"a", b"b"] {
        let noted = cache.overrule(&key(content)).await;
        assert!(notes.exists());
        cache.put(key(content), malware(1), noted);
    }
    waited_for("the notes are gone", || !notes.exists());
    cache.close();
    drop(cache);
    let cache = SharedCache::open(&folder, 10);
    assert_eq!(cache.last(&key(b"b")), Some(malware(1)));
}

#[tokio::test]
async fn where_nothing_can_be_noted_the_copy_is_out_of_the_way() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("cache");
    let cache = SharedCache::open(&folder, 10);
    cache.put(key(b"a"), entry(1), Noted::default());
    cache.close();
    drop(cache);
    let cache = SharedCache::open(&folder, 10);
    // Writes find no space there.
    std::os::unix::fs::symlink("/dev/full", folder.with_extension("overruled")).unwrap();
    cache.overrule(&key(b"a")).await;
    assert!(!folder.exists());
    // It goes on with another one.
    cache.put(key(b"b"), entry(1), Noted::default());
    waited_for("the copy is begun anew", || {
        cache.copy_counts().begun_anew > 0
    });
    let killed = copied(&folder);
    assert!(!is_known(&killed.path().join("cache")));
}

#[test]
fn a_value_that_does_not_fit_its_key_is_dropped() {
    let value = codec::encode(&entry(1)).unwrap();
    let (a, b) = (
        codec::encode(&key(b"a")).unwrap(),
        codec::encode(&key(b"b")).unwrap(),
    );
    let mut sealed = checksum(&a, &value).to_vec();
    sealed.extend_from_slice(&value);
    assert!(unseal(&a, &sealed).is_some());
    assert!(
        unseal(&b, &sealed).is_none(),
        "a clean verdict moved to another content"
    );
    *sealed.last_mut().unwrap() ^= 1;
    assert!(unseal(&a, &sealed).is_none());
    assert!(unseal(&a, &[]).is_none());
}

/// Without a copy, what an earlier run left would be served by the next that has one.
#[tokio::test]
async fn a_run_without_a_copy_leaves_none_behind() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("cache");
    let cache = SharedCache::open(&folder, 10);
    cache.put(key(b"a"), entry(1), Noted::default());
    cache.close();
    drop(cache);
    assert!(is_known(&folder));
    drop(SharedCache::in_memory_beside(&folder, 10));
    assert!(!is_known(&folder));
    // Where it cannot be taken away, whatever may overrule it is counted.
    fs::create_dir(folder.with_extension("overruled")).unwrap();
    let cache = SharedCache::in_memory_beside(&folder, 10);
    cache.overrule(&key(b"a")).await;
    assert_eq!(cache.copy_counts().unnoted, 1);
}

/// What a copy that is gone was to have does not end the notes of the next one.
#[tokio::test]
async fn notes_are_ended_by_their_own_verdicts_alone() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("cache");
    let notes = folder.with_extension("overruled");
    let cache = SharedCache::open(&folder, 10);
    let first = cache.overrule(&key(b"a")).await;
    cache.put(key(b"a"), malware(1), first);
    waited_for("the notes are gone", || !notes.exists());
    cache.overrule(&key(b"b")).await;
    // Late, or twice: as when a batch goes to a copy that was set aside meanwhile.
    cache.put(key(b"c"), malware(1), first);
    cache.put(key(b"d"), malware(1), Noted::default());
    cache.close();
    std::thread::sleep(GATHER);
    assert!(notes.exists(), "b is not in the copy");
}
