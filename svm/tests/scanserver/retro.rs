//! Who is told that a content, which was called clean, is malware by newer definitions:
//! here, when somebody asks for it again.

use std::time::Duration;

use palisade_protocol::content::ContentId;
use palisade_protocol::frame;
use palisade_protocol::notice::Notice;
use palisade_protocol::verdict::VerdictKind;

use crate::client::{Cable, Client, unique};
use crate::measured::{read, sum};
use crate::site::{PATIENCE, Site, marker, ndb, rule, wait_until};

/// What is kept is not looked at unasked, and the brake, which counts holders, is off.
const ASKED_FOR: &str = "[retroactive]\nrescan = false\nbrake_guests = 0\n";

/// The next notice.
pub async fn notice(client: &Client) -> Vec<ContentId> {
    let heard = tokio::time::timeout(PATIENCE, async {
        let mut stream = client.connection.accept_uni().await.unwrap();
        let notice: Notice = frame::read(&mut stream).await.unwrap().unwrap();
        assert_eq!(frame::read::<Notice>(&mut stream).await.unwrap(), None);
        notice
    });
    heard.await.unwrap().contents.into_vec()
}

/// Whether a notice comes within a moment.
pub async fn is_told(client: &Client) -> bool {
    let moment = Duration::from_millis(300);
    let opened = tokio::time::timeout(moment, client.connection.accept_uni()).await;
    opened.is_ok_and(|stream| stream.is_ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_holder_of_a_content_that_turned_bad_is_told_and_nobody_else() {
    let known = marker();
    let mut site = Site::new(&[("rules.yar", &rule("Other", &marker()))]);
    site.settings = ASKED_FOR.to_owned();
    let daemon = site.start();
    let [one, two, away, third, stranger, later] =
        ["a", "a", "a", "a", "b", "a"].map(|tenant| site.ca.agent(&format!("tenant-{tenant}")));
    let connect = async |identity| Client::connect(&daemon, identity).await;
    let bad = [unique(1000).as_slice(), known.as_bytes()].concat();
    let harmless = unique(2000);
    let id = ContentId::of(&bad);

    // One scanned it, two had its answer from the cache, and one of these is gone.
    let (one_client, two_client) = (connect(&one).await, connect(&two).await);
    let away_client = connect(&away).await;
    for client in [&one_client, &two_client, &away_client] {
        assert_eq!(client.kind(&bad).await, VerdictKind::Clean);
        assert_eq!(client.kind(&harmless).await, VerdictKind::Clean);
    }
    drop(away_client);
    let third_client = connect(&third).await;
    assert_eq!(third_client.kind(&harmless).await, VerdictKind::Clean);
    let stranger_client = connect(&stranger).await;
    assert_eq!(stranger_client.kind(&bad).await, VerdictKind::Clean);

    let dir = site.directory("next", &[("rules.yar", &rule("Known", &known))]);
    site.definitions_json(&["import", &dir]);
    // Without re-scans, new definitions say nothing of a content that nobody shows.
    assert!(!is_told(&one_client).await);

    let later_client = connect(&later).await;
    assert_eq!(later_client.kind(&bad).await, VerdictKind::Malware);
    assert_eq!(later_client.kind(&harmless).await, VerdictKind::Clean);
    assert_eq!(notice(&one_client).await, [id]);
    assert_eq!(notice(&two_client).await, [id]);
    // Told is who has it for certain: a session that ended before that is told again.
    let back = connect(&away).await;
    assert_eq!(notice(&back).await, [id]);
    assert!(!is_told(&back).await);
    // Not: who holds what stayed clean, who has it from today on, and another tenant.
    for client in [&third_client, &later_client, &stranger_client] {
        assert!(!is_told(client).await);
    }
    // Nor is anybody told twice.
    assert_eq!(one_client.kind(&bad).await, VerdictKind::Malware);
    assert!(!is_told(&one_client).await);
    assert!(!is_told(&connect(&away).await).await);

    // The other tenant is told when its own content is seen again.
    let own = site.ca.agent("tenant-b");
    assert_eq!(connect(&own).await.kind(&bad).await, VerdictKind::Malware);
    assert_eq!(notice(&stranger_client).await, [id]);
}

/// A guest that is reset says no word, and is back before its old session is known to be
/// dead: what that had on its way is told to the new one.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_session_was_told_last_is_told_to_the_next_one() {
    let known = marker();
    let mut site = Site::new(&[("rules.yar", &rule("Other", &marker()))]);
    site.settings = ASKED_FOR.to_owned();
    let daemon = site.start();
    let (guest, other) = (site.ca.agent("default"), site.ca.agent("default"));
    let cable = Cable::to(daemon.address).await;
    let before = Client::connect_at(cable.address, &guest).await;
    let bad = [unique(1000).as_slice(), known.as_bytes()].concat();
    assert_eq!(before.kind(&bad).await, VerdictKind::Clean);
    cable.cut();

    let dir = site.directory("next", &[("rules.yar", &rule("Known", &known))]);
    site.definitions_json(&["import", &dir]);
    let other = Client::connect(&daemon, &other).await;
    assert_eq!(other.kind(&bad).await, VerdictKind::Malware);
    // The old session has it by now, and nobody there.
    let after = Client::connect(&daemon, &guest).await;
    assert!(!is_told(&after).await);
    assert_eq!(notice(&after).await, [ContentId::of(&bad)]);
}

/// An agent that takes no notices holds up nobody, and is served as before.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_takes_no_notice_is_served_all_the_same() {
    let known = marker();
    let site = Site::new(&[("rules.yar", &rule("Other", &marker()))]);
    let daemon = site.start();
    let identity = site.ca.agent("default");
    let deaf = Client::connect(&daemon, &identity).await;
    let hearing = Client::connect(&daemon, &site.ca.agent("default")).await;
    let contents: Vec<Vec<u8>> = (0..10)
        .map(|_| [unique(500).as_slice(), known.as_bytes()].concat())
        .collect();
    for content in &contents {
        assert_eq!(deaf.kind(content).await, VerdictKind::Clean);
        assert_eq!(hearing.kind(content).await, VerdictKind::Clean);
    }
    let dir = site.directory("next", &[("rules.yar", &rule("Known", &known))]);
    site.definitions_json(&["import", &dir]);
    let other = Client::connect(&daemon, &site.ca.agent("default")).await;
    let mut told = Vec::new();
    for content in &contents {
        assert_eq!(other.kind(content).await, VerdictKind::Malware);
    }
    while told.len() < contents.len() {
        told.extend(notice(&hearing).await);
    }
    let mut wanted: Vec<ContentId> = contents.iter().map(|one| ContentId::of(one)).collect();
    told.sort();
    wanted.sort();
    assert_eq!(told, wanted);
    assert_eq!(deaf.kind(&unique(300)).await, VerdictKind::Clean);
    assert_eq!(deaf.kind(&contents[0]).await, VerdictKind::Malware);
}

/// A command's session is the same agent's, hears nothing, and must not take what the
/// agent itself is to be told.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_takes_no_notices_takes_none_away() {
    let known = marker();
    let mut site = Site::new(&[("rules.yar", &rule("Other", &marker()))]);
    site.settings = ASKED_FOR.to_owned() + "[metrics]\nlisten = '127.0.0.1:0'\n";
    let daemon = site.start();
    let identity = site.ca.agent("default");
    let agent = Client::connect(&daemon, &identity).await;
    assert_eq!(agent.kind(known.as_bytes()).await, VerdictKind::Clean);
    agent.connection.close(0_u32.into(), b"");
    let dir = site.directory("next", &[("rules.yar", &rule("Known", &known))]);
    site.definitions_json(&["import", &dir]);

    let command = Client::connect_deaf(&daemon, &identity).await;
    let other = Client::connect(&daemon, &site.ca.agent("default")).await;
    assert_eq!(other.kind(known.as_bytes()).await, VerdictKind::Malware);
    assert!(!is_told(&command).await);
    let waiting = |daemon: &_| sum(&read(daemon), "palisade_svm_notices_waiting");
    assert_eq!(waiting(&daemon), 1.0);
    let agent = Client::connect(&daemon, &identity).await;
    assert_eq!(notice(&agent).await, [ContentId::of(known.as_bytes())]);
    assert_eq!(waiting(&daemon), 0.0);
}

/// With nothing remembered, nobody is told.
#[tokio::test(flavor = "multi_thread")]
async fn it_can_be_switched_off() {
    let known = marker();
    let mut site = Site::new(&[("rules.yar", &rule("Other", &marker()))]);
    site.settings = "[retroactive]\ncontents = 0\n".to_owned();
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    assert_eq!(client.kind(known.as_bytes()).await, VerdictKind::Clean);
    let dir = site.directory("next", &[("rules.yar", &rule("Known", &known))]);
    site.definitions_json(&["import", &dir]);
    let other = Client::connect(&daemon, &site.ca.agent("default")).await;
    assert_eq!(other.kind(known.as_bytes()).await, VerdictKind::Malware);
    assert!(!is_told(&client).await);
}

/// A new signature that hits what every guest has: the first five are blocked, all
/// others are told of a suspicion, until somebody says that it is right.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_signature_that_hits_many_guests_is_reported_only() {
    let [old, new] = [marker(), marker()];
    let rules = rule("Old", &old);
    let site = Site::new(&[("rules.yar", &rules)]);
    let daemon = site.start();
    site.define("rules.yar", &(rules + &rule("New", &new)));
    site.definitions_json(&["refresh"]);
    let guests: Vec<_> = (0..8).map(|_| site.ca.agent("default")).collect();
    let ask = async |daemon: &crate::site::Daemon, marker: &str| {
        let mut kinds = Vec::new();
        for guest in &guests {
            let client = Client::connect(daemon, guest).await;
            kinds.push(client.kind(marker.as_bytes()).await);
        }
        kinds
    };
    let kinds = ask(&daemon, &new).await;
    assert_eq!(kinds[..5], [VerdictKind::Malware; 5]);
    assert_eq!(kinds[5..], [VerdictKind::Suspicious; 3]);
    assert!(daemon.log.has("until it is confirmed"));
    let status = site.definitions_json(&["status"]);
    assert_eq!(
        (&status["braked"][0]["name"], &status["braked"][0]["engine"]),
        (&"New".into(), &"yara-x".into())
    );

    // What it is written by may still be on its way, and the daemon is killed.
    let kept = site.state().join("brake.json");
    wait_until("what is braked is written", || {
        std::fs::read_to_string(&kept).is_ok_and(|text| text.contains("New"))
    });
    // A restart changes nothing about it, and neither do others' looks.
    drop(daemon);
    let daemon = site.start();
    assert_eq!(ask(&daemon, &new).await, [VerdictKind::Suspicious; 8]);
    let said = site.definitions_fail(&["confirm", "Another"]);
    assert!(said.contains("Another"), "{said}");
    site.definitions_json(&["confirm", "New"]);
    assert_eq!(ask(&daemon, &new).await, [VerdictKind::Malware; 8]);
    let status = site.definitions_json(&["status"]);
    assert!(status["braked"].as_array().unwrap().is_empty());
}

/// The first definitions that a Protection Server ever had are not new, and with the
/// brake off nothing is.
#[tokio::test(flavor = "multi_thread")]
async fn an_outbreak_of_what_is_known_is_not_braked() {
    let [old, new] = [marker(), marker()];
    let mut site = Site::new(&[("rules.yar", &rule("Old", &old))]);
    let daemon = site.start();
    hit(&daemon, &site, &old).await;
    drop(daemon);
    site.settings = "[retroactive]\nbrake_guests = 0\n".to_owned();
    let daemon = site.start();
    site.define("rules.yar", &rule("New", &new));
    site.definitions_json(&["refresh"]);
    hit(&daemon, &site, &new).await;
}

/// New is a signature, not the set that it comes with: sets are new every day, and what
/// spreads with an old signature is to be stopped on that day, too.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_signature_in_new_definitions_is_not_braked() {
    let [yara, clam, packed] = [marker(), marker(), marker()];
    let mut site = Site::new(&[
        ("rules.yar", &rule("Old", &yara)),
        ("some.ndb", &ndb("Old.Line", &clam)),
        (
            "some.ldb",
            &format!(
                "Old.Logic;Engine:51-255,Target:0;0;{}\n",
                hex::encode(&packed)
            ),
        ),
    ]);
    let daemon = site.start();
    site.define(
        "rules.yar",
        &(rule("Other", &marker()) + &rule("Old", &yara)),
    );
    site.define(
        "some.ndb",
        &(ndb("A.New.Line", &marker()) + &ndb("Old.Line", &clam)),
    );
    site.definitions_json(&["refresh"]);
    for known in [&yara, &clam, &packed] {
        hit(&daemon, &site, known).await;
    }
    // Nor does another setting make one new.
    drop(daemon);
    site.settings = "[engines.clamav]\nmax_recursion = 16\n".to_owned();
    let daemon = site.start();
    for known in [&yara, &clam] {
        hit(&daemon, &site, known).await;
    }
    // What was edited is new, whatever it is called.
    let edited = marker();
    site.define("some.ndb", &ndb("Old.Line", &edited));
    site.definitions_json(&["refresh"]);
    let mut kinds = Vec::new();
    for _ in 0..8 {
        let client = Client::connect(&daemon, &site.ca.agent("default")).await;
        kinds.push(client.kind(edited.as_bytes()).await);
    }
    assert_eq!(kinds[..5], [VerdictKind::Malware; 5]);
    assert_eq!(kinds[5..], [VerdictKind::Suspicious; 3]);
}

/// Those who were blocked before the brake held remember that: they are told to ask again,
/// and hear a suspicion.
#[tokio::test(flavor = "multi_thread")]
async fn who_was_blocked_before_the_brake_held_is_told_to_ask_again() {
    let bad = marker();
    let site = Site::new(&[("rules.yar", &rule("Old", &marker()))]);
    let daemon = site.start();
    site.define("rules.yar", &rule("New", &bad));
    site.definitions_json(&["refresh"]);
    let own = |n: usize| [bad.as_bytes(), &[b' ', b'a' + n as u8]].concat();
    let mut guests = Vec::new();
    for n in 0..5 {
        let guest = Client::connect(&daemon, &site.ca.agent("default")).await;
        assert_eq!(guest.kind(&own(n)).await, VerdictKind::Malware);
        guests.push(guest);
    }
    assert!(!is_told(&guests[0]).await);
    let sixth = Client::connect(&daemon, &site.ca.agent("default")).await;
    assert_eq!(sixth.kind(bad.as_bytes()).await, VerdictKind::Suspicious);
    for (n, guest) in guests.iter().enumerate() {
        assert_eq!(notice(guest).await, [ContentId::of(&own(n))]);
        assert_eq!(guest.kind(&own(n)).await, VerdictKind::Suspicious);
    }
}

/// Guests of one tenant must not switch a signature off for another, nor be learnt of.
#[tokio::test(flavor = "multi_thread")]
async fn a_signature_is_braked_for_the_tenant_whose_guests_it_hits() {
    let new = marker();
    let site = Site::new(&[("rules.yar", &rule("Old", &marker()))]);
    let daemon = site.start();
    site.define("rules.yar", &rule("New", &new));
    site.definitions_json(&["refresh"]);
    let ask = async |tenant: &str| {
        let client = Client::connect(&daemon, &site.ca.agent(tenant)).await;
        client.kind(new.as_bytes()).await
    };
    for n in 0..8 {
        let kind = ask("tenant-a").await;
        assert_eq!(kind == VerdictKind::Suspicious, n >= 5, "{n}");
    }
    assert_eq!(ask("tenant-b").await, VerdictKind::Malware);
}

/// Eight guests are all blocked.
async fn hit(daemon: &crate::site::Daemon, site: &Site, marker: &str) {
    for _ in 0..8 {
        let client = Client::connect(daemon, &site.ca.agent("default")).await;
        assert_eq!(client.kind(marker.as_bytes()).await, VerdictKind::Malware);
    }
}
