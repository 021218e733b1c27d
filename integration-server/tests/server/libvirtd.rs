//! The inventory through a real libvirtd that belongs to the test alone: a mount
//! namespace of its own hides the machine's configuration, state and run folders,
//! and its socket is in a temporary folder. Domains are tiny QEMU processes with
//! software emulation and no disk.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::site::{Site, until};

/// Only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);
/// The one domain that is defined.
pub const UUID: &str = "6695eb01-f6a4-8304-79aa-000000000001";

const QEMU_CONF: &str = "stdio_handler = \"file\"\nuser = \"root\"\ngroup = \"root\"\n\
    security_driver = \"none\"\ncgroup_controllers = []\nnamespaces = []\nremember_owner = 0\n";

/// A private libvirtd.
pub struct Libvirtd {
    dir: TempDir,
    child: Option<Child>,
}

impl Libvirtd {
    /// None, with the reason printed, where there is no libvirtd to run.
    pub fn start() -> Option<Self> {
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
             host_uuid_source = \"machine-id\"\n",
            dir.path().display()
        );
        std::fs::write(dir.path().join("libvirtd.conf"), conf).unwrap();
        let mut daemon = Self { dir, child: None };
        if daemon.run() {
            return Some(daemon);
        }
        println!("skipped: no private libvirtd can be run here (mount namespaces need root)");
        None
    }

    fn run(&mut self) -> bool {
        let script = "set -e; cd \"$0\"; mount --bind etc /etc/libvirt; \
            mount --bind var /var/lib/libvirt; mount --bind cache /var/cache/libvirt; \
            mount --bind run /run; exec libvirtd -f \"$0/libvirtd.conf\" -p \"$0/libvirtd.pid\"";
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        let mut child = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", script])
            .arg(self.dir.path())
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
    fn kill(&mut self) {
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
        let xml = format!(
            "<domain type='qemu'><name>{name}</name><uuid>{UUID}</uuid>\
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
            self.virsh(&["destroy", "tiny"]);
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

async fn host(site: &Site) -> Value {
    site.get("inventory").await["items"][0].clone()
}

pub async fn domain_is(site: &Site, name: &str, state: &str) {
    until(&format!("{name} is {state}"), || async {
        let host = host(site).await;
        let domain = &host["domains"][0];
        domain["name"] == name && domain["state"] == state && domain["uuid"] == UUID
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_host_is_followed_by_events_through_restarts_of_libvirtd() {
    let Some(mut daemon) = Libvirtd::start() else {
        return;
    };
    // Far longer than this test may take: what is seen is seen by events.
    let more = format!(
        "[inventory]\npoll = '1h'\n[[libvirt]]\nuri = '{}'",
        daemon.uri()
    );
    let site = Site::start(&more).await;
    until("the host is up", || async {
        host(&site).await["state"] == "up"
    })
    .await;
    assert_eq!(host(&site).await["domains"].as_array().unwrap().len(), 0);

    daemon.define("tiny");
    domain_is(&site, "tiny", "shutoff").await;
    daemon.must(&["start", "tiny"]);
    domain_is(&site, "tiny", "running").await;
    daemon.must(&["suspend", "tiny"]);
    domain_is(&site, "tiny", "paused").await;
    daemon.must(&["resume", "tiny"]);
    domain_is(&site, "tiny", "running").await;

    daemon.kill();
    until("the host is down", || async {
        host(&site).await["state"] == "down"
    })
    .await;
    let down = host(&site).await;
    assert_eq!(
        down["domains"][0]["state"], "running",
        "its last facts are kept"
    );
    assert!(down["age_s"].is_u64() && !down["error"].as_str().unwrap().is_empty());

    assert!(daemon.run());
    until("the host is up again", || async {
        host(&site).await["state"] == "up"
    })
    .await;
    domain_is(&site, "tiny", "running").await;
    daemon.must(&["destroy", "tiny"]);
    domain_is(&site, "tiny", "shutoff").await;
    daemon.must(&["undefine", "tiny"]);
    until("the domain is gone", || async {
        host(&site).await["domains"].as_array().unwrap().is_empty()
    })
    .await;
    site.server.stop().await;
}
