//! A real libvirtd that belongs to one test alone: a mount namespace of its own hides the
//! machine's configuration, state and run folders, and its socket is in a temporary folder.
//! Domains are tiny QEMU processes with software emulation and no disk.
//!
//! Shared by this crate's tests and the end-to-end ones, which include it by its path.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "each user needs a part of it, and a panic fails the test"
)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);
/// The one domain that is defined.
pub const UUID: &str = "6695eb01-f6a4-8304-79aa-000000000001";

const QEMU_CONF: &str = "stdio_handler = \"file\"\nuser = \"root\"\ngroup = \"root\"\n\
    security_driver = \"none\"\ncgroup_controllers = []\nnamespaces = []\nremember_owner = 0\n";

/// A private libvirtd.
pub struct Libvirtd {
    dir: TempDir,
    hostname: String,
    child: Option<Child>,
}

impl Libvirtd {
    /// None, with the reason printed, where there is no libvirtd to run.
    pub fn start() -> Option<Self> {
        Self::start_as("")
    }

    /// The same as a host of this name; of the machine's if it is empty.
    pub fn start_as(hostname: &str) -> Option<Self> {
        for (program, package) in [
            ("/usr/sbin/libvirtd", "libvirt-daemon-system"),
            ("/usr/bin/virsh", "libvirt-clients"),
            ("/usr/bin/qemu-system-x86_64", "qemu-system-x86"),
        ] {
            if !Path::new(program).exists() {
                println!("skipped: {program} is absent; install {package}");
                return None;
            }
        }
        let dir = tempfile::Builder::new()
            .prefix("lv")
            .tempdir_in("/tmp")
            .unwrap();
        for folder in ["sock", "etc/qemu", "var", "run", "cache"] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        std::fs::write(dir.path().join("etc/qemu.conf"), QEMU_CONF).unwrap();
        let conf = format!(
            "unix_sock_dir = \"{}/sock\"\nauth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\n\
             host_uuid = \"{}\"\n",
            dir.path().display(),
            // Domains migrate from one host to another, and never to the same.
            uuid::Uuid::new_v4()
        );
        std::fs::write(dir.path().join("libvirtd.conf"), conf).unwrap();
        let mut daemon = Self {
            dir,
            hostname: hostname.to_owned(),
            child: None,
        };
        if daemon.run() {
            return Some(daemon);
        }
        println!("skipped: no private libvirtd can be run here (mount namespaces need root)");
        None
    }

    pub fn run(&mut self) -> bool {
        let script = "set -e; cd \"$0\"; mount --bind etc /etc/libvirt; \
            mount --bind var /var/lib/libvirt; mount --bind cache /var/cache/libvirt; \
            mount --bind run /run; test -z \"$1\" || hostname \"$1\"; exec libvirtd -f \"$0/libvirtd.conf\" -p \"$0/libvirtd.pid\"";
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        let mut child = Command::new("unshare")
            .args(["--mount", "--uts", "--propagation", "private"])
            .args(["sh", "-c", script])
            .arg(self.dir.path())
            .arg(&self.hostname)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let end = Instant::now() + PATIENCE;
        while !self.socket().exists() || self.virsh(&["version"]).is_none() {
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            assert!(Instant::now() < end, "libvirtd does not come up");
            std::thread::sleep(Duration::from_millis(50));
        }
        self.child = Some(child);
        true
    }

    /// Ends the daemon as a crash would; its domains go on.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
            // A killed daemon leaves its sockets.
            for name in ["libvirt-sock", "libvirt-sock-ro", "libvirt-admin-sock"] {
                let _ = std::fs::remove_file(self.dir.path().join("sock").join(name));
            }
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("sock/libvirt-sock")
    }

    pub fn uri(&self) -> String {
        format!("qemu:///system?socket={}", self.socket().display())
    }

    fn virsh(&self, arguments: &[&str]) -> Option<String> {
        let done = Command::new("virsh")
            .args(["-q", "-c", &self.uri()])
            .args(arguments)
            .output();
        let done = done.unwrap();
        done.status
            .success()
            .then(|| String::from_utf8(done.stdout).unwrap())
    }

    pub fn must(&self, arguments: &[&str]) {
        assert!(self.virsh(arguments).is_some(), "virsh {arguments:?}");
    }

    pub fn define(&self, name: &str) {
        self.define_as(name, UUID);
    }

    /// Migrates a running domain to another host while it runs, its definition with it.
    pub fn migrate(&self, name: &str, to: &Self) {
        let socket = to.dir.path().join("migration");
        let to = format!("qemu+unix:///system?socket={}", to.socket().display());
        let by = format!("unix://{}", socket.display());
        let how = ["migrate", "--live", "--persistent", "--undefinesource"];
        self.must(&[&how[..], &[name, "--desturi", &to, "--migrateuri", &by]].concat());
    }

    /// A domain with this UUID.
    pub fn define_as(&self, name: &str, uuid: &str) {
        let xml = format!(
            "<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid>\
             <memory unit='MiB'>32</memory><os><type arch='x86_64' machine='pc'>hvm</type></os>\
             <devices><emulator>/usr/bin/qemu-system-x86_64</emulator></devices></domain>"
        );
        let file = self.dir.path().join("domain.xml");
        std::fs::write(&file, xml).unwrap();
        self.must(&["define", file.to_str().unwrap()]);
    }
}

impl Drop for Libvirtd {
    fn drop(&mut self) {
        if self.child.is_some() {
            let running = self.virsh(&["list", "--name"]).unwrap_or_default();
            for name in running.lines().filter(|name| !name.is_empty()) {
                self.virsh(&["destroy", name]);
            }
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
