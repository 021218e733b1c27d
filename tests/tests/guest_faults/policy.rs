//! Damaged settings and kept lists, over restarts: the agent says what is wrong, opens are
//! never held by one that does not come up, and it is back once they are mended.

use std::fs;
use std::path::Path;
use std::time::Duration;

use palisade_tests::skip;

use super::guest::{Guest, denied, open_soon, wait_until};

const RESTARTS: usize = 3;

#[test]
fn a_damaged_drop_in_is_named_and_holds_nobody() {
    if !skip::is_root("a_damaged_drop_in_is_named_and_holds_nobody") {
        return;
    }
    let guest = Guest::start("");
    let folder = guest.settings_file().parent().unwrap().join("agent.conf.d");
    fs::create_dir_all(&folder).unwrap();
    let drop_in = folder.join("10-site.toml");
    let bad = guest.bad("bad");
    let log = guest.test.site.log("agent");
    for (round, text) in [
        "[on_access]\npaths = 'x",
        "[on_access]\nno_such_setting = true",
        "[on_access]\ndeadline_ms = 1",
    ]
    .into_iter()
    .cycle()
    .take(RESTARTS)
    .enumerate()
    {
        fs::write(&drop_in, text).unwrap();
        let said = fs::read_to_string(&log).unwrap().len();
        guest.restart_agent(&[]);
        wait_until("it is said", || {
            let log = fs::read_to_string(&log).unwrap();
            let news = &log[said..];
            news.contains("10-site.toml") || news.contains("deadline_ms")
        });
        open_soon(&bad).unwrap();
        open_soon(&guest.clean(&format!("clean-{round}"))).unwrap();
        // The check of settings says the same.
        let check =
            guest
                .test
                .site
                .run("palisade-agent", &["check-config"], Duration::from_secs(10));
        assert_eq!(check.unwrap().code, Some(1), "{text}");
    }
    // The control: mended, and without anyone starting it.
    fs::remove_file(&drop_in).unwrap();
    guest.wait_state("blocking");
    assert!(denied(open_soon(&bad)));
}

#[test]
fn a_damaged_list_is_named_and_fetched_again() {
    if !skip::is_root("a_damaged_list_is_named_and_fetched_again") {
        return;
    }
    let guest = Guest::start("");
    let list = guest.test.site.dir().join("var/agent/svm-list.json");
    let good = fs::read(&list).unwrap();
    let bad = guest.bad("bad");
    assert!(denied(open_soon(&bad)));
    let log = guest.test.site.log("agent");
    for text in [&b"{"[..], b"[1, 2, 3]", b"\xff\x00 no text"] {
        guest.stop_agent();
        fs::write(&list, text).unwrap();
        let said = fs::read_to_string(&log).unwrap().len();
        guest.restart_agent(&[]);
        guest.wait_state("blocking");
        assert!(denied(open_soon(&bad)));
        let log = fs::read_to_string(&log).unwrap();
        assert!(log[said..].contains("svm-list.json"), "{}", &log[said..]);
        assert_eq!(fs::read(&list).unwrap(), good, "fetched again");
    }

    // Without an Integration Server there is no other: it says that it knows none, and
    // holds nobody. With the good one it needs no Integration Server: the control.
    let is_connected = |list_is: &[u8], path: &Path| {
        guest.stop_agent();
        fs::write(path, list_is).unwrap();
        guest.restart_agent(&[]);
        wait_until("it answers", || guest.try_status().is_some());
        let mut connected = false;
        for _ in 0..50 {
            connected = guest.status()["svm"]["id"].is_string();
            if connected {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        connected
    };
    guest
        .test
        .site
        .process("server")
        .unwrap()
        .unwrap()
        .stop()
        .unwrap();
    assert!(!is_connected(b"{", &list));
    open_soon(&bad).unwrap();
    let status = guest.status();
    assert_eq!(status["protection"]["state"], "off", "{status}");
    assert!(is_connected(&good, &list));
    wait_until("malware is blocked", || denied(open_soon(&bad)));
}
