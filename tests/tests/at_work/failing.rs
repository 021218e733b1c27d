//! An agent that fails again and again no longer holds opens, says why, and reports what
//! it would have blocked.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use palisade_tests::skip;

use super::guest::{Guest, PATIENCE, denied, open_soon, wait_until};

/// Ends the agent as a fault of its own would: the first SIGSEGV that no access to memory
/// caused is only taken note of by Rust's own handler.
fn crash(pid: i32) {
    wait_until("the agent is gone", || {
        kill(Pid::from_raw(pid), Signal::SIGSEGV).is_err()
    });
}

fn another(guest: &Guest, before: i32, state: &str) {
    wait_until(&format!("another agent is {state}"), || {
        guest.try_status().is_some_and(|status| {
            status["agent"]["pid"] != before && status["protection"]["state"] == state
        })
    });
}

#[test]
fn an_agent_that_fails_again_and_again_reports_only_until_it_is_reset() {
    if !skip::is_root("an_agent_that_fails_again_and_again_reports_only_until_it_is_reset") {
        return;
    }
    let guest = Guest::start("");
    let bad = guest.bad("bad");
    for _ in 0..2 {
        let pid = guest.agent_pid();
        crash(pid);
        // The control: twice is no rule yet.
        another(&guest, pid, "blocking");
        assert!(denied(open_soon(&bad)));
    }
    let pid = guest.agent_pid();
    crash(pid);
    another(&guest, pid, "monitoring");
    let seen = guest.bad("seen");
    assert!(!denied(open_soon(&seen)));
    wait_until("the site is told all the same", || {
        let found = guest.test.site.console(&["detection", "list"]).unwrap();
        let found = found.as_array().unwrap();
        found.iter().any(|found| {
            found["action"] == "reported" && found["path"].as_str().unwrap().ends_with("/seen")
        })
    });
    let reason = guest.status()["protection"]["reason"].clone();
    for part in ["3 times", "it crashed", "--reset"] {
        assert!(reason.as_str().unwrap().contains(part), "{part}: {reason}");
    }
    let reset = ["supervise", "--reset"];
    let said = guest
        .test
        .site
        .run("palisade-agent", &reset, PATIENCE)
        .unwrap();
    said.expect(&[0]).unwrap();
    guest.restart_agent(&[]);
    guest.wait_state("blocking");
    assert!(denied(open_soon(&bad)));
}
