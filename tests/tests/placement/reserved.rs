//! Protection Servers that are for guests of some tags or of some tenants: others do not
//! use them, and both commands say why.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use palisade_tests::command::{self, wait_for};
use palisade_tests::definitions::Marker;
use palisade_tests::process::Process;
use palisade_tests::skip;
use serde_json::Value;

use super::common::servers::{Another, explain, with_role};
use super::common::{self, TestSite, machine};

/// A wait that only a defect exhausts.
const PATIENCE: Duration = Duration::from_secs(90);

fn role_of<'a>(svms: &'a Value, address: &str) -> &'a Value {
    let mut svms = svms.as_array().unwrap().iter();
    let is = |svm: &&Value| svm["addresses"][0] == address || svm["name"] == address;
    svms.find(is).unwrap_or(&Value::Null)
}

#[test]
fn tags_and_tenants_decide_who_may_use_which_server() {
    const NAME: &str = "tags_and_tenants_decide_who_may_use_which_server";
    if !skip::is_root(NAME) {
        return;
    }
    let domain = uuid::Uuid::new_v4().to_string();
    machine::with_smbios_uuid(&domain);
    let test = TestSite::prepare(&[("m.ndb", Marker::random().ndb())]);
    let tags = "<metadata><p:domain xmlns:p='urn:palisade:domain:1'><p:tag>gold</p:tag>\
                <p:tag>web</p:tag></p:domain></metadata>";
    let node = test.file(
        "node.xml",
        format!(
            "<node><domain type='test'><name>guest</name><uuid>{domain}</uuid>{tags}\
             <memory>65536</memory><os><type>hvm</type></os></domain></node>"
        )
        .as_bytes(),
    );
    test.set(
        "server",
        &format!(
            "libvirt = [{{ uri = 'test://{}', host = 'hv' }}]",
            node.display()
        ),
    );
    test.set("scanserver", "tags = ['gold', 'silver']");
    test.site.start().unwrap();
    let own = test.site.scan_address().unwrap();
    let blue = Another::start_with(&test, "blue", 2, "tags = ['blue']");
    let acme = Another::start_with(&test, "acme", 3, "tags = []\ntenants = ['acme']");
    let all = Another::start_with(&test, "all", 4, "tags = []");

    // In the guest: the tags are its own, and decide.
    let explained = wait_for("three servers in the list", PATIENCE, || {
        let explained = explain(&test);
        let known = explained["svms"].as_array().map_or(0, Vec::len);
        let spare = with_role(&explained, "spare");
        anyhow::ensure!(known == 3 && spare.is_some(), "{explained:#}");
        Ok(explained)
    })
    .unwrap();
    assert_eq!(explained["tags"], serde_json::json!(["gold", "web"]));
    let mut used = [
        with_role(&explained, "in-use"),
        with_role(&explained, "spare"),
    ];
    used.sort();
    let mut may = [Some(own), Some(all.address)];
    may.sort();
    assert_eq!(used, may, "{explained:#}");
    let svms = explained["svms"].as_array().unwrap();
    let excluded: Vec<&Value> = svms
        .iter()
        .filter(|svm| svm["role"] == "excluded")
        .collect();
    assert_eq!(excluded.len(), 1, "{explained:#}");
    let why = excluded[0]["why"].as_str().unwrap();
    assert!(
        why.contains("one of its tags") && why.ends_with(": blue"),
        "{why}"
    );
    let told = explained.to_string();
    assert!(
        !told.contains(&acme.address.to_string()),
        "nobody is told of other tenants' servers"
    );

    // At the console: the same, and what the guest is not told.
    let agents = test.site.console(&["agent", "list"]).unwrap();
    let name = agents[0]["name"].as_str().unwrap();
    let console = test.site.console(&["agent", "explain", name]).unwrap();
    assert_eq!(console["tags"], explained["tags"]);
    assert_eq!(console["tenant"], "default");
    let shown = |address: String| role_of(&console["svms"], &address)["role"].clone();
    let roles = [shown(own.to_string()), shown(all.address.to_string())];
    assert!(
        roles.contains(&"in-use".into()) && roles.contains(&"spare".into()),
        "{console:#}"
    );
    let unlisted = role_of_kind(&console, "unlisted");
    assert_eq!(unlisted.len(), 1, "{console:#}");
    let why = unlisted[0]["why"].as_str().unwrap();
    assert!(why.contains("other tenants"), "{why}");
    assert_eq!(role_of_kind(&console, "excluded").len(), 1, "{console:#}");

    // Whoever knows the address all the same is turned away, and says so. A server for all
    // takes the same agent.
    for (svm, taken) in [(&acme, false), (&all, true)] {
        let settings = test.other_agent(&format!("static-{taken}"));
        let text = fs::read_to_string(&settings).unwrap();
        let text = format!("svm = [{{ address = '{}' }}]\n{text}", svm.address);
        fs::write(&settings, text).unwrap();
        let agent = Running::start(&test, &settings);
        let said = wait_for("the agent's word", PATIENCE, || {
            let said = agent.explain(&test)?;
            let svm = said["svms"][0].clone();
            let settled = svm["role"] == "in-use" || svm["failure"].is_object();
            anyhow::ensure!(settled, "{said:#}");
            Ok(svm)
        })
        .unwrap();
        let refused = said["failure"]["reason"].as_str().unwrap_or_default();
        assert_eq!(said["role"] == "in-use", taken, "{said:#}");
        assert_eq!(refused.contains("tenant"), !taken, "{said:#}");
    }
    drop(blue);
}

fn role_of_kind(console: &Value, role: &str) -> Vec<Value> {
    let svms = console["svms"].as_array().unwrap().iter();
    svms.filter(|svm| svm["role"] == role).cloned().collect()
}

/// Another agent of the same machine, which protects nothing.
struct Running {
    settings: std::path::PathBuf,
    process: Process,
}

impl Running {
    fn start(test: &TestSite, settings: &std::path::Path) -> Self {
        let mut command = Command::new(command::program("palisade-agent").unwrap());
        command.arg("--site").arg(test.site.dir());
        command.arg("--config").arg(settings).arg("run");
        let folder = settings.parent().unwrap();
        let (run, log) = (folder.join("pid"), folder.join("log"));
        let process = Process::start("agent", &command, &run, &log).unwrap();
        Self {
            settings: settings.to_owned(),
            process,
        }
    }

    fn explain(&self, test: &TestSite) -> anyhow::Result<Value> {
        let config = self.settings.to_str().context("a path that is not UTF-8")?;
        let arguments = ["--config", config, "explain", "-o", "json"];
        test.site
            .run("palisade-agent", &arguments, common::SCAN)?
            .json()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
    }
}
