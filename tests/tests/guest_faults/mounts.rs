//! Malware by another way: bind mounts, overlays, and file systems that came later, in the
//! agent's mount namespace and in others.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use nix::sys::signal::Signal;
use palisade_tests::skip;

use super::guest::{Guest, Mount, denied, number, signal, wait_until};

/// Runs a script in a mount namespace of its own; gives what it printed.
fn in_namespace(script: &str, arguments: &[&Path]) -> String {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", script, "sh"]);
    let done = command.args(arguments).output().unwrap();
    let stderr = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{script}: {stderr}");
    String::from_utf8(done.stdout).unwrap()
}

/// Says of each file whether it can be read.
const READ: &str =
    "for f in bad good; do cat \"$at/$f\" >/dev/null 2>&1 && echo read || echo denied; done";

fn file_systems(guest: &Guest) -> u64 {
    number(&guest.status()["protection"], "file_systems")
}

fn gaps(guest: &Guest) -> String {
    guest.status()["protection"]["gaps"].to_string()
}

#[test]
fn a_bind_mount_hides_nothing() {
    if !skip::is_root("a_bind_mount_hides_nothing") {
        return;
    }
    let guest = Guest::prepare("exclude = ['/mnt']");
    let inside = guest.test.protected.join("inside");
    guest.set(&format!("[on_access]\npaths = ['{}']", inside.display()));
    for folder in ["inside", "outside"] {
        fs::create_dir(guest.test.protected.join(folder)).unwrap();
        guest.bad(&format!("{folder}/bad"));
        guest.clean(&format!("{folder}/good"));
    }
    guest.test.site.start().unwrap();
    guest.wait_state("blocking");
    // By a name that is not protected, by one that is excluded, and by a whole file system.
    let elsewhere = guest.test.folder().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let bind = format!("mount --bind \"$1\" \"$2\"; at=$2$3; {READ}");
    let whole = &guest.test.protected;
    for at in [&elsewhere, Path::new("/mnt")] {
        let said = in_namespace(&bind, &[&inside, at]);
        assert_eq!(said, "denied\nread\n", "{}", at.display());
        let said = in_namespace(&bind, &[whole, at, Path::new("/inside")]);
        assert_eq!(said, "denied\nread\n", "{}", at.display());
    }
    // The control: what lies beside the protected path is none of the agent's business.
    let outside = guest.test.protected.join("outside");
    for from in [(&outside, ""), (whole, "/outside")] {
        let said = in_namespace(&bind, &[from.0, &elsewhere, Path::new(from.1)]);
        assert_eq!(said, "read\nread\n", "{from:?}");
    }
    // In the agent's own namespace, too: a bind mount is seen through, and what is
    // excluded by name stays so.
    let bound = Mount::bind(&inside, &elsewhere);
    assert!(denied(File::open(elsewhere.join("bad"))));
    File::open(elsewhere.join("good")).unwrap();
    drop(bound);
    guest.settled();
}

#[test]
fn what_is_private_is_so_by_whatever_name() {
    if !skip::is_root("what_is_private_is_so_by_whatever_name") {
        return;
    }
    let guest = Guest::prepare("private = ['{protected}/secret']\n[failure]\nprivate = 'deny'");
    let protected = &guest.test.protected;
    for folder in ["secret/part", "open/secret/part"] {
        fs::create_dir_all(protected.join(folder)).unwrap();
        // Of contents that nobody has had scanned: what is asked by hashes alone is denied.
        for name in ["good", "part/good"] {
            let number = rand::random::<u64>();
            let way = folder.trim_end_matches("part");
            guest.file(&format!("{way}{name}"), format!("{number:x}").as_bytes());
        }
    }
    let elsewhere = guest.test.folder().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    guest.test.site.start().unwrap();
    guest.wait_state("blocking");
    let (secret, open) = (protected.join("secret"), protected.join("open"));
    let private = || number(&guest.settled()["failures"], "private");
    let read =
        "mount --bind \"$1\" \"$2\"; cat \"$2/$3\" >/dev/null 2>&1 && echo read || echo denied";
    let by = |from: &Path, file: &str| in_namespace(read, &[from, &elsewhere, Path::new(file)]);
    let before = private();
    assert_eq!(by(&secret, "good"), "denied\n");
    assert_eq!(by(protected, "secret/good"), "denied\n");
    assert_eq!(by(&secret.join("part"), "good"), "denied\n");
    let bound = Mount::bind(&secret.join("part"), &elsewhere);
    assert!(denied(File::open(elsewhere.join("good"))));
    drop(bound);
    assert_eq!(private(), before + 4);
    // The control: what only looks so is scanned.
    assert_eq!(by(protected, "open/secret/good"), "read\n");
    assert_eq!(by(&open, "secret/part/good"), "read\n");
    assert_eq!(private(), before + 4);
}

#[test]
fn a_file_system_that_is_mounted_later_is_protected() {
    if !skip::is_root("a_file_system_that_is_mounted_later_is_protected") {
        return;
    }
    let guest = Guest::start("");
    wait_until("one is marked", || file_systems(&guest) == 1);
    let at = guest.test.protected.join("later");
    // The same number belongs to another file system, the second time.
    for round in ["first", "second"] {
        let later = Mount::tmpfs(&at, "size=1m");
        wait_until("it is marked", || file_systems(&guest) == 2);
        let bad = guest.bad(&format!("later/{round}"));
        wait_until("it is blocked", || denied(File::open(&bad)));
        File::open(guest.clean(&format!("later/clean-{round}"))).unwrap();
        drop(later);
    }
    wait_until("it is gone", || file_systems(&guest) == 1);
    // What is mounted where nothing is protected is let be.
    let other = guest.test.folder().join("other");
    let _other = Mount::tmpfs(&other, "size=1m");
    let bad = guest.test.file("other/bad", &guest.malware("other"));
    File::open(&bad).unwrap();
    assert_eq!(file_systems(&guest), 1);

    // The control: without the setting nobody looks.
    guest.set("[on_access]\nnew_mounts = false");
    guest.restart_agent(&[]);
    guest.wait_state("blocking");
    let _later = Mount::tmpfs(&at, "size=1m");
    let bad = guest.bad("later/bad");
    std::thread::sleep(std::time::Duration::from_secs(1));
    File::open(&bad).unwrap();
}

#[test]
fn an_overlay_hides_nothing() {
    if !skip::is_root("an_overlay_hides_nothing") {
        return;
    }
    let guest = Guest::start("");
    let protected = &guest.test.protected;
    for folder in ["lower", "upper", "work", "merged"] {
        fs::create_dir(protected.join(folder)).unwrap();
    }
    guest.bad("lower/bad");
    guest.clean("lower/good");
    guest.bad("upper/bad-above");
    let mount = "mount -t overlay o -o \"lowerdir=$1/lower,upperdir=$1/upper,workdir=$1/work\"";
    let own = guest.test.folder().join("merged");
    fs::create_dir(&own).unwrap();
    // In a namespace of its own, out of the protected folder.
    let read = "cat \"$at/bad-above\" >/dev/null 2>&1 && echo read || echo denied";
    let script = format!("{mount} \"$2\"; at=$2; {READ}; {read}");
    let said = in_namespace(&script, &[protected, &own]);
    assert_eq!(said, "denied\nread\ndenied\n");
    // In the agent's, within it, and with malware that is written through it.
    let options = format!(
        "lowerdir={0}/lower,upperdir={0}/upper,workdir={0}/work",
        protected.display()
    );
    let merged = Mount::overlay(&protected.join("merged"), &options);
    assert!(denied(File::open(protected.join("merged/bad"))));
    File::open(protected.join("merged/good")).unwrap();
    let written = guest.bad("merged/written");
    assert!(denied(File::open(&written)));
    wait_until("it is no gap", || gaps(&guest) == "[]");
    drop(merged);

    // Layers on file systems that nothing else of the agent's is on.
    let layers = Mount::tmpfs(&guest.test.folder().join("layers"), "size=1m");
    for folder in ["lower", "upper", "work"] {
        fs::create_dir(layers.0.join(folder)).unwrap();
    }
    fs::write(layers.0.join("lower/bad"), guest.malware("layer")).unwrap();
    let options = format!(
        "lowerdir={0}/lower,upperdir={0}/upper,workdir={0}/work",
        layers.0.display()
    );
    // The control: what is not below a protected path is not looked at.
    let aside = Mount::overlay(&own, &options);
    File::open(own.join("bad")).unwrap();
    drop(aside);
    let before = file_systems(&guest);
    let _merged = Mount::overlay(&protected.join("merged"), &options);
    wait_until("its layers are marked", || file_systems(&guest) > before);
    assert!(denied(File::open(protected.join("merged/bad"))));
    guest.settled();
}

/// A shell in mounts of its own, as a container is.
struct Container {
    shell: Child,
    answers: BufReader<ChildStdout>,
}

impl Container {
    /// Below the process namespace of this process.
    fn start(of: i32) -> Self {
        let mut command = Command::new("nsenter");
        command.args(["--pid", "--mount", "-t", &of.to_string(), "unshare"]);
        command.args(["--mount", "sh"]);
        let mut shell = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(shell.stdout.take().unwrap());
        Self { shell, answers }
    }

    /// Runs a line, and gives the line that it prints.
    fn say(&mut self, line: &str) -> String {
        let mut stdin = self.shell.stdin.as_ref().unwrap();
        writeln!(stdin, "{line}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        answer.trim().to_owned()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let mut rest = String::new();
        let _ = self.answers.read_to_string(&mut rest);
        let _ = self.shell.wait();
    }
}

#[test]
fn a_file_system_of_another_namespace_alone_is_protected() {
    if !skip::is_root("a_file_system_of_another_namespace_alone_is_protected") {
        return;
    }
    let guest = Guest::start("");
    // In a process namespace of its own, so that the agent sees those of this test alone.
    let apart = [
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--mount-proc",
        "--kill-child",
    ];
    let malware = guest.test.file("malware", &guest.malware("container"));
    let mut outcome = Vec::new();
    for looked_for in [true, false] {
        guest.set(&format!("[on_access]\nother_namespaces = {looked_for}"));
        guest.restart_agent(&apart);
        guest.wait_state("blocking");
        let supervisor = guest.test.site.process("agent").unwrap().unwrap().pid;
        let children = format!("/proc/{supervisor}/task/{supervisor}/children");
        let inner = fs::read_to_string(children).unwrap();
        let inner = inner.trim().parse().unwrap();
        let mut container = Container::start(inner);
        let made = "mkdir -p /mnt; mount -t tmpfs own /mnt && echo made";
        assert_eq!(container.say(made), "made");
        let copy = format!(
            "cp '{}' /mnt/bad && echo clean > /mnt/good; echo done",
            malware.display()
        );
        assert_eq!(container.say(&copy), "done");
        let read = |container: &mut Container, name: &str| {
            container.say(&format!(
                "cat /mnt/{name} >/dev/null 2>&1 && echo read || echo denied"
            ))
        };
        let marked = looked_for.then(|| {
            wait_until("it is marked", || {
                // Opens are what the agent looks up for.
                let _ = File::open(guest.clean("any"));
                file_systems(&guest) == 2
            });
        });
        assert_eq!(read(&mut container, "good"), "read");
        outcome.push((marked.is_some(), read(&mut container, "bad")));
        if looked_for {
            assert!(number(&guest.status()["protection"], "namespaces") >= 1);
        }
        drop(container);
        // With the first process of its namespace all others end.
        signal(inner, Signal::SIGKILL);
        wait_until("it ends", || {
            guest.test.site.process("agent").unwrap().is_none()
        });
    }
    // The second is the control.
    let wanted = [(true, "denied".to_owned()), (false, "read".to_owned())];
    assert_eq!(outcome, wanted);
}

/// By the type of its file system, wherever that is mounted; nothing else is let through.
#[test]
fn a_type_of_file_system_can_be_excluded() {
    if !skip::is_root("a_type_of_file_system_can_be_excluded") {
        return;
    }
    let guest = Guest::prepare("[on_access]\nexclude_types = ['squashfs']");
    let tree = guest.test.folder().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("bad"), guest.malware("squashed")).unwrap();
    let image = guest.test.folder().join("image");
    let made = Command::new("mksquashfs").arg(&tree).arg(&image).output();
    assert!(made.unwrap().status.success());
    guest.test.site.start().unwrap();
    guest.wait_state("blocking");
    let at = guest.test.protected.join("image");
    fs::create_dir(&at).unwrap();
    let before = file_systems(&guest);
    let mounted = Command::new("mount")
        .args(["-t", "squashfs", "-o", "loop,ro"])
        .args([&image, &at])
        .status();
    assert!(mounted.unwrap().success());
    let mount = Mount(at.clone());
    wait_until("it is marked as any other", || {
        file_systems(&guest) > before
    });
    assert!(!denied(File::open(at.join("bad"))));
    // The controls: the same elsewhere, and the same type where it is not excluded.
    assert!(denied(File::open(guest.bad("bad"))));
    guest.settled();
    guest.set("[on_access]\nexclude_types = []");
    guest.restart_agent(&[]);
    guest.wait_state("blocking");
    wait_until("it is protected", || denied(File::open(at.join("bad"))));
    // One that is to be protected and cannot be is said.
    guest.set("[on_access]\nexclude_types = ['tmpfs']");
    guest.restart_agent(&[]);
    wait_until("it is said", || {
        guest
            .try_status()
            .is_some_and(|status| status.to_string().contains("exclude_types excludes tmpfs"))
    });
    drop(mount);
}
