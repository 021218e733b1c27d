//! The inventory through a real libvirtd.

#[path = "../support/libvirtd.rs"]
mod daemon;

use serde_json::Value;

pub use daemon::{Libvirtd, UUID};

use crate::site::{Site, until};

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

/// What the host's administrator writes into a domain reaches the guest's agent at once.
#[tokio::test(flavor = "multi_thread")]
async fn tags_of_a_domain_reach_its_agent_by_events() {
    let Some(daemon) = Libvirtd::start() else {
        return;
    };
    daemon.define("tiny");
    daemon.must(&["start", "tiny"]);
    let more = format!(
        "[inventory]\npoll = '1h'\n[[libvirt]]\nuri = '{}'",
        daemon.uri()
    );
    let site = Site::start(&more).await;
    domain_is(&site, "tiny", "running").await;
    let (_agent, mut pushes) = crate::talk::agent_in(&site, UUID.parse().unwrap()).await;
    let set = |element: &str| {
        let uri = ["metadata", "tiny", "--uri", "urn:palisade:domain:1"];
        let what = ["--key", "palisade", "--live", "--config", "--set", element];
        daemon.must(&[&uri[..], &what].concat());
    };
    let tags = async |pushes: &mut _| -> Vec<String> {
        let list = crate::talk::pushed(pushes).await;
        list.own_tags.iter().map(ToString::to_string).collect()
    };
    set("<domain><tag>web</tag><tag>dmz</tag></domain>");
    assert_eq!(tags(&mut pushes).await, ["dmz", "web"]);
    assert_eq!(
        host(&site).await["domains"][0]["tags"],
        serde_json::json!(["dmz", "web"])
    );
    // One that cannot be used is none, and is said.
    set("<domain><tag/></domain>");
    assert!(tags(&mut pushes).await.is_empty());
    set("<domain><tag>web</tag></domain>");
    assert_eq!(tags(&mut pushes).await, ["web"]);
    // They are stored: a server that cannot read the host knows them still.
    let Site { dir, server } = site;
    server.stop().await;
    drop(daemon);
    let site = Site::start_in(dir, &more).await;
    until("the host is down", || async {
        host(&site).await["state"] == "down"
    })
    .await;
    assert_eq!(
        host(&site).await["domains"][0]["tags"],
        serde_json::json!(["web"])
    );
    site.server.stop().await;
}
