//! The commands that look after a database, as an administrator runs them.

use std::path::Path;
use std::time::Duration;

use sqlx::{Connection as _, SqliteConnection};

use crate::command::{Running, server, site, token};

/// How often `rotate-key` is killed, a little later each time.
const KILLS: u64 = 12;
/// How much later.
const STEP: Duration = Duration::from_millis(8);

/// A command's exit code, and what it says.
fn run(dir: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let done = server(dir).args(arguments).output().unwrap();
    let text = [done.stdout, done.stderr].concat();
    (
        done.status.code(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

fn fine(dir: &Path, arguments: &[&str]) -> String {
    let (code, text) = run(dir, arguments);
    assert_eq!(code, Some(0), "{arguments:?}: {text}");
    text
}

#[tokio::test]
async fn a_running_server_is_backed_up_and_its_site_moves() {
    let mut running = Running::start("");
    token(&running, &["--uses", "5"]);
    let dir = running.dir.path().to_owned();
    let file = dir.join("backup");
    let backup = file.to_str().unwrap();
    let said = fine(&dir, &["backup", backup]);
    assert!(said.contains("master key is not in it"), "{said}");
    // What needs the server to be stopped says so.
    for arguments in [&["rotate-key"][..], &["restore", backup]] {
        let (code, text) = run(&dir, arguments);
        assert_eq!(code, Some(3), "{arguments:?}: {text}");
        assert!(text.contains("another palisade-server"), "{text}");
    }
    running.child.kill().unwrap();
    running.child.wait().unwrap();
    fine(&dir, &["check"]);

    let new = site("");
    let (code, text) = run(new.path(), &["restore", backup]);
    assert_eq!(code, Some(3), "{text}");
    assert!(
        text.contains("master key") && text.contains("missing"),
        "{text}"
    );
    let state = |dir: &Path| dir.join("var/server");
    for name in ["master-key", "admin.token"] {
        std::fs::copy(state(&dir).join(name), state(new.path()).join(name)).unwrap();
    }
    fine(new.path(), &["restore", backup]);
    fine(new.path(), &["check"]);
    for name in ["root.key", "root.pem", "issuing.key", "issuing.pem"] {
        let of = |dir: &Path| std::fs::read(state(dir).join("ca").join(name)).unwrap();
        assert_eq!(of(new.path()), of(&dir), "{name}");
    }

    // Damage is named, with exit code 1.
    let url = format!("sqlite:{}", state(new.path()).join("palisade.db").display());
    let mut db = SqliteConnection::connect(&url).await.unwrap();
    sqlx::query("UPDATE api_tokens SET name = x'0102'")
        .execute(&mut db)
        .await
        .unwrap();
    db.close().await.unwrap();
    let (code, text) = run(new.path(), &["check"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("name of api_tokens"), "{text}");
}

/// `rotate-key` is killed at any moment: whatever it had done, the database opens.
#[test]
fn a_rotation_that_is_killed_leaves_a_database_that_opens() {
    let mut running = Running::start("");
    token(&running, &["--uses", "5"]);
    running.child.kill().unwrap();
    running.child.wait().unwrap();
    let dir = running.dir.path();
    let key = || std::fs::read(dir.join("var/server/master-key")).unwrap();
    let before = key();
    for kill in 0..KILLS {
        let mut rotating = server(dir)
            .args(["rotate-key", "--reseal"])
            .spawn()
            .unwrap();
        std::thread::sleep(STEP * u32::try_from(kill).unwrap());
        rotating.kill().unwrap();
        rotating.wait().unwrap();
        let (code, text) = run(dir, &["check"]);
        if code != Some(0) {
            // Ended just before its last step: whoever only looks does not do that.
            assert!(text.contains("has not ended"), "{text}");
            fine(dir, &["rotate-key"]);
            fine(dir, &["check"]);
        }
    }
    fine(dir, &["rotate-key", "--reseal"]);
    fine(dir, &["check"]);
    assert_ne!(key(), before);
}
