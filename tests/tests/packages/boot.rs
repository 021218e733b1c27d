//! A root with systemd as its first process, in namespaces of its own: what the service's
//! file says is done by who does it on a real system.
//!
//! The network is this machine's, so that the site is reached; `/proc/sys` and `/sys` are
//! not writable there, so that nothing of this machine is changed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use palisade_tests::command::{self, Finished, wait_for};

use crate::root::Root;

/// How long a command within may take.
const COMMAND: Duration = Duration::from_secs(180);
/// How long systemd may take until it takes orders.
const BOOT: Duration = Duration::from_secs(60);

/// Puts the first process into a cgroup of its own, and begins the namespaces.
const OUTSIDE: &str = r#"set -e
mount -t cgroup2 none "$ROOT/sys/fs/cgroup"
mkdir "$ROOT/sys/fs/cgroup/$NAME"
echo $$ >"$ROOT/sys/fs/cgroup/$NAME/cgroup.procs"
umount "$ROOT/sys/fs/cgroup"
exec unshare --cgroup --pid --ipc --uts --fork --kill-child sh -c "$INSIDE"
"#;

/// Mounts what systemd expects, leaves the machine's own root, and becomes systemd.
const INSIDE: &str = r#"set -e
cd "$ROOT"
mount -t proc proc proc
mount -o bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for node in null zero full random urandom tty; do
    touch "dev/$node"
    mount -o bind "/dev/$node" "dev/$node"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
mkdir -p .outside
pivot_root . .outside
umount -l /.outside
rmdir /.outside
exec env -i container=palisade-test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --log-target=console --show-status=no
"#;

/// A booted root; ended when dropped.
pub struct Booted<'a> {
    root: &'a Root,
    namespaces: Child,
    name: String,
    first: u32,
}

impl<'a> Booted<'a> {
    pub fn start(root: &'a Root) -> Self {
        let name = format!("palisade-test-{}", std::process::id());
        // One that has its id is no first boot, of which more would be asked.
        let id = uuid::Uuid::new_v4().simple().to_string();
        fs::write(root.at("/etc/machine-id"), id).unwrap();
        // The kernel's audit is this machine's.
        let units = root.at("/etc/systemd/system");
        symlink("/dev/null", units.join("systemd-journald-audit.socket")).unwrap();
        fs::create_dir_all(root.at("/etc/systemd/journald.conf.d")).unwrap();
        let journal = root.at("/etc/systemd/journald.conf.d/audit.conf");
        fs::write(journal, "[Journal]\nAudit=no\n").unwrap();
        for folder in ["proc", "sys", "dev", "run"] {
            fs::create_dir_all(root.at(folder)).unwrap();
        }
        fs::create_dir_all(root.at("sys/fs/cgroup")).unwrap();
        let log = fs::File::create(root.path().with_extension("console")).unwrap();
        let namespaces = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", OUTSIDE])
            .env("ROOT", root.path())
            .env("NAME", &name)
            .env("INSIDE", INSIDE)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut booted = Self {
            root,
            namespaces,
            name,
            first: 0,
        };
        booted.first = booted.first_process();
        let ready = wait_for("systemd", BOOT, || {
            let state = booted.run(&["systemctl", "is-system-running"]);
            let state = String::from_utf8(state.stdout)?;
            anyhow::ensure!(["running", "degraded"].contains(&state.trim()), state);
            Ok(())
        });
        if let Err(error) = ready {
            panic!("{error:#}; {}", booted.console());
        }
        booted
    }

    /// The first process, as it is known outside.
    fn first_process(&mut self) -> u32 {
        let parent = self.namespaces.id();
        let found = wait_for("the first process", BOOT, || {
            let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
            let first: u32 = children.trim().parse()?;
            let name = fs::read_to_string(format!("/proc/{first}/comm"))?;
            anyhow::ensure!(name.trim() == "systemd", "it is {name}");
            Ok(first)
        });
        found.unwrap_or_else(|error| panic!("{error:#}; {}", self.console()))
    }

    fn console(&self) -> String {
        fs::read_to_string(self.root.path().with_extension("console")).unwrap_or_default()
    }

    /// Runs a command within, whatever its exit code.
    pub fn run(&self, arguments: &[&str]) -> Finished {
        let mut command = Command::new("nsenter");
        command
            .arg("--target")
            .arg(self.first.to_string())
            .args([
                "--mount", "--pid", "--ipc", "--uts", "--cgroup", "--root", "--wd",
            ])
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("DEBIAN_FRONTEND", "noninteractive");
        command::finish(command, COMMAND).unwrap()
    }

    /// What a command within says, stderr included; it must end well.
    pub fn said(&self, arguments: &[&str]) -> String {
        let finished = self.run(arguments);
        let journal = || self.run(&["journalctl", "--no-pager", "-n", "60"]).stdout;
        assert_eq!(
            finished.code,
            Some(0),
            "{arguments:?}: {}{}\n{}",
            String::from_utf8_lossy(&finished.stdout),
            finished.stderr,
            String::from_utf8_lossy(&journal()),
        );
        String::from_utf8(finished.stdout).unwrap() + &finished.stderr
    }

    /// A path within, as it is reached from outside.
    pub fn at(&self, path: &str) -> std::path::PathBuf {
        Path::new(&format!("/proc/{}/root", self.first)).join(path.trim_start_matches('/'))
    }
}

impl Drop for Booted<'_> {
    fn drop(&mut self) {
        end_cgroup(&self.name);
        let _ = self.namespaces.kill();
        let _ = self.namespaces.wait();
        let _ = fs::remove_file(self.root.path().with_extension("console"));
    }
}

/// Kills what is in the cgroup, the first process and all below it, and removes it.
fn end_cgroup(name: &str) {
    const END: &str = r#"mount -t cgroup2 none /mnt &&
echo 1 >"/mnt/$NAME/cgroup.kill"
for try in $(seq 100); do
    find "/mnt/$NAME" -depth -type d -exec rmdir {} + 2>/dev/null
    [ -d "/mnt/$NAME" ] || exit 0
    sleep 0.1
done"#;
    let _ = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", END])
        .env("NAME", name)
        .status();
}
