//! `palisade-agent support-bundle` as a process: what is in it, and that no secret is.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic in a test is a failed test with a place in it"
)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use support::agent::Agent;
use support::site::Site;
use support::svm::Svm;
use support::wait_until;

/// Larger than it may be, in bytes.
const TOO_LARGE: u64 = 8 << 20;

fn unpacked(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let file = fs::File::open(path).unwrap();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(file));
    let mut all = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        all.insert(name, bytes);
    }
    all
}

fn holds(bytes: &[u8], secret: &[u8]) -> bool {
    bytes.windows(secret.len()).any(|window| window == secret)
}

fn is_below(folder: &Path, secret: &[u8]) -> bool {
    fs::read_dir(folder).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => is_below(&path, secret),
            false => fs::read(&path).is_ok_and(|bytes| holds(&bytes, secret)),
        }
    })
}

fn random() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

fn bundle(agent: &Agent, name: &str) -> BTreeMap<String, Vec<u8>> {
    let out = agent.dir.path().join(name);
    let done = agent.output(&["support-bundle", "--out", out.to_str().unwrap()]);
    assert!(done.status.success(), "{done:?}");
    let found = fs::metadata(&out).unwrap();
    assert_eq!(found.permissions().mode() & 0o777, 0o600);
    assert!(found.len() < TOO_LARGE);
    let all = unpacked(&out);
    fs::remove_file(&out).unwrap();
    all
}

#[test]
fn no_secret_of_settings_or_state_is_in_it() {
    let site = Site::new();
    let svm = Svm::start(&site);
    let mut agent = Agent::new(&site, "");
    let dir = agent.dir.path().to_owned();
    let [comment, unknown, token, broken, content] = [0; 5].map(|_| random());
    let token_file = dir.join("etc/join-token");
    fs::write(&token_file, format!("pj1.{token}")).unwrap();
    let settings = format!(
        "# {comment}\njoin_token_file = '{}'\n[on_access]\npaths = ['/no/such/place']\n\
         [[svm]]\naddress = '{}'\n",
        token_file.display(),
        svm.address
    );
    fs::write(dir.join("etc/agent.toml"), &settings).unwrap();
    fs::write(dir.join("secret-file"), &content).unwrap();
    let quarantine: [u8; 32] = rand::random();
    fs::write(agent.state().join("quarantine.key"), quarantine).unwrap();
    let key = fs::read_to_string(agent.state().join("identity/key.pem")).unwrap();
    let key_line = key.lines().nth(1).unwrap().to_owned();
    agent.run();
    wait_until("it is connected", || {
        agent.status()["svm"]["id"].is_string()
    });

    let mut all = bundle(&agent, "a.tar.gz");
    // Settings that are not in force, with what nobody knows, and with what is no TOML.
    let bad = format!("{settings}\n[extra]\npassword = '{unknown}'\n");
    fs::write(dir.join("etc/agent.toml"), bad).unwrap();
    fs::create_dir(dir.join("etc/agent.conf.d")).unwrap();
    let drop_in = dir.join("etc/agent.conf.d/x.toml");
    fs::write(&drop_in, format!("name = {broken}!\n")).unwrap();
    for (name, bytes) in bundle(&agent, "b.tar.gz") {
        all.insert(format!("again/{name}"), bytes);
    }

    for secret in [
        comment.as_bytes(),
        unknown.as_bytes(),
        token.as_bytes(),
        broken.as_bytes(),
        content.as_bytes(),
        key_line.as_bytes(),
        &quarantine,
        hex::encode(quarantine).as_bytes(),
    ] {
        for (name, bytes) in &all {
            assert!(!holds(bytes, secret), "{name} holds a secret");
        }
    }
    // The control: each is there to be taken.
    for secret in [&comment, &unknown, &token, &broken, &content, &key_line] {
        assert!(is_below(&dir, secret.as_bytes()), "{secret}");
    }
    assert!(is_below(&dir, &quarantine));

    // And what helps is in it.
    let text = |name: &str| String::from_utf8_lossy(&all[name]).into_owned();
    for (name, holds) in [
        ("palisade-agent/README", "support bundle"),
        ("palisade-agent/doctor.json", "\"findings\""),
        ("palisade-agent/status.json", &svm.address.to_string()),
        ("palisade-agent/settings.toml", "/no/such/place"),
        ("palisade-agent/machine.txt", "Linux version"),
        ("palisade-agent/mounts.txt", " /proc "),
        ("palisade-agent/state.txt", "quarantine.key 32 bytes"),
        ("again/palisade-agent/doctor.json", "\"settings\""),
        ("again/palisade-agent/settings.toml", "is not TOML: line 1"),
    ] {
        assert!(text(name).contains(holds), "{name}: {}", text(name));
    }
}

#[test]
fn it_is_made_without_an_agent_and_overwrites_nothing() {
    let agent = Agent::new(&Site::new(), "");
    let all = bundle(&agent, "a.tar.gz");
    let status = String::from_utf8_lossy(&all["palisade-agent/status.json"]).into_owned();
    assert!(status.contains("no agent answers"), "{status}");
    let out = agent.dir.path().join("there");
    fs::write(&out, "mine").unwrap();
    let done = agent.output(&["support-bundle", "--out", out.to_str().unwrap()]);
    assert!(!done.status.success());
    assert_eq!(fs::read_to_string(&out).unwrap(), "mine");
}
