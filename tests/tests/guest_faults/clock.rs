//! A clock that jumps by a day, forth and back: what is remembered, what is due, and the
//! sessions do not mind. Only the agent sees it: this machine's clock stays.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use palisade_tests::skip;
use serde_json::Value;

use super::guest::{Guest, denied, number, open_soon, wait_until};

/// Where Debian's package has it.
const LIBRARY: &str = "faketime/libfaketime.so.1";

fn library() -> Option<PathBuf> {
    let folders = fs::read_dir("/usr/lib").ok()?.flatten();
    let mut paths = folders.map(|entry| entry.path().join(LIBRARY));
    paths.find(|path| path.exists())
}

/// What the agent takes for the time.
fn set_clock(file: &Path, offset: &str) {
    fs::write(file, format!("{offset}\n")).unwrap();
    // It looks once a second, when it looks at all.
    std::thread::sleep(Duration::from_millis(2500));
}

/// Seconds by which the agent's clock is off, as a detection of now tells.
fn offset(row: &Value) -> i64 {
    let mut date = Command::new("date");
    date.args(["-d", row["time"].as_str().unwrap(), "+%s"]);
    let said = String::from_utf8(date.output().unwrap().stdout).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    said.trim().parse::<i64>().unwrap() - i64::try_from(now.as_secs()).unwrap()
}

#[test]
fn a_clock_that_jumps_by_a_day_changes_nothing() {
    const TEST: &str = "a_clock_that_jumps_by_a_day_changes_nothing";
    if !skip::is_root(TEST) {
        return;
    }
    let Some(library) = library() else {
        skip::skip(TEST, "libfaketime is not there: apt-get install faketime");
        return;
    };
    let guest = Guest::start("");
    let file = guest.test.folder().join("clock");
    fs::write(&file, "+0\n").unwrap();
    let preload = format!("LD_PRELOAD={}", library.display());
    let clock = format!("FAKETIME_TIMESTAMP_FILE={}", file.display());
    guest.restart_agent(&[
        "env",
        &preload,
        &clock,
        "FAKETIME_CACHE_DURATION=1",
        "FAKETIME_DONT_FAKE_MONOTONIC=1",
    ]);
    guest.wait_state("blocking");
    let pid = guest.agent_pid();
    let known = guest.clean("known");
    std::thread::sleep(Duration::from_millis(2500));
    open_soon(&known).unwrap();
    wait_until("it is remembered", || guest.status()["cached_files"] == 1);
    let mut offsets = Vec::new();
    for (name, by) in [
        ("now", "+0"),
        ("tomorrow", "+1d"),
        ("yesterday", "-1d"),
        ("again", "+0"),
    ] {
        set_clock(&file, by);
        open_soon(&known).unwrap();
        open_soon(&guest.clean(name)).unwrap();
        let bad = guest.bad(&format!("bad-{name}"));
        assert!(denied(open_soon(&bad)), "{name}");
        let mut row = Value::Null;
        wait_until(&format!("it is reported {name}"), || {
            let list = guest.test.site.console(&["detection", "list"]).unwrap();
            let rows = list.as_array().unwrap();
            let end = format!("/bad-{name}");
            let of = rows
                .iter()
                .find(|row| row["path"].as_str().unwrap().ends_with(&end));
            row = of.cloned().unwrap_or_default();
            !row.is_null()
        });
        offsets.push(offset(&row));
        let status = guest.status();
        assert_eq!(
            status["protection"]["state"], "blocking",
            "{name}: {status}"
        );
        assert_eq!(status["server"]["connected"], true, "{name}: {status}");
    }
    assert_eq!(guest.agent_pid(), pid, "nobody took it for stalled");
    assert_eq!(number(&guest.settled(), "failed_open"), 0);
    // The control: its clock did jump.
    println!("the agent's clock was off by {offsets:?} s");
    let day = 86_400;
    let near = |at: i64, of: i64| (at - of).abs() < 120;
    assert!(
        near(offsets[1], day) && near(offsets[2], -day),
        "{offsets:?}"
    );
    assert!(near(offsets[0], 0) && near(offsets[3], 0), "{offsets:?}");
}
