//! A guest that libvirt migrates to another host, while it runs, is served by that host's
//! Protection Server from then on, and no open notices.

use std::time::{Duration, Instant};

use palisade_tests::command::wait_for;
use palisade_tests::definitions::Marker;
use palisade_tests::skip;

use super::common::servers::{Another, both_up, explain, with_role};
use super::common::{TestSite, machine};
use super::libvirtd::Libvirtd;
use super::openers::{ANSWERED, all_had_verdicts, open_while};

/// From the end of a migration until the agent uses the Protection Server of the new host:
/// the reading, the push, and the spread of those that move at once.
const FOLLOWS: Duration = Duration::from_secs(10);
/// Opens that go on after the move.
const AFTER: Duration = Duration::from_secs(2);

#[test]
fn a_guest_that_migrates_is_moved_to_the_new_hosts_server_and_no_open_notices() {
    const NAME: &str = "a_guest_that_migrates_is_moved_to_the_new_hosts_server_and_no_open_notices";
    if !skip::is_root(NAME) {
        return;
    }
    let (Some(a), Some(b)) = (Libvirtd::start_as("hv-a"), Libvirtd::start_as("hv-b")) else {
        return;
    };
    let domain = uuid::Uuid::new_v4().to_string();
    a.define_as("guest", &domain);
    a.must(&["start", "guest"]);
    machine::with_smbios_uuid(&domain);
    let marker = Marker::random();
    let test = TestSite::prepare(&[("m.ndb", marker.ndb())]);
    // Far longer than this test may take: what is seen is seen by events.
    test.set(
        "server",
        &format!(
            "libvirt = [{{ uri = '{}' }}, {{ uri = '{}' }}]\n[inventory]\npoll = '1h'\n",
            a.uri(),
            b.uri()
        ),
    );
    test.set("scanserver", "[path]\nhypervisor = 'hv-a'\n");
    test.site.start().unwrap();
    let here = test.site.scan_address().unwrap();
    let second = Another::start_with(&test, "there", 2, "[path]\nhypervisor = 'hv-b'\n");
    let there = second.address;
    both_up(&test);
    let uses = |svm| {
        wait_for(
            "the nearer Protection Server",
            Duration::from_secs(60),
            || {
                let explained = explain(&test);
                let used = with_role(&explained, "in-use");
                anyhow::ensure!(used == Some(svm), "{explained:#}");
                Ok(())
            },
        )
        .unwrap();
    };
    uses(here);

    let folder = test.protected.join("files");
    for (from, to, svm) in [(&a, &b, there), (&b, &a, here)] {
        let opened = open_while(&folder, &marker, || {
            std::thread::sleep(AFTER);
            from.migrate("guest", to);
            let migrated = Instant::now();
            uses(svm);
            let took = migrated.elapsed();
            println!("used {took:?} after the migration");
            assert!(took <= FOLLOWS, "{took:?}");
            std::thread::sleep(AFTER);
        });
        println!("{opened:?}");
        assert!(opened.all > 50, "{opened:?}");
        assert_eq!(opened.wrong, 0);
        assert!(opened.longest <= ANSWERED, "{opened:?}");
    }
    all_had_verdicts(&test);
    // It was no restart of the guest, and no loss.
    let alerts = test.site.console(&["alert", "list"]).unwrap();
    assert_eq!(alerts.as_array().map(Vec::len), Some(0), "{alerts}");
}
