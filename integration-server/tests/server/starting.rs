//! First start, later starts, and starts that must not succeed.

use std::os::unix::fs::PermissionsExt as _;

use palisade_integration_server::server::Server;

use crate::site::{Site, common, settings};

fn mode(path: &std::path::Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

async fn refused(dir: &std::path::Path, more: &str) -> String {
    let error = Server::start(settings(more), &common(dir))
        .await
        .unwrap_err();
    format!("{error:#}")
}

#[tokio::test]
async fn a_first_start_makes_secrets_that_only_its_user_can_read() {
    let site = Site::start("").await;
    assert_eq!(mode(&site.state()), 0o700);
    for file in ["admin.token", "master-key", "ca/root.key", "ca/issuing.key"] {
        assert_eq!(mode(&site.state().join(file)), 0o600, "{file}");
    }
    let token = site.admin_token();
    assert!(token.starts_with("pa1."));
    let database = std::fs::read(site.state().join("palisade.db")).unwrap();
    let log = std::fs::read(site.state().join("palisade.db-wal")).unwrap_or_default();
    let stored = [database, log].concat();
    assert!(
        !stored
            .windows(token.len())
            .any(|bytes| bytes == token.as_bytes())
    );
}

#[tokio::test]
async fn a_second_start_is_the_same_site() {
    let site = Site::start("").await;
    let (token, root) = (site.admin_token(), site.target().root);
    let Site { dir, server } = site;
    server.stop().await;
    let again = Site::start_in(dir, "").await;
    assert_eq!(again.admin_token(), token);
    assert_eq!(again.target().root, root);
    assert!(again.get("status").await["deployment"] == "palisade");
}

#[tokio::test]
async fn one_state_folder_serves_one_server() {
    let site = Site::start("").await;
    let error = refused(site.dir.path(), "").await;
    assert!(error.contains("another palisade-server"), "{error}");
}

#[tokio::test]
async fn the_deployment_is_fixed_at_first_start() {
    let Site { dir, server } = Site::start("deployment = 'first'").await;
    server.stop().await;
    let error = refused(dir.path(), "deployment = 'second'").await;
    assert!(
        error.contains("\"first\"") && error.contains("\"second\""),
        "{error}"
    );
}

#[tokio::test]
async fn damage_is_named_and_nothing_is_made_anew_over_it() {
    let Site { dir, server } = Site::start("").await;
    server.stop().await;
    let state = dir.path().join("var/server");

    let key = state.join("ca/root.key");
    let good = std::fs::read(&key).unwrap();
    std::fs::remove_file(&key).unwrap();
    let error = refused(dir.path(), "").await;
    assert!(
        error.contains("root.key") && error.contains("backup"),
        "{error}"
    );
    assert!(!key.exists());
    std::fs::write(&key, b"nonsense").unwrap();
    assert!(refused(dir.path(), "").await.contains("root.key"));
    std::fs::copy(state.join("ca/issuing.key"), &key).unwrap();
    assert!(
        refused(dir.path(), "")
            .await
            .contains("not the key of root.pem")
    );
    std::fs::write(&key, good).unwrap();

    let database = state.join("palisade.db");
    std::fs::write(&database, vec![b'x'; 8192]).unwrap();
    let error = refused(dir.path(), "").await;
    assert!(
        error.contains("damaged") && error.contains("palisade.db"),
        "{error}"
    );
    assert_eq!(std::fs::read(&database).unwrap(), vec![b'x'; 8192]);
}

#[tokio::test]
async fn a_taken_address_is_named() {
    let site = Site::start("").await;
    let other = tempfile::tempdir().unwrap();
    let mut taken = settings("");
    taken.listen_api = site.server.api_address();
    let error = Server::start(taken, &common(other.path()))
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains(&site.server.api_address().to_string()),
        "{error}"
    );
    let mut taken = settings("");
    taken.listen_control = site.control();
    let other = tempfile::tempdir().unwrap();
    let error = Server::start(taken, &common(other.path()))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains(&site.control().to_string()),
        "{error}"
    );
}

#[tokio::test]
async fn a_database_folder_that_cannot_be_made_is_named() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), b"").unwrap();
    let inside = dir.path().join("file/db/palisade.db");
    let error = refused(
        dir.path(),
        &format!("database = 'sqlite:{}'", inside.display()),
    )
    .await;
    assert!(
        error.contains("file/db") && error.contains("create it"),
        "{error}"
    );
}
