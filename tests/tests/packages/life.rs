//! The deb on a Debian whose first process is systemd, against a real site: installed,
//! used, upgraded while it runs, removed, purged. The rpm, as far as a Debian's rpm does
//! what it says.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use palisade_tests::command::wait_for;
use palisade_tests::definitions::{Marker, eicar};
use palisade_tests::skip;
use serde_json::Value;

use crate::boot::Booted;
use crate::built::{Packages, said};
use crate::common::TestSite;
use crate::root::Root;

/// How long an agent may take to enrol, to connect, and to try itself.
const PROTECTED_WITHIN: Duration = Duration::from_secs(90);
/// What a service is asked for.
const UNIT: &str = "palisade-agent.service";

/// A site without an agent of its own.
pub fn servers(marker: &Marker) -> TestSite {
    // EICAR is what an agent tries itself with.
    let eicar = format!("Eicar-Test-Signature:0:0:{}\n", hex::encode(eicar()));
    let site = TestSite::prepare(&[("marker.ndb", marker.ndb()), ("eicar.ndb", eicar)]);
    for part in ["server", "scanserver"] {
        site.site.start_part(part).unwrap();
    }
    site
}

/// The workspace's version, and a later one.
fn two_versions() -> [Packages; 2] {
    [
        Packages::build(),
        Packages::build_as(&["--version", "99.1"]),
    ]
}

/// Puts malware where it will be protected.
fn mark(system: &Booted<'_>, marker: &Marker) {
    let content = [b"x", &marker.bytes[..]].concat();
    fs::write(system.at("/home/marked"), content).unwrap();
    assert!(opens(system), "the control: nothing protects it yet");
}

/// Puts a deb into the system, and installs it by dpkg; gives what that says.
fn install(system: &Booted<'_>, packages: &Packages) -> String {
    fs::copy(&packages.deb, system.at("/var/tmp/agent.deb")).unwrap();
    system.said(&["dpkg", "--install", "/var/tmp/agent.deb"])
}

/// Invites the agent as an administrator would, and has it protect /home.
fn invite(system: &Booted<'_>, site: &TestSite) {
    let token = system.at("/etc/palisade/join-token");
    fs::write(&token, site.site.join_token("agent").unwrap()).unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(
        system.at("/etc/palisade/agent.conf.d/home.toml"),
        "[on_access]\npaths = ['/home']\n",
    )
    .unwrap();
}

fn status(system: &Booted<'_>) -> anyhow::Result<Value> {
    let finished = system.run(&["palisade-agent", "status", "-o", "json"]);
    finished.expect(&[0])?.json()
}

/// Waits until opens are held; gives the agent's process, as it names itself.
fn protected(system: &Booted<'_>) -> u64 {
    let protected = wait_for("protection", PROTECTED_WITHIN, || {
        let status = status(system)?;
        anyhow::ensure!(status["protection"]["state"] == "blocking", "{status}");
        status["agent"]["pid"]
            .as_u64()
            .ok_or_else(|| anyhow::anyhow!("no pid"))
    });
    match protected {
        Ok(pid) => pid,
        Err(error) => {
            let journal = system.said(&["journalctl", "--no-pager", "-n", "80", "-u", UNIT]);
            panic!("{error:#}\n{journal}");
        }
    }
}

/// Whether the marker's file can be read within.
fn opens(system: &Booted<'_>) -> bool {
    system.run(&["cat", "/home/marked"]).code == Some(0)
}

fn is_active(system: &Booted<'_>) -> bool {
    system.run(&["systemctl", "is-active", UNIT]).code == Some(0)
}

/// Files that are there, without what dpkg, apt and systemd keep for themselves.
fn files(root: &Root) -> BTreeSet<String> {
    let listed = said(
        "find",
        [
            root.path().to_str().unwrap(),
            "-xdev",
            "-path",
            root.at("/var/log").to_str().unwrap(),
            "-prune",
            "-o",
            "-printf",
            "%P\n",
        ],
    );
    let kept = |path: &&str| {
        ![
            "var/lib/dpkg",
            "var/lib/systemd",
            "var/cache",
            "run/",
            "tmp/",
            "var/tmp",
            "proc/",
        ]
        .iter()
        .any(|own| path.starts_with(own))
    };
    listed.lines().filter(kept).map(str::to_owned).collect()
}

#[test]
fn a_deb_is_installed_used_upgraded_removed_and_purged() {
    let name = "a_deb_is_installed_used_upgraded_removed_and_purged";
    if !skip::is_root(name) {
        return;
    }
    let [first, second] = two_versions();
    let marker = Marker::random();
    let site = servers(&marker);
    let root = Root::debian("bookworm");
    let before = files(&root);
    let system = Booted::start(&root);
    mark(&system, &marker);

    // Without a token it waits to be invited.
    let said = install(&system, &first);
    assert!(said.contains("/etc/palisade/join-token"), "{said}");
    assert_eq!(
        system.said(&["systemctl", "is-enabled", UNIT]).trim(),
        "enabled"
    );
    assert!(!is_active(&system));
    invite(&system, &site);
    system.said(&["systemctl", "start", UNIT]);
    let pid = protected(&system);
    assert!(!opens(&system));
    confined(&system, pid);
    overlaid(&system, &marker);

    // What the administrator wrote is kept, and the new agent protects.
    let settings = system.at("/etc/palisade/agent.toml");
    let own = fs::read_to_string(&settings).unwrap() + "# mine\n";
    fs::write(&settings, &own).unwrap();
    install(&system, &second);
    assert!(is_active(&system));
    let upgraded = protected(&system);
    assert_ne!(upgraded, pid, "it was restarted");
    assert!(!opens(&system));
    assert_eq!(fs::read_to_string(&settings).unwrap(), own);
    let version = system.said(&["dpkg-query", "-W", "-f", "${Version}", "palisade-agent"]);
    assert_eq!(version, "99.1");

    // A service that is stopped stays so.
    system.said(&["systemctl", "stop", UNIT]);
    assert!(opens(&system), "a stopped agent holds nothing");
    install(&system, &second);
    assert!(!is_active(&system));
    system.said(&["systemctl", "start", UNIT]);
    protected(&system);

    // Removed: nothing runs, and what is kept is said. Installed again, it goes on.
    let said = system.said(&["dpkg", "--remove", "palisade-agent"]);
    assert!(said.contains("/var/lib/palisade/agent is kept"), "{said}");
    assert!(!is_active(&system) && opens(&system));
    assert!(
        system
            .at("/var/lib/palisade/agent/identity/key.pem")
            .exists()
    );
    install(&system, &second);
    protected(&system);
    assert!(!opens(&system));
    let agents = site.site.console(&["agent", "list"]).unwrap();
    assert_eq!(
        agents.as_array().unwrap().len(),
        1,
        "it is the same agent: {agents}"
    );

    system.said(&["dpkg", "--purge", "palisade-agent"]);
    assert!(!is_active(&system) && opens(&system));
    drop(system);
    let after = files(&root);
    let left: Vec<&String> = after
        .difference(&before)
        .filter(|path| path.contains("palisade") || path.contains("quarantine"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// What only an overlay's layers hold is protected, too, though the service may not try
/// by itself whether marks of layers see it. (Where the kernel does not show that, it is
/// a gap, whose text says so.)
fn overlaid(system: &Booted<'_>, marker: &Marker) {
    let answer = system.said(&["cat", "/run/palisade/agent/overlay"]);
    system.said(&["mkdir", "-p", "/srv/layers", "/home/over"]);
    let mounted = "mount -t tmpfs layers /srv/layers && cd /srv/layers && mkdir lower upper work \
                   && mount -t overlay -o lowerdir=/srv/layers/lower,upperdir=/srv/layers/upper,workdir=/srv/layers/work over /home/over";
    system.said(&["sh", "-c", mounted]);
    let bytes = marker.bytes.iter();
    let escaped: String = bytes.map(|byte| format!("\\{byte:03o}")).collect();
    let written = format!("printf '{escaped}' >/srv/layers/upper/marked");
    system.said(&["sh", "-c", &written]);
    let gap = || {
        let status = status(system).unwrap();
        let gaps = status["protection"]["gaps"].as_array().unwrap().clone();
        gaps.iter().any(|gap| gap["path"] == "/home/over")
    };
    if answer.starts_with("seen") {
        wait_for("the overlay's layers", PROTECTED_WITHIN, || {
            let read = system.run(&["cat", "/home/over/marked"]);
            anyhow::ensure!(read.code != Some(0), "{}", status(system)?);
            Ok(())
        })
        .unwrap();
        assert!(!gap());
    } else {
        assert!(answer.starts_with("unseen"), "{answer}");
        assert!(gap());
    }
    system.said(&["umount", "/home/over", "/srv/layers"]);
}

/// With leave alone: systemd refuses, dpkg refuses, and an agent that is killed is back.
#[test]
fn stopping_and_removing_need_leave() {
    if !skip::is_root("stopping_and_removing_need_leave") {
        return;
    }
    let [first, second] = two_versions();
    let marker = Marker::random();
    let site = servers(&marker);
    let root = Root::debian("bookworm");
    let system = Booted::start(&root);
    mark(&system, &marker);
    install(&system, &first);
    invite(&system, &site);
    fs::write(
        system.at("/etc/palisade/agent.conf.d/maintenance.toml"),
        "[maintenance]\ntoken_required = true\n",
    )
    .unwrap();
    system.said(&["systemctl", "start", UNIT]);
    protected(&system);
    let refused = |command: &[&str], why: &str| {
        let finished = system.run(command);
        assert_ne!(finished.code, Some(0), "{command:?}");
        let said = String::from_utf8_lossy(&finished.stdout) + &*finished.stderr;
        assert!(said.contains(why), "{command:?}: {said}");
        assert!(is_active(&system) && !opens(&system), "{command:?}");
    };
    let refused_all = || {
        refused(
            &["systemctl", "stop", UNIT],
            "may be requested by dependency only",
        );
        refused(&["palisade-agent", "stop"], "needs a maintenance token");
        refused(
            &["dpkg", "--remove", "palisade-agent"],
            "needs a maintenance token",
        );
        refused(
            &["palisade-agent", "uninstall", "--yes"],
            "needs a maintenance token",
        );
        // What was refused has not opened another way.
        refused(
            &["systemctl", "stop", UNIT],
            "may be requested by dependency only",
        );
    };
    refused_all();
    // Where nothing may be restarted, an upgrade leaves the old agent, and what it forbids.
    let never = system.at("/usr/sbin/policy-rc.d");
    let before = fs::read(&never).ok();
    fs::write(&never, "#!/bin/sh\nexit 101\n").unwrap();
    fs::set_permissions(&never, fs::Permissions::from_mode(0o755)).unwrap();
    let pid = system.said(&["systemctl", "show", "--property=MainPID", UNIT]);
    install(&system, &second);
    assert_eq!(
        system.said(&["systemctl", "show", "--property=MainPID", UNIT]),
        pid
    );
    refused_all();
    match before {
        Some(before) => fs::write(&never, before).unwrap(),
        None => fs::remove_file(&never).unwrap(),
    }
    // An upgrade is neither, and what is killed is back.
    install(&system, &second);
    let pid = protected(&system);
    system.said(&[
        "systemctl",
        "kill",
        "--kill-who=main",
        "--signal=TERM",
        UNIT,
    ]);
    assert_ne!(protected(&system), pid);
    refused_all();

    let agents = site.site.console(&["agent", "list"]).unwrap();
    let name = agents[0]["name"].as_str().unwrap().to_owned();
    let leave = |more: &[&str]| {
        let asked = ["agent", "maintenance", &name, "--reason", "a test"];
        let given = site.site.console(&[&asked[..], more].concat()).unwrap();
        let token = given["token"].as_str().unwrap();
        system.said(&["palisade-agent", "maintenance", "begin", token]);
    };
    leave(&[]);
    refused(
        &["palisade-agent", "uninstall", "--yes"],
        "needs more than the maintenance token",
    );
    system.said(&["palisade-agent", "stop"]);
    assert!(!is_active(&system) && opens(&system));
    system.said(&["systemctl", "start", UNIT]);
    protected(&system);
    refused(
        &["systemctl", "stop", UNIT],
        "may be requested by dependency only",
    );

    leave(&["--remove"]);
    let planned = system.run(&["palisade-agent", "uninstall"]);
    assert_eq!(planned.code, Some(2));
    assert!(is_active(&system));
    system.said(&["palisade-agent", "uninstall", "--purge", "--yes"]);
    assert!(!is_active(&system) && opens(&system));
    for gone in [
        "/usr/bin/palisade-agent",
        "/var/lib/palisade",
        "/etc/palisade",
    ] {
        assert!(!system.at(gone).exists(), "{gone}");
    }
    assert!(
        !system
            .at("/run/systemd/system")
            .join(format!("{UNIT}.d"))
            .exists()
    );
}

/// The capabilities of the running agent are those of its unit, and it has the system's
/// own mounts.
fn confined(system: &Booted<'_>, pid: u64) {
    let of = |path: &str| system.said(&["cat", &format!("/proc/{pid}/{path}")]);
    let status = of("status");
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    // SYS_ADMIN, SYS_PTRACE, CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID,
    // LEASE, SETFCAP.
    let wanted = [21, 19, 0, 1, 2, 3, 4, 28, 31].map(|bit| 1_u64 << bit);
    let wanted: u64 = wanted.iter().sum();
    for set in ["CapEff:", "CapBnd:"] {
        assert_eq!(
            u64::from_str_radix(&field(set), 16).unwrap(),
            wanted,
            "{set}"
        );
    }
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    let namespace = |pid: &str| system.said(&["readlink", &format!("/proc/{pid}/ns/mnt")]);
    assert_eq!(namespace(&pid.to_string()), namespace("1"));
}

/// The unit's limits take nothing from the agent that it needs: malware is moved away
/// from another user's folder, and given back as it was.
#[test]
fn under_its_unit_the_agent_moves_malware_and_gives_it_back() {
    let name = "under_its_unit_the_agent_moves_malware_and_gives_it_back";
    if !skip::is_root(name) {
        return;
    }
    let packages = Packages::build();
    let marker = Marker::random();
    let site = servers(&marker);
    let root = Root::debian("bookworm");
    let system = Booted::start(&root);
    install(&system, &packages);
    invite(&system, &site);
    fs::write(
        system.at("/etc/palisade/agent.conf.d/move.toml"),
        "[remediation]\nmalware = 'quarantine'\n",
    )
    .unwrap();
    system.said(&["systemctl", "start", UNIT]);
    protected(&system);

    system.said(&["install", "-d", "-m", "700", "-o", "nobody", "/home/nobody"]);
    let bad = system.at("/home/nobody/bad");
    fs::write(&bad, [b"x", &marker.bytes[..]].concat()).unwrap();
    system.said(&["chown", "nobody:nogroup", "/home/nobody/bad"]);
    system.said(&["chmod", "6755", "/home/nobody/bad"]);
    assert_ne!(system.run(&["cat", "/home/nobody/bad"]).code, Some(0));
    wait_for("its move", PROTECTED_WITHIN, || {
        anyhow::ensure!(!bad.exists(), "it is there still");
        Ok(())
    })
    .unwrap();
    let list = system.run(&["palisade-agent", "quarantine", "list", "-o", "json"]);
    let list = list.json().unwrap();
    let id = list["items"][0]["id"]
        .as_str()
        .unwrap_or_else(|| panic!("{list}"));
    system.said(&["palisade-agent", "quarantine", "restore", id]);
    let stat = system.said(&["stat", "-c", "%a %U", "/home/nobody/bad"]);
    assert_eq!(stat.trim(), "6755 nobody");

    // A scan in the background runs within the unit, too.
    system.said(&["mkdir", "/srv/data"]);
    fs::write(system.at("/srv/data/bad"), &marker.bytes).unwrap();
    system.said(&["palisade-agent", "task", "start", "/srv/data"]);
    wait_for("the task's finding", PROTECTED_WITHIN, || {
        let list = site.site.console(&["detection", "list"])?;
        anyhow::ensure!(list.to_string().contains("/srv/data/bad"), "{list}");
        Ok(())
    })
    .unwrap();

    // A purge deletes the quarantine, and says so.
    system.run(&["cat", "/home/nobody/bad"]);
    wait_for("its second move", PROTECTED_WITHIN, || {
        anyhow::ensure!(!bad.exists(), "it is there still");
        Ok(())
    })
    .unwrap();
    let said = system.said(&["dpkg", "--purge", "palisade-agent"]);
    assert!(said.contains("files in quarantine are deleted"), "{said}");
    assert!(!system.at("/var/lib/palisade").exists());
    assert!(!system.at("/run/palisade").exists());
}

/// An older systemd knows the unit, and dpkg's tools of then run the scripts.
#[test]
fn a_deb_protects_an_older_debian() {
    if !skip::is_root("a_deb_protects_an_older_debian") {
        return;
    }
    let packages = Packages::build();
    let marker = Marker::random();
    let site = servers(&marker);
    let root = Root::debian("bullseye");
    let system = Booted::start(&root);
    mark(&system, &marker);
    install(&system, &packages);
    invite(&system, &site);
    system.said(&["systemctl", "start", UNIT]);
    let pid = protected(&system);
    assert!(!opens(&system));
    confined(&system, pid);
    system.said(&["dpkg", "--purge", "palisade-agent"]);
    assert!(!is_active(&system) && opens(&system));
    assert!(!system.at("/var/lib/palisade").exists());
}

/// An rpm's scripts and files on a Debian root, by Debian's rpm: it has no other package
/// there, so that dependencies are not looked at.
#[test]
fn an_rpm_is_installed_upgraded_and_erased() {
    let name = "an_rpm_is_installed_upgraded_and_erased";
    if !skip::is_root(name) {
        return;
    }
    let [first, second] = two_versions();
    let root = Root::debian("bookworm");
    root.mount_proc();
    let rpm = |arguments: &[&str]| {
        let all = [&["--root", root.path().to_str().unwrap()], arguments].concat();
        let finished = crate::built::tool("rpm", all).expect(&[0]).unwrap();
        String::from_utf8(finished.stdout).unwrap() + &finished.stderr
    };
    rpm(&["--install", "--nodeps", first.rpm.to_str().unwrap()]);
    let enabled = root.at("/etc/systemd/system/multi-user.target.wants/palisade-agent.service");
    assert!(enabled.is_symlink());
    rpm(&["--verify", "--nodeps", "palisade-agent"]);
    let mut check = root.chroot(&["/usr/bin/palisade-agent", "check-config"]);
    assert!(check.status().unwrap().success());

    let settings = root.at("/etc/palisade/agent.toml");
    let own = fs::read_to_string(&settings).unwrap() + "# mine\n";
    fs::write(&settings, &own).unwrap();
    fs::create_dir(root.at("/var/lib/palisade/agent/identity")).unwrap();
    rpm(&["--upgrade", "--nodeps", second.rpm.to_str().unwrap()]);
    assert_eq!(rpm(&["-q", "--qf", "%{VERSION}", "palisade-agent"]), "99.1");
    assert_eq!(fs::read_to_string(&settings).unwrap(), own);
    assert!(enabled.is_symlink(), "an upgrade leaves it enabled");

    let said = rpm(&["--erase", "palisade-agent"]);
    assert!(said.contains("/var/lib/palisade/agent is kept"), "{said}");
    assert!(!enabled.is_symlink());
    assert!(!root.at("/usr/bin/palisade-agent").exists());
    assert!(root.at("/etc/palisade/agent.toml.rpmsave").exists());
    assert!(root.at("/var/lib/palisade/agent/identity").exists());
}
