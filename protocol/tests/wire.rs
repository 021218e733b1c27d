//! The bytes of each message are pinned; what is too long, cut short, followed by
//! more, or unknown is refused; nothing a peer sends panics.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic fails the test"
)]

use std::fmt::Debug;

use palisade_protocol::bounded::{List, PathBytes, Text};
use palisade_protocol::choice::{Choice, ChoiceRole, Chosen};
use palisade_protocol::codec::{self, CodecError, Message};
use palisade_protocol::content::{ContentId, FRAGMENT_BYTES};
use palisade_protocol::control::{self, ControlFrame, FromServer, ToServer};
use palisade_protocol::definitions::{self, DefinitionsOrder, Standing};
use palisade_protocol::exposure::{ExposureCause, ExposureWindow};
use palisade_protocol::frame::{self, FrameError};
use palisade_protocol::ids::{DetectionId, SvmId, TenantId};
use palisade_protocol::notice::{MAX_CONTENTS, Notice};
use palisade_protocol::policy::{Layer, NotApplied, Policy, PolicyReport, Refused, Setting};
use palisade_protocol::scan::{self, ToAgent, ToSvm, ToSvmRef};
use palisade_protocol::selection::Reach;
use palisade_protocol::token::JoinToken;
use palisade_protocol::verdict::{
    Details, EngineGeneration, EngineRun, Generation, Metadatum, NotScanned, Verdict, VerdictKind,
};
use proptest::prelude::*;
use uuid::Uuid;

fn generations() -> List<EngineGeneration, 8> {
    List::cut([EngineGeneration {
        engine: Text::cut("libclamav"),
        generation: Generation(7),
        fingerprint: [9; 16],
    }])
}

fn to_svm() -> Vec<ToSvm> {
    vec![
        ToSvm::Hello(scan::Hello {
            version: Text::cut("0.1.0"),
            notices: true,
        }),
        ToSvm::Scan(scan::ScanRequest {
            content: ContentId([1; 32]),
            size: 300_000,
            class: scan::ScanClass::OnAccess,
            deadline_ms: 5000,
            options: scan::ScanOptions::default(),
            max_age_s: 86_400,
        }),
        ToSvm::Lookup(scan::Lookup {
            options: scan::ScanOptions::default(),
            max_age_s: 0,
            contents: List::cut([scan::Named {
                content: ContentId([1; 32]),
                size: 300_000,
            }]),
        }),
        ToSvm::Outline(List::cut([[2; 32], [3; 32]])),
        ToSvm::Fragment(scan::Fragment {
            index: 1,
            bytes: vec![0xaa; 4],
        }),
        ToSvm::Holds(scan::Holds {
            options: scan::ScanOptions::default(),
            contents: List::cut([scan::Named {
                content: ContentId([1; 32]),
                size: 300_000,
            }]),
        }),
    ]
}

fn to_agent() -> Vec<ToAgent> {
    let load = scan::LoadHint {
        load_permille: 250,
        queue_wait_ms: 3,
    };
    let result = |verdict| {
        ToAgent::Verdict(scan::ScanResult {
            verdict,
            details: Details::default(),
            source: scan::VerdictSource::SharedCache,
            engines: List::default(),
            sha256: Some([4; 32]),
            generations: generations(),
            older: true,
            recheck: false,
            load,
        })
    };
    vec![
        ToAgent::Welcome(scan::Welcome {
            version: Text::cut("0.1.0"),
            max_scan_bytes: 512 << 20,
            max_requests: 64,
            generations: generations(),
            load,
        }),
        ToAgent::Need(List::cut([scan::FragmentRange { first: 0, count: 2 }])),
        result(Verdict::Clean),
        result(Verdict::Malware {
            name: Text::cut("Eicar-Test-Signature"),
            engine: Text::cut("libclamav"),
        }),
        result(Verdict::NotScanned(NotScanned::LimitHit {
            limit: Text::cut("MaxRecursion"),
        })),
        ToAgent::Verdict(scan::ScanResult {
            verdict: Verdict::Malware {
                name: Text::cut("Rule"),
                engine: Text::cut("yara-x"),
            },
            details: Details {
                engine: Some(Text::cut("yara-x")),
                member: Some(Text::cut("b.tar/c.exe")),
                metadata: List::cut([Metadatum {
                    key: Text::cut("author"),
                    value: Text::cut("somebody"),
                }]),
            },
            source: scan::VerdictSource::Scanned,
            sha256: None,
            engines: List::cut([EngineRun {
                engine: Text::cut("libclamav"),
                micros: 1234,
                outcome: VerdictKind::Clean,
            }]),
            generations: generations(),
            older: false,
            recheck: false,
            load,
        }),
        ToAgent::Busy {
            retry_after_ms: 100,
        },
        ToAgent::Refused(scan::Refusal {
            code: scan::RefusalCode::ContentMismatch,
            message: Text::cut("hash again"),
        }),
        ToAgent::Known(scan::Known {
            clean: List::cut([true, false]),
            generations: generations(),
            load,
        }),
    ]
}

fn report() -> control::SvmReport {
    control::SvmReport {
        addresses: List::cut([control::SvmAddress {
            network: Text::cut("agents"),
            address: "127.0.0.1:7443".parse().unwrap(),
        }]),
        path: control::InfrastructurePath {
            datacenter: Text::cut("dc1"),
            cluster: Text::cut("c1"),
            hypervisor: Text::cut("h1"),
        },
        licence: control::LicenceState::Valid,
        average_load: scan::LoadHint::default(),
        agents: 3,
        generations: generations(),
        draining: false,
        tags: List::cut([Text::cut("gold")]),
        problems: List::default(),
        tenants: List::cut([TenantId::default_tenant()]),
        followed: Some(7),
    }
}

fn exposure() -> ExposureWindow {
    ExposureWindow {
        id: 3,
        from_ms: 1_700_000_000_000,
        until_ms: Some(1_700_000_060_000),
        causes: List::cut([ExposureCause::NoSvm, ExposureCause::Overload]),
        opens: 12,
        execs: 3,
        files: 9,
        not_kept: 1,
        clean: 7,
        malware: 1,
        ..Default::default()
    }
}

fn to_server() -> Vec<ToServer> {
    vec![
        ToServer::Hello(control::Hello {
            version: Text::cut("0.1.0"),
            host: control::HostFacts {
                hostname: Text::cut("guest-1"),
                product_uuid: Some(Uuid::from_u128(5)),
                boot_id: None,
                kernel: Text::cut("6.1.0"),
            },
        }),
        ToServer::SvmReport(report()),
        ToServer::AgentReport(control::AgentReport {
            protection: control::Protection::Off {
                reason: Text::cut("not root"),
            },
            svm: Some(SvmId(Uuid::from_u128(6))),
            events: control::EventCounters {
                seen: 3,
                scanned: 2,
                cached: 1,
                ..Default::default()
            },
            clock_ms: 1_700_000_000_000,
            exposure: List::cut([exposure()]),
            maintenance: Some(Uuid::from_u128(8)),
        }),
        ToServer::Detections(List::cut([control::Detection {
            id: DetectionId(Uuid::from_u128(7)),
            time_ms: 1_700_000_000_000,
            tenant: TenantId::default_tenant(),
            path: PathBytes::from_path("/tmp/e".as_ref()),
            verdict: VerdictKind::Malware,
            name: Text::cut("Eicar-Test-Signature"),
            engine: Text::cut("libclamav"),
            member: Some(Text::cut("inner.exe")),
            action: control::Action::Blocked,
            class: scan::ScanClass::OnAccess,
            blake3: [1; 32],
            sha256: None,
            size: 68,
            pid: 42,
            container: Some(Text::cut("lxc:web")),
        }])),
        ToServer::GetSvmList { etag: 9 },
        ToServer::Renew {
            csr: List::cut([1, 2, 3]),
        },
        ToServer::Definitions(definitions_answer()),
        ToServer::KeepQuarantineKey(control::QuarantineKey([0xab; 32])),
        ToServer::GetQuarantineKey,
        ToServer::Choice(choice()),
        ToServer::GetPolicy {
            held: Some(policy().fingerprint().unwrap()),
        },
        ToServer::GetPolicy { held: None },
        ToServer::PolicyReport(PolicyReport {
            in_force: Some(policy().fingerprint().unwrap()),
            refused: Some(Refused {
                fingerprint: Policy::default().fingerprint().unwrap(),
                why: Text::cut("refused"),
            }),
            not_applied: List::cut([NotApplied {
                key: Text::cut("on_access.later"),
                why: Text::cut("unknown"),
            }]),
            note: Some(Text::cut("damaged")),
        }),
    ]
}

fn policy() -> Policy {
    Policy {
        layers: List::cut([Layer {
            origin: Text::cut("site"),
            revision: 3,
        }]),
        settings: List::cut([Setting {
            key: Text::cut("on_access.mode"),
            value: Text::cut("\"block\""),
            origin: Text::cut("site"),
        }]),
    }
}

/// Agents keep it and servers of other versions compute it: it never changes.
#[test]
fn a_policys_fingerprint_is_pinned() {
    let fingerprints = [policy(), Policy::default()].map(|policy| {
        let fingerprint = policy.fingerprint().unwrap();
        fingerprint.to_string()
    });
    insta::assert_snapshot!(fingerprints.join("\n"));
}

fn choice() -> Choice {
    Choice {
        number: 14,
        source: Text::cut("the Integration Server's list, version 9"),
        reach: Reach::Datacenter,
        place: Text::cut("dc1 / c1 / h1"),
        tags: List::cut([Text::cut("gold")]),
        svms: List::cut([Chosen {
            id: Some(SvmId(Uuid::from_u128(6))),
            name: Text::cut("svm-1"),
            addresses: List::cut([Text::cut("127.0.0.1:7443")]),
            role: ChoiceRole::InUse,
            why: Text::cut("the best that answers"),
            score: Some(12),
            connected_s: Some(3),
            round_trip_us: None,
            failure: Some((Text::cut("silent"), 7)),
        }]),
        more: 1,
    }
}

fn definitions_answer() -> definitions::DefinitionsAnswer {
    let entry = |generation, standing| definitions::GenerationEntry {
        generation,
        standing,
        engines: generations(),
        origin: Text::cut("/var/lib/clamav"),
        added_ms: 1_700_000_000_000,
        bytes: 1 << 20,
    };
    definitions::DefinitionsAnswer {
        number: 11,
        failure: Some(Text::cut("generation 9 is not kept")),
        status: definitions::DefinitionsStatus {
            generations: List::cut([
                entry(3, Standing::Kept),
                entry(4, Standing::Previous),
                entry(5, Standing::Active),
                entry(6, Standing::Refused),
            ]),
            source: Text::cut("/var/lib/clamav"),
            problem: Some(Text::cut("broken")),
            working: Some(Text::cut("rolling back")),
            last: Some(definitions::LastOrder {
                number: 2,
                what: Text::cut("rolling back"),
                failure: None,
            }),
            braked: List::cut([definitions::BrakedSignature {
                engine: Text::cut("yara-x"),
                name: Text::cut("New"),
                since_ms: 1_700_000_000_000,
            }]),
        },
    }
}

fn from_server() -> Vec<FromServer> {
    vec![
        FromServer::Welcome(control::Welcome {
            version: Text::cut("0.1.0"),
            epoch: 12,
            server_time_ms: 1_700_000_000_000,
            report_every_s: 300,
        }),
        FromServer::Ack,
        FromServer::SvmList(control::SvmList {
            etag: 9,
            own_path: control::InfrastructurePath::default(),
            own_tags: List::default(),
            svms: List::cut([control::SvmEntry {
                id: SvmId(Uuid::from_u128(6)),
                name: Text::cut("svm-1"),
                report: report(),
                absent: true,
            }]),
            revoked: List::cut([SvmId(Uuid::from_u128(7))]),
        }),
        FromServer::NotModified,
        FromServer::QuarantineKey(Some(control::QuarantineKey([0xab; 32]))),
        FromServer::QuarantineKey(None),
        FromServer::Denied(control::Denied {
            code: control::DeniedCode::SpentToken,
            message: Text::cut("spent"),
        }),
        FromServer::Definitions(definitions::DefinitionsCommand {
            number: 11,
            order: DefinitionsOrder::Activate { generation: 9 },
        }),
        FromServer::Definitions(definitions::DefinitionsCommand {
            number: 12,
            order: DefinitionsOrder::Rollback,
        }),
        FromServer::Definitions(definitions::DefinitionsCommand {
            number: 13,
            order: DefinitionsOrder::Confirm {
                signature: Text::cut("New"),
            },
        }),
        FromServer::Explain { number: 14 },
        FromServer::Policy(policy()),
        FromServer::Published { version: 15 },
    ]
}

fn notices() -> Vec<Notice> {
    vec![Notice {
        contents: List::cut([ContentId([1; 32]), ContentId([2; 32])]),
    }]
}

fn pinned<M: Message + PartialEq + Debug>(messages: &[M]) -> Vec<String> {
    messages
        .iter()
        .map(|message| {
            let bytes = codec::encode(message).unwrap();
            assert_eq!(&codec::decode::<M>(&bytes).unwrap(), message);
            hex::encode(bytes)
        })
        .collect()
}

#[test]
fn the_bytes_of_each_message_are_pinned() {
    insta::assert_json_snapshot!("to_svm", pinned(&to_svm()));
    insta::assert_json_snapshot!("to_agent", pinned(&to_agent()));
    insta::assert_json_snapshot!("to_server", pinned(&to_server()));
    insta::assert_json_snapshot!("from_server", pinned(&from_server()));
    insta::assert_json_snapshot!("notices", pinned(&notices()));
    assert_eq!(scan::ALPN, [b"palisade-scan/1"]);
    assert_eq!(control::ALPN, [b"palisade-control/1"]);
}

/// The fast ways of the many bytes say the same as the plain ones.
#[tokio::test]
async fn a_fragment_is_the_same_whichever_way_it_is_written_and_read() {
    for length in [0, 1, 250, 251, 70_000, FRAGMENT_BYTES as usize] {
        for index in [0, 250, 251, 70_000, u32::MAX] {
            let bytes = vec![0xa5; length];
            let plain = ToSvm::Fragment(scan::Fragment {
                index,
                bytes: bytes.clone(),
            });
            let fast = frame::fragment::<CodecError>(index, length, |into| {
                into.copy_from_slice(&bytes);
                Ok(())
            });
            let fast = fast.unwrap();
            assert!(fast == frame::to_bytes(&plain).unwrap(), "{index} {length}");
            let mut buffer = vec![9; 10];
            let mut wire = fast.as_slice();
            let read = frame::read_body(&mut wire, &mut buffer, ToSvm::MAX_BYTES).await;
            let body = read.unwrap().unwrap();
            let ToSvmRef::Fragment(got) = ToSvmRef::decode(body).unwrap() else {
                panic!("no fragment")
            };
            assert!((got.index, got.bytes) == (index, bytes.as_slice()));
        }
    }
    let over = frame::fragment::<CodecError>(0, FRAGMENT_BYTES as usize + 1, |_| Ok(()));
    assert!(matches!(over, Err(CodecError::TooLarge { .. })));
    for message in to_svm() {
        let bytes = codec::encode(&message).unwrap();
        let debug = |text: String| text.replace("ToSvmRef", "ToSvm");
        let borrowed = debug(format!("{:?}", ToSvmRef::decode(&bytes).unwrap()));
        assert_eq!(borrowed, format!("{message:?}"));
        for end in 0..bytes.len() {
            assert!(ToSvmRef::decode(&bytes[..end]).is_err());
        }
        assert!(ToSvmRef::decode(&[bytes.as_slice(), &[0]].concat()).is_err());
    }
}

#[test]
fn every_cut_and_every_addition_is_refused() {
    fn check<M: Message + Debug>(messages: &[M]) {
        for message in messages {
            let bytes = codec::encode(message).unwrap();
            for end in 0..bytes.len() {
                assert!(
                    codec::decode::<M>(&bytes[..end]).is_err(),
                    "{message:?} cut at {end}"
                );
            }
            let more = [bytes.as_slice(), &[0]].concat();
            assert!(matches!(
                codec::decode::<M>(&more),
                Err(CodecError::Trailing(1))
            ));
        }
    }
    check(&to_svm());
    check(&to_agent());
    check(&to_server());
    check(&from_server());
    check(&notices());
}

/// A verdict whose every part is as long as it may be is an answer, too.
#[test]
fn the_longest_verdict_fits_into_its_frame() {
    let long = "\u{1f600}".repeat(200);
    let engine = || Text::cut(&long);
    let result = scan::ScanResult {
        verdict: Verdict::Malware {
            name: Text::cut(&long),
            engine: engine(),
        },
        details: Details {
            engine: Some(engine()),
            member: Some(Text::cut(&long)),
            metadata: List::cut((0..99).map(|_| Metadatum {
                key: Text::cut(&long),
                value: Text::cut(&long),
            })),
        },
        older: true,
        recheck: true,
        source: scan::VerdictSource::Scanned,
        engines: List::cut((0..99).map(|_| EngineRun {
            engine: engine(),
            micros: u64::MAX,
            outcome: VerdictKind::NotScanned,
        })),
        sha256: Some([1; 32]),
        generations: List::cut((0..99).map(|_| EngineGeneration {
            engine: engine(),
            generation: Generation(u64::MAX),
            fingerprint: [2; 16],
        })),
        load: scan::LoadHint {
            load_permille: u16::MAX,
            queue_wait_ms: u32::MAX,
        },
    };
    let longest = ToAgent::Verdict(result);
    let bytes = codec::encode(&longest).unwrap();
    assert_eq!(codec::decode::<ToAgent>(&bytes).unwrap(), longest);
}

#[test]
fn unknown_variants_are_refused() {
    assert!(codec::decode::<ToSvm>(&[200]).is_err());
    assert!(codec::decode::<ToAgent>(&[200]).is_err());
    assert!(codec::decode::<ToServer>(&[200]).is_err());
    assert!(codec::decode::<FromServer>(&[200]).is_err());
    assert!(codec::decode::<ControlFrame>(&[200]).is_err());
}

#[test]
fn oversize_is_refused_at_encode_and_at_decode() {
    let fits = ToSvm::Fragment(scan::Fragment {
        index: 8191,
        bytes: vec![0; FRAGMENT_BYTES as usize],
    });
    let bytes = codec::encode(&fits).unwrap();
    assert_eq!(codec::decode::<ToSvm>(&bytes).unwrap(), fits);
    let over = ToSvm::Fragment(scan::Fragment {
        index: 0,
        bytes: vec![0; ToSvm::MAX_BYTES],
    });
    assert!(matches!(
        codec::encode(&over),
        Err(CodecError::TooLarge { .. })
    ));
    let wire = vec![0; ToSvm::MAX_BYTES + 1];
    assert!(matches!(
        codec::decode::<ToSvm>(&wire),
        Err(CodecError::TooLarge { .. })
    ));
    let full = Notice {
        contents: List::cut([ContentId([9; 32]); MAX_CONTENTS]),
    };
    assert!(
        codec::encode(&full).is_ok(),
        "the largest notice is sendable"
    );
    // A bounded list and a bounded text refuse on their own, within a small frame.
    let values = bincode::serde::encode_to_vec(
        (2u32, vec![[0u8; 32]; scan::MAX_OUTLINE_VALUES + 1]),
        bincode::config::standard(),
    )
    .unwrap();
    assert!(matches!(
        codec::decode::<ToSvm>(&values),
        Err(CodecError::Malformed(_))
    ));
}

#[tokio::test]
async fn a_frame_that_claims_too_much_is_refused_before_it_is_read() {
    let mut stream: &[u8] = &u32::MAX.to_le_bytes();
    let read = frame::read::<ToSvm>(&mut stream).await;
    assert!(matches!(
        read,
        Err(FrameError::Codec(CodecError::TooLarge { .. }))
    ));
}

#[tokio::test]
async fn frames_are_read_until_the_stream_ends() {
    let mut wire = Vec::new();
    for message in to_svm() {
        frame::write(&mut wire, &message).await.unwrap();
    }
    let mut stream = wire.as_slice();
    for message in to_svm() {
        assert_eq!(
            frame::read::<ToSvm>(&mut stream).await.unwrap(),
            Some(message)
        );
    }
    assert_eq!(frame::read::<ToSvm>(&mut stream).await.unwrap(), None);
    let mut cut = &wire[..wire.len() - 1];
    for _ in 0..to_svm().len() - 1 {
        frame::read::<ToSvm>(&mut cut).await.unwrap();
    }
    assert!(matches!(
        frame::read::<ToSvm>(&mut cut).await,
        Err(FrameError::Io(_))
    ));
    assert!(frame::read::<ToSvm>(&mut &wire[..2]).await.is_err());
}

fn survives(bytes: &[u8]) {
    let owned = codec::decode::<ToSvm>(bytes);
    assert_eq!(owned.is_ok(), ToSvmRef::decode(bytes).is_ok());
    let _ = codec::decode::<ToAgent>(bytes);
    let _ = codec::decode::<ToServer>(bytes);
    let _ = codec::decode::<FromServer>(bytes);
    let _ = codec::decode::<ControlFrame>(bytes);
    let _ = codec::decode::<Notice>(bytes);
    let _ = codec::decode::<JoinToken>(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = text.parse::<JoinToken>();
        let _ = text.parse::<palisade_protocol::spiffe::SpiffeId>();
    }
}

proptest! {
    #[test]
    fn random_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        survives(&bytes);
    }

    #[test]
    fn mutated_messages_do_not_panic(pick: prop::sample::Index, at: prop::sample::Index, value: u8, cut: prop::sample::Index) {
        let mut all: Vec<Vec<u8>> = to_svm().iter().map(|m| codec::encode(m).unwrap()).collect();
        all.extend(to_agent().iter().map(|m| codec::encode(m).unwrap()));
        all.extend(to_server().iter().map(|m| codec::encode(m).unwrap()));
        all.extend(from_server().iter().map(|m| codec::encode(m).unwrap()));
        let mut bytes = pick.get(&all).clone();
        let index = at.index(bytes.len());
        bytes[index] = value;
        survives(&bytes);
        bytes.truncate(cut.index(bytes.len() + 1));
        survives(&bytes);
    }

    #[test]
    fn ids_have_one_spelling(deployment in "[a-z0-9]{1,8}", tenant in "[a-z0-9]([a-z0-9-]{0,6}[a-z0-9])?", id: u128) {
        let id = palisade_protocol::ids::AgentId(Uuid::from_u128(id));
        let spiffe = palisade_protocol::spiffe::SpiffeId::agent(
            &deployment.parse().unwrap(), &tenant.parse().unwrap(), id);
        let text = spiffe.to_string();
        prop_assert_eq!(&text.parse::<palisade_protocol::spiffe::SpiffeId>().unwrap(), &spiffe);
        let upper = text.to_uppercase();
        prop_assert!(upper.parse::<palisade_protocol::spiffe::SpiffeId>().is_err());
        let slash = format!("{text}/");
        prop_assert!(slash.parse::<palisade_protocol::spiffe::SpiffeId>().is_err());
    }
}

#[test]
fn a_quarantine_key_never_shows() {
    let key = control::QuarantineKey([0xab; 32]);
    let shown = format!("{:?}", ToServer::KeepQuarantineKey(key));
    assert!(!shown.contains("171") && !shown.contains("ab"), "{shown}");
}
