//! The inventory through libvirt's test driver: one XML file is one host.

use serde_json::Value;

use crate::site::{Site, until};

async fn read(site: &Site) -> Value {
    until("every host was tried", || async {
        let inventory = site.get("inventory").await;
        inventory["items"]
            .as_array()
            .unwrap()
            .iter()
            .all(|host| host["state"] != "unknown")
    })
    .await;
    site.get("inventory").await
}

#[tokio::test]
async fn the_default_test_host_is_read() {
    let site = Site::start("[[libvirt]]\nuri = 'test:///default'").await;
    let inventory = read(&site).await;
    let host = &inventory["items"][0];
    assert_eq!(
        (&host["uri"], &host["state"]),
        (&"test:///default".into(), &"up".into())
    );
    let domain = &host["domains"][0];
    assert_eq!(
        (&domain["name"], &domain["state"]),
        (&"test".into(), &"running".into())
    );
    assert_eq!(domain["uuid"], "6695eb01-f6a4-8304-79aa-97f2502e193f");
    assert_eq!(domain["protected"], false);
}

const HOSTILE: &str = r#"<node>
  <domain type='test'>
    <name>a&quot;';--&#x1b;[2J&#x202e;&lt;b&gt;</name>
    <uuid>00000000-0000-4000-8000-000000000001</uuid>
    <memory>65536</memory>
    <os><type>hvm</type></os>
    <test:runstate xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>5</test:runstate>
  </domain>
  <domain type='test'>
    <name>sløw 虚拟机</name>
    <uuid>00000000-0000-4000-8000-000000000002</uuid>
    <memory>65536</memory>
    <os><type>hvm</type></os>
    <test:runstate xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>3</test:runstate>
  </domain>
</node>"#;

/// XML 1.0 has no escape character, so that one is tried without it as well.
#[tokio::test]
async fn hostile_and_foreign_names_are_carried_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("node.xml");
    std::fs::write(&file, HOSTILE.replace("&#x1b;", "")).unwrap();
    let broken = dir.path().join("broken.xml");
    std::fs::write(&broken, HOSTILE).unwrap();
    let more = format!(
        "[[libvirt]]\nuri = 'test://{}'\nhost = 'hv1'\n[[libvirt]]\nuri = 'test://{}'\n\
         [[libvirt]]\nuri = 'test:///no/such/file.xml'",
        file.display(),
        broken.display()
    );
    let site = Site::start(&more).await;
    let inventory = read(&site).await;
    let host = |uri: &str| {
        let items = inventory["items"].as_array().unwrap();
        items
            .iter()
            .find(|host| host["uri"].as_str().unwrap().ends_with(uri))
            .unwrap()
            .clone()
    };
    let good = host("node.xml");
    assert_eq!(
        (&good["host"], &good["state"]),
        (&"hv1".into(), &"up".into())
    );
    let names: Vec<&str> = good["domains"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| d["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["a\"';--[2J\u{202e}<b>", "sløw 虚拟机"]);
    assert_eq!(good["domains"][0]["state"], "shutoff");
    assert_eq!(good["domains"][1]["state"], "paused");
    for bad in [host("broken.xml"), host("file.xml")] {
        assert_eq!(bad["state"], "down");
        assert!(!bad["error"].as_str().unwrap().is_empty());
        assert_eq!(bad["domains"].as_array().unwrap().len(), 0);
    }
    assert_eq!(site.get("status").await["hosts"]["up"], 1);
}

#[tokio::test]
async fn what_was_known_survives_a_restart_and_goes_with_its_source() {
    let source = "[[libvirt]]\nuri = 'test:///default'";
    let site = Site::start(source).await;
    read(&site).await;
    until("the inventory is stored", || async {
        !site.server.fleet().store.hosts().await.unwrap().is_empty()
    })
    .await;
    let Site { dir, server } = site;
    server.stop().await;
    let site = Site::start_in(dir, "").await;
    assert!(
        site.get("inventory").await["items"]
            .as_array()
            .unwrap()
            .is_empty()
    );
    assert!(site.server.fleet().store.hosts().await.unwrap().is_empty());
}
