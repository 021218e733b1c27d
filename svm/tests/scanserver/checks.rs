//! What new definitions must find, and what they must not, before they are in force.

use palisade_protocol::verdict::VerdictKind;
use palisade_svm::definitions::corpus;

use crate::client::Client;
use crate::freshclam::container;
use crate::site::{Site, marker, ndb, rule};

fn eicar_ndb() -> String {
    format!(
        "Eicar-Test-Signature:0:0:{}\n",
        hex::encode(corpus::eicar())
    )
}

#[test]
fn a_vendors_set_that_does_not_find_eicar_is_refused() {
    let site = Site::new(&[("rules.yar", &rule("Some", &marker()))]);
    let _daemon = site.start();
    let refused = site.directory("refused", &[]);
    container(
        &refused,
        "daily.cud",
        1,
        &[("daily.ndb", &ndb("Other", &marker()))],
    );
    let said = site.definitions_fail(&["import", &refused]);
    assert!(said.contains("EICAR"), "{said}");
    let status = site.definitions_json(&["status"]);
    assert_eq!(status["active"], 1);

    // Whole, it is taken; and a set that is no vendor's needs no such signature.
    let whole = ndb("Other", &marker()) + &eicar_ndb();
    container(&refused, "daily.cud", 2, &[("daily.ndb", &whole)]);
    site.definitions_json(&["import", &refused]);
    let own = site.directory("own", &[("own.ndb", &ndb("Own", &marker()))]);
    site.definitions_json(&["import", &own]);
}

#[test]
fn eicar_can_be_asked_of_every_set_and_of_none() {
    let mut site = Site::new(&[("rules.yar", &rule("Some", &marker()))]);
    let keys = site.definitions.clone();
    site.definitions = format!("{keys}require_eicar = true\n");
    let (code, said) = site.start_fails();
    assert_eq!(code, 3);
    assert!(said.contains("definitions.require_eicar"), "{said}");
    site.define("eicar.ndb", &eicar_ndb());
    drop(site.start());
    site.definitions = format!("{keys}require_eicar = false\n");
    let vendors = site.directory("vendors", &[]);
    container(
        &vendors,
        "daily.cud",
        1,
        &[("daily.ndb", &ndb("X", &marker()))],
    );
    site.definitions_json(&["import", &vendors]);
}

#[tokio::test(flavor = "multi_thread")]
async fn definitions_that_find_a_clean_file_are_refused() {
    let (clean, known) = (marker(), marker());
    let mut site = Site::new(&[("rules.yar", &rule("Known", &known))]);
    let corpus = site.directory(
        "corpus/below",
        &[("needed.so", &format!("library {clean}"))],
    );
    let keys = format!(
        "poll_s = 3600\nclean_corpus = [{:?}]\n",
        site.dir.path().join("corpus")
    );
    site.definitions = keys;
    let daemon = site.start();
    site.define("bad.yar", &rule("MatchesALibrary", &clean));
    let said = site.definitions_fail(&["refresh"]);
    assert!(said.contains(&format!("{corpus}/needed.so")), "{said}");
    assert!(said.contains("MatchesALibrary, yara-x"), "{said}");
    // The same by the other engine, and within an archive.
    std::fs::remove_file(site.source().join("bad.yar")).unwrap();
    site.define("bad.ndb", &ndb("AlsoMatches", &clean));
    let said = site.definitions_fail(&["refresh"]);
    assert!(said.contains("AlsoMatches"), "{said}");
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    assert_eq!(client.kind(known.as_bytes()).await, VerdictKind::Malware);

    // The control: with the library out of the corpus, the very same are taken.
    std::fs::remove_file(format!("{corpus}/needed.so")).unwrap();
    site.definitions_json(&["refresh"]);
    assert_eq!(client.kind(clean.as_bytes()).await, VerdictKind::Malware);
}

#[test]
fn a_suspicion_about_a_clean_file_is_said_and_no_more() {
    let clean = marker();
    let mut site = Site::new(&[("rules.yar", &rule("Known", &marker()))]);
    site.directory("corpus", &[("file", &clean)]);
    site.definitions = format!("clean_corpus = [{:?}]\n", site.dir.path().join("corpus"));
    let daemon = site.start();
    let text = rule("Odd", &clean).replace("rule Odd", "rule Odd : suspicious");
    site.define("odd.yar", &text);
    site.definitions_json(&["refresh"]);
    let said = daemon.log.wait_for("suspect a clean content");
    assert!(said.contains("Odd"), "{said}");
}

/// Without any setting, what every guest needs is tried.
#[test]
fn by_default_the_machines_own_programs_are_clean() {
    let mut site = Site::new(&[("rules.yar", &rule("Known", &marker()))]);
    site.definitions = "poll_s = 3600\n".to_owned();
    let _daemon = site.start();
    // Any ELF program for this machine.
    let elf = "rule EveryProgram { condition: uint32(0) == 0x464c457f and filesize > 10KB }\n";
    site.define("elf.yar", elf);
    let said = site.definitions_fail(&["refresh"]);
    assert!(
        said.contains("EveryProgram") && said.contains("/usr/"),
        "{said}"
    );
}

#[test]
fn the_built_in_contents_are_tried_whatever_is_set() {
    let site = Site::new(&[("rules.yar", &rule("Known", &marker()))]);
    let _daemon = site.start();
    for (condition, what) in [
        ("filesize == 1", "one space"),
        ("uint32(0) == 0x464c457f", "an ELF header"),
        ("uint32(0) == 0x06054b50", "an empty zip archive"),
    ] {
        let text = format!("rule Everything {{ condition: {condition} }}\n");
        site.define("bad.yar", &text);
        let said = site.definitions_fail(&["refresh"]);
        assert!(said.contains(what), "{said}");
    }
}
