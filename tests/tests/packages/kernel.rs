//! The packaged program on Debian 12's own kernel (6.1), in a guest by emulation: what
//! newer kernels do differently is tried there, against a Protection Server on this machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use palisade_tests::command;
use palisade_tests::definitions::Marker;
use palisade_tests::skip;
use serde_json::Value;

use crate::built::{Packages, repository, said, tool};
use crate::life::servers;

/// Always the newest of the distribution.
const PACKAGE: &str = "linux-image-cloud-amd64";
/// What the guest says and does, in `guest.sh`.
const INIT: &str = include_str!("guest.sh");
/// Where this machine is, as the guest sees it.
const HOST: &str = "10.0.2.2";
/// How long all of it may take: a processor is emulated.
const GUEST: Duration = Duration::from_secs(600);
/// How long the kernel's package may take to come.
const FETCH: Duration = Duration::from_secs(300);
/// Longer than the supervisor waits for a stalled agent that was idle, in emulation.
const STALL_ENDS_WITHIN_S: u64 = 30;
/// What `guest.sh` loads.
const MODULES: &[&str] = &[
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "net/core/failover.ko",
    "drivers/net/net_failover.ko",
    "drivers/net/virtio_net.ko",
    "fs/overlayfs/overlay.ko",
];

/// The kernel's package, as the system's lists of packages have it.
fn listed() -> Option<String> {
    let dependencies = tool("apt-cache", ["depends", PACKAGE]);
    let dependencies = String::from_utf8(dependencies.stdout).unwrap();
    let mut words = dependencies.split_whitespace();
    let name = words.find(|word| word.starts_with("linux-image-6.1"))?;
    Some(name.to_owned())
}

/// The unpacked package of the kernel; fetched if it is not there.
fn kernel() -> PathBuf {
    let name = listed().or_else(|| {
        // A machine that had all it needs may have no lists.
        let mut update = Command::new("apt-get");
        update.args(["-qq", "update"]);
        command::finish(update, FETCH)
            .unwrap()
            .expect(&[0])
            .unwrap();
        listed()
    });
    let name = name.expect("a kernel 6.1 among the packages of Debian 12");
    let folder = repository().join("target/package-roots").join(&name);
    if folder.exists() {
        return folder;
    }
    let own = tempfile::tempdir_in(repository().join("target")).unwrap();
    let mut fetch = Command::new("apt-get");
    fetch
        .args(["-q", "-o", "APT::Sandbox::User=root", "download", &name])
        .current_dir(own.path());
    command::finish(fetch, FETCH).unwrap().expect(&[0]).unwrap();
    let files = fs::read_dir(own.path()).unwrap();
    let deb = files.map(|file| file.unwrap().path()).next().unwrap();
    let unpacked = own.path().join("unpacked");
    said(
        "dpkg-deb",
        ["-x".as_ref(), deb.as_os_str(), unpacked.as_os_str()],
    );
    fs::create_dir_all(folder.parent().unwrap()).unwrap();
    // Two tests may make it at once: the first one's is it.
    let _ = fs::rename(&unpacked, &folder);
    folder
}

/// The one file or folder of a folder whose name begins so.
fn only(folder: &Path, begins: &str) -> PathBuf {
    let mut files = fs::read_dir(folder).unwrap().map(|file| file.unwrap());
    let found = files.find(|file| file.file_name().to_string_lossy().starts_with(begins));
    found.unwrap().path()
}

/// What the guest said.
struct Said {
    results: BTreeMap<String, String>,
    status: Value,
    all: String,
}

impl Said {
    fn of(console: String) -> Self {
        let lines = || console.lines().map(|line| line.trim_end_matches('\r'));
        let results = lines().filter_map(|line| line.strip_prefix("RESULT ")?.split_once(' '));
        let results = results.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let status = lines().find_map(|line| line.strip_prefix("STATUS "));
        Self {
            results: results.collect(),
            status: status
                .and_then(|status| serde_json::from_str(status).ok())
                .unwrap_or_default(),
            all: console,
        }
    }

    fn result(&self, name: &str) -> &str {
        let result = self.results.get(name);
        result.unwrap_or_else(|| panic!("nothing of {name}: {}", self.all))
    }
}

/// Boots the kernel with a first process and files; gives what it says on its console.
fn boot(files: &Path, kernel: &Path) -> Said {
    let initrd = files.with_extension("cpio");
    let pack = "cd \"$1\" && find . | busybox cpio --quiet -o -H newc >\"$2\"";
    said(
        "sh",
        [
            "-ec".as_ref(),
            pack.as_ref(),
            "sh".as_ref(),
            files.as_os_str(),
            initrd.as_os_str(),
        ],
    );
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args([
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "max",
        "-smp",
        "2",
        "-m",
        "1024",
    ])
    .args([
        "-nodefaults",
        "-display",
        "none",
        "-serial",
        "stdio",
        "-no-reboot",
    ])
    .args([
        "-netdev",
        "user,id=net",
        "-device",
        "virtio-net-pci,netdev=net,romfile=",
    ])
    .arg("-kernel")
    .arg(only(&kernel.join("boot"), "vmlinuz-"))
    .arg("-initrd")
    .arg(&initrd)
    .args(["-append", "console=ttyS0 quiet panic=-1 rdinit=/init"]);
    let ended = command::finish(qemu, GUEST).unwrap().expect(&[0]).unwrap();
    Said::of(String::from_utf8_lossy(&ended.stdout).into_owned())
}

#[test]
fn the_agent_protects_on_debian_12s_own_kernel() {
    let test = "the_agent_protects_on_debian_12s_own_kernel";
    if !skip::is_root(test) {
        return;
    }
    let kernel = kernel();
    let packages = Packages::build();
    let marker = Marker::random();
    let site = servers(&marker);
    let folder = tempfile::tempdir_in(repository().join("target")).unwrap();
    let files = folder.path().join("files");
    for at in ["bin", "dev", "modules", "proc", "site/etc", "sys"] {
        fs::create_dir_all(files.join(at)).unwrap();
    }
    fs::copy("/bin/busybox", files.join("bin/busybox")).unwrap();
    fs::copy(packages.agent(), files.join("bin/palisade-agent")).unwrap();
    fs::write(files.join("init"), INIT).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(files.join("init"), executable).unwrap();
    fs::write(files.join("malware"), &marker.bytes).unwrap();
    let modules = only(&kernel.join("lib/modules"), "6.1").join("kernel");
    for module in MODULES {
        let name = Path::new(module).file_name().unwrap();
        fs::copy(modules.join(module), files.join("modules").join(name)).unwrap();
    }
    // It joins here, and finds the Protection Server by its settings there.
    let port = site.site.scan_address().unwrap().port();
    let settings = format!(
        "[on_access]\npaths = ['/home']\ndeadline_ms = 20000\n[[svm]]\naddress = '{HOST}:{port}'\n"
    );
    fs::write(files.join("site/etc/agent.toml"), settings).unwrap();
    let token = site.site.join_token("agent").unwrap();
    let own = files.join("site");
    let enrol = [
        "--site".as_ref(),
        own.as_os_str(),
        "enrol".as_ref(),
        token.as_ref(),
    ];
    let agent = command::program("palisade-agent").unwrap();
    command::run(&agent, enrol, GUEST)
        .unwrap()
        .expect(&[0])
        .unwrap();

    let said = boot(&files, &kernel);
    println!("{:#?}", said.results);
    assert!(said.result("kernel").starts_with("6.1."), "{}", said.all);
    for (name, value) in [
        ("protection", "blocking"),
        ("malware", "denied"),
        ("clean", "read"),
        ("clean-program", "ran"),
        ("bad-program", "denied"),
        ("device", "read"),
        ("malware-beside-a-device", "denied"),
        ("overlay", "denied"),
        ("overlay-clean", "read"),
        ("overlays-layer", "denied"),
        ("namespace", "denied"),
        ("namespace-clean", "read"),
        ("many", "200"),
        ("protection-again", "blocking"),
        ("malware-again", "denied"),
        ("end", "0"),
    ] {
        assert_eq!(said.result(name), value, "{name}: {}", said.all);
    }
    let stalled: u64 = said.result("stalled-for").parse().unwrap();
    assert!(stalled <= STALL_ENDS_WITHIN_S, "{stalled} s");
    let events = &said.status["events"];
    let sum: u64 = [
        "scanned",
        "cached",
        "allowed_by_policy",
        "failed_open",
        "failed_closed",
    ]
    .iter()
    .map(|key| events[key].as_u64().unwrap())
    .sum();
    let pending = events["pending"].as_u64().unwrap();
    assert_eq!(events["seen"].as_u64().unwrap(), sum + pending, "{events}");
    assert_eq!(
        (&events["failed_open"], &events["failed_closed"]),
        (&0.into(), &0.into())
    );
}
