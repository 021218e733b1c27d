//! Malware for the quarantine, and what its commands and the reports say of it.

use std::fs::{self, File};
use std::path::Path;

use serde_json::{Value, json};

use super::world::{World, denied};
use super::{MARKER, wait_until};

pub const QUARANTINE: &str = "[remediation]\nmalware = 'quarantine'";

/// Malware that is found on no disk by chance: random bytes behind the marker.
pub struct Bad {
    pub random: [u8; 16],
    pub content: Vec<u8>,
}

impl Bad {
    pub fn new() -> Self {
        let random = *uuid::Uuid::new_v4().as_bytes();
        let content = [b"x", MARKER, &random].concat();
        Self { random, content }
    }

    /// Whether its random bytes are in any file below.
    pub fn is_readable_below(&self, folder: &Path) -> bool {
        fs::read_dir(folder).unwrap().any(|entry| {
            let path = entry.unwrap().path();
            let there = fs::symlink_metadata(&path).unwrap();
            if there.is_dir() {
                return self.is_readable_below(&path);
            }
            there.is_file()
                && fs::read(&path)
                    .unwrap()
                    .windows(self.random.len())
                    .any(|window| window == self.random)
        })
    }
}

/// A command that must end well; gives its JSON.
pub fn json_of(world: &World, args: &[&str]) -> Value {
    let output = world.agent.output(&[args, &["-o", "json"]].concat());
    assert!(
        output.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

pub fn list(world: &World) -> Value {
    json_of(world, &["quarantine", "list"])
}

/// A command that must fail; gives the exit code and what it says.
pub fn failing(world: &World, args: &[&str]) -> (i32, String) {
    let output = world.agent.output(args);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{args:?} went well");
    (output.status.code().unwrap(), text)
}

/// What was reported of a path.
pub fn reported(world: &World, path: &Path) -> Vec<Value> {
    let bytes = path.to_str().unwrap().as_bytes();
    let mut all = world.agent.spooled();
    all.retain(|found| found["path"] == json!(bytes));
    all
}

pub fn wait_reported(world: &World, path: &Path) -> Value {
    wait_until("it is reported", || !reported(world, path).is_empty());
    reported(world, path).remove(0)
}

/// Malware is opened, and moved away; gives its id.
pub fn quarantined(world: &World, path: &Path) -> String {
    assert!(denied(File::open(path)));
    assert_eq!(wait_reported(world, path)["action"], "Quarantined");
    assert!(!path.exists());
    let list = list(world);
    let item = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|item| item["path"] == path.to_str().unwrap())
        .unwrap();
    item["id"].as_str().unwrap().to_owned()
}
