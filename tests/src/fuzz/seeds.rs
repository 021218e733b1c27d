//! The corpora's seeds: today's messages, and what stands at the edges of each format.
//!
//! Messages of the wire are taken from the golden snapshots of `protocol/tests`, so that
//! a new message needs no second list. `tests/tests/decoders.rs` writes what is made
//! here to `fuzz/corpus`, when it is asked to.

use std::fs;
use std::path::{Path, PathBuf};

use palisade_protocol::bounded::{List, PathBytes, Text};
use palisade_protocol::codec;
use palisade_protocol::content::{ContentId, FRAGMENT_BYTES, OutlineBuilder};
use palisade_protocol::control::{
    Component, ControlFrame, Denied, DeniedCode, EnrolRequest, HostFacts,
};
use palisade_protocol::definitions::{
    BrakedSignature, DefinitionsOrder, DefinitionsStatus, GenerationEntry, Standing,
};
use palisade_protocol::envelope::Envelope;
use palisade_protocol::ids::TenantId;
use palisade_protocol::notice::Notice;
use palisade_protocol::problem::{Problem, ProblemKind};
use palisade_protocol::pull::{Answer, Wanted, What};
use palisade_protocol::token::JoinToken;
use palisade_protocol::verdict::{EngineGeneration, Generation, Generations, Verdict};
use palisade_repository::keys::{SigningKey, sign};
use palisade_repository::tuf::Root;
use palisade_repository::{Contents, FileInfo, Generation as DefinitionsGeneration, roles};
use palisade_svm::cache;
use palisade_svm::local::{LocalAnswer, LocalRequest};
use palisade_svm::metrics::{Counts, Gauges};
use palisade_svm::status::Status;
use palisade_worker::ipc;
use palisade_worker::message::{
    DefinitionProblem, Loaded, Message, Metadatum, NotScanned, Outcome, ScanDone, ScanOptions,
    WorkerEvent, WorkerExit, WorkerRequest, ZygoteEvent, ZygoteRequest,
};

/// Largest file of a corpus, in bytes.
pub const MAX_BYTES: usize = 4096;
/// Most files of a corpus.
pub const MAX_FILES: usize = 60;

/// The repository's folder, where the sources still are.
pub fn repository() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

/// Where the corpora are.
pub fn corpora() -> PathBuf {
    repository().join("fuzz/corpus")
}

/// A target's seeds, by the names of their files; always the same ones.
pub fn of(target: &str) -> Vec<(String, Vec<u8>)> {
    let valid: Vec<Vec<u8>> = match target {
        "to_svm" | "to_agent" | "to_server" | "from_server" => pinned(target),
        "to_svm_ref" => pinned("to_svm"),
        "notice" => notices(),
        "local_request" => local_requests(),
        "local_answer" => local_answers(),
        "svm_status" => statuses(),
        "cache_key" => vec![codec::encode(&cache_key()).unwrap()],
        "cache_entry" => cache_entries(),
        "control_frame" => control_frames(),
        "envelope" => edits(),
        "frames" => streams(),
        "join_token" => tokens(),
        "spiffe_id" => spiffe_ids(),
        "outline" => outlines(),
        "fragments" => steps(),
        "worker_result" => answers(),
        "worker_request" => vec![packet(&WorkerRequest::Scan {
            request: 1,
            size: 300_000,
            options: ScanOptions::default(),
        })],
        "zygote_event" => zygote_events(),
        "zygote_request" => vec![
            packet(&ZygoteRequest::Spawn { worker: 1 }),
            packet(&ZygoteRequest::Kill { worker: u64::MAX }),
        ],
        "pull_wanted" => pulls_wanted(),
        "pull_answer" => pull_answers(),
        "signed_targets" => targets(),
        "hash_list" => hash_lists(),
        "byte_size" => byte_sizes(),
        other => panic!("{other} has no seeds"),
    };
    let mut seeds: Vec<(String, Vec<u8>)> = Vec::new();
    let mut add = |kind: &str, bytes: Vec<u8>| {
        let known = seeds.iter().any(|(_, known)| *known == bytes);
        if bytes.len() <= MAX_BYTES && seeds.len() < MAX_FILES && !known {
            seeds.push((format!("{kind}-{:02}", seeds.len()), bytes));
        }
    };
    for bytes in &valid {
        add("valid", bytes.clone());
    }
    for bytes in &valid {
        add("cut", bytes[..bytes.len() / 2].to_vec());
        add("longer", [bytes.as_slice(), &[0]].concat());
    }
    add("empty", Vec::new());
    add("ones", vec![0xff; 64]);
    add("zeros", vec![0; 64]);
    // A first field that says it is longer than all memory.
    add("huge", [&[0, 253][..], &[0xff; 8]].concat());
    add("huge", [&[3, 0, 253][..], &[0xff; 8]].concat());
    seeds
}

/// The messages of a golden snapshot.
fn pinned(name: &str) -> Vec<Vec<u8>> {
    let file = repository().join(format!("protocol/tests/snapshots/wire__{name}.snap"));
    let text = fs::read_to_string(file).unwrap();
    let list = text.rsplit_once("---").unwrap().1;
    let list: Vec<String> = serde_json::from_str(list).unwrap();
    list.iter().map(|text| hex::decode(text).unwrap()).collect()
}

fn pulls_wanted() -> Vec<Vec<u8>> {
    let whats = [
        What::Metadata(Text::cut("timestamp.json")),
        What::Metadata(Text::cut("2.root.json")),
        What::File([7; 32]),
    ];
    let wanted = whats.map(|what| Wanted { what, from: 300 });
    wanted.map(|wanted| codec::encode(&wanted).unwrap()).into()
}

fn pull_answers() -> Vec<Vec<u8>> {
    let part = Answer::Part {
        length: 1_000,
        bytes: b"some of it".to_vec(),
    };
    [Answer::Absent, part, Answer::Busy]
        .map(|answer| codec::encode(&answer).unwrap())
        .into()
}

/// The publisher's key of seeds: whoever forges has another one.
const PUBLISHER: &str = "3051020101300506032b657004220420\
    9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60\
    812100d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

/// A root that names a key which signed nothing.
pub fn root() -> Root {
    let named = serde_json::json!({
        "_type": "root", "spec_version": "1.0.31", "version": 1,
        "expires": "2100-01-01T00:00:00Z", "consistent_snapshot": true,
        "keys": { "k": {
            "keytype": "ed25519", "scheme": "ed25519", "keyval": { "public": "11".repeat(32) },
        } },
        "roles": { "targets": { "keyids": ["k"], "threshold": 1 } },
    });
    serde_json::from_value(named).unwrap()
}

fn targets() -> Vec<Vec<u8>> {
    let file = FileInfo {
        sha256: [7; 32],
        length: 300,
    };
    let generation = |name: &str| DefinitionsGeneration {
        added_ms: 1,
        origin: "somewhere".to_owned(),
        files: [(name.to_owned(), file)].into(),
    };
    let (_, one) = Contents::default()
        .with(generation("daily.cld"), true, 5)
        .unwrap();
    let (_, two) = one.with(generation("rules.yar"), false, 5).unwrap();
    let expires = "2100-01-01T00:00:00Z".parse().unwrap();
    let secret = hex::decode(PUBLISHER).unwrap();
    let key = SigningKey::from_pkcs8(&secret).ok();
    let documents = [Contents::default(), one, two].map(|contents| {
        let targets = roles::targets(7, expires, &contents);
        sign(&targets, &key.iter().collect::<Vec<_>>()).unwrap()
    });
    let hostile = r#"{"signed":{"_type":"targets","spec_version":"1.0.31","version":1,
        "expires":"2100-01-01T00:00:00Z","targets":{"1/../x":{"length":1,"hashes":{"sha256":"00"}}},
        "palisade":{"wanted":1,"generations":{"1":{}}}},"signatures":[]}"#;
    let mut all: Vec<Vec<u8>> = documents.into();
    all.push(hostile.as_bytes().to_vec());
    all
}

fn control_frames() -> Vec<Vec<u8>> {
    let frames = [
        ControlFrame::Enrol(EnrolRequest {
            component: Component::Agent,
            token_id: uuid(1),
            secret: [7; 32],
            csr: List::cut([0x30, 0x03, 0x02, 0x01, 0x00]),
            host: HostFacts {
                hostname: Text::cut("guest-1"),
                product_uuid: None,
                boot_id: None,
                kernel: Text::cut("6.1.0"),
            },
        }),
        ControlFrame::Denied(Denied {
            code: DeniedCode::SpentToken,
            message: Text::cut("spent"),
        }),
        ControlFrame::Envelope(Envelope {
            body: vec![1; 100],
            signature: List::cut([0x30; 70]),
            chain: List::cut([List::cut([0x30; 300]), List::cut([0x30; 300])]),
        }),
    ];
    frames
        .iter()
        .map(|frame| codec::encode(frame).unwrap())
        .collect()
}

fn notices() -> Vec<Vec<u8>> {
    let of = |count: u8| Notice {
        contents: List::cut((0..count).map(|n| ContentId([n; 32]))),
    };
    [of(0), of(1), of(100)]
        .map(|notice| codec::encode(&notice).unwrap())
        .to_vec()
}

fn local_requests() -> Vec<Vec<u8>> {
    let order = LocalRequest::Order;
    [
        LocalRequest::Status,
        order(DefinitionsOrder::Show),
        order(DefinitionsOrder::Refresh),
        order(DefinitionsOrder::Rollback),
        order(DefinitionsOrder::Activate { generation: 7 }),
        order(DefinitionsOrder::Confirm {
            signature: Text::cut("Some.Signature"),
        }),
        LocalRequest::Import {
            directory: PathBytes::from_path(Path::new("/var/lib/clamav")),
            stage_only: true,
        },
    ]
    .map(|request| codec::encode(&request).unwrap())
    .to_vec()
}

fn generations() -> Generations {
    List::cut([EngineGeneration {
        engine: Text::cut("yara-x"),
        generation: Generation(3),
        fingerprint: [9; 16],
    }])
}

fn definitions() -> DefinitionsStatus {
    DefinitionsStatus {
        generations: List::cut([GenerationEntry {
            generation: 3,
            standing: Standing::Active,
            engines: generations(),
            origin: Text::cut("/var/lib/clamav"),
            added_ms: 1,
            bytes: 2,
        }]),
        problem: Some(Text::cut("some.yar:1: syntax error")),
        braked: List::cut([BrakedSignature {
            engine: Text::cut("libclamav"),
            name: Text::cut("Some.Signature"),
            since_ms: 4,
        }]),
        ..DefinitionsStatus::default()
    }
}

fn local_answers() -> Vec<Vec<u8>> {
    let answer = |failure: Option<&str>| LocalAnswer {
        done: Text::cut("generation 3 is in force"),
        failure: failure.map(Text::cut),
        status: definitions(),
    };
    [answer(None), answer(Some("it is busy"))]
        .map(|answer| codec::encode(&answer).unwrap())
        .to_vec()
}

fn statuses() -> Vec<Vec<u8>> {
    let status = Status {
        version: Text::cut("0.1.0"),
        id: Text::cut("spiffe://site/svm/1"),
        address: "127.0.0.1:7443".parse().unwrap(),
        metrics: None,
        started_ms: 1,
        lanes: 2,
        load_permille: 500,
        generations: generations(),
        problems: List::cut([Problem {
            kind: ProblemKind::EngineDown {
                engine: Text::cut("yara-x"),
            },
            since_ms: 5,
        }]),
        now: Gauges::default(),
        since_start: Counts::default(),
    };
    vec![codec::encode(&status).unwrap()]
}

fn cache_key() -> cache::Key {
    cache::Key {
        tenant: TenantId::default_tenant(),
        content: ContentId([1; 32]),
        size: 300,
        options: Default::default(),
    }
}

fn cache_entries() -> Vec<Vec<u8>> {
    let malware = Verdict::Malware {
        name: Text::cut("Some.Signature"),
        engine: Text::cut("libclamav"),
    };
    let entry = |verdict| cache::Entry {
        verdict,
        details: Default::default(),
        sha256: Some([2; 32]),
        generations: generations(),
        scanned_ms: 6,
    };
    [entry(Verdict::Clean), entry(malware)]
        .map(|entry| codec::encode(&entry).unwrap())
        .to_vec()
}

fn uuid(number: u128) -> uuid::Uuid {
    uuid::Uuid::from_u128(number)
}

/// Changes to the sealed frame: none, that of nothing, and one in each of its parts.
fn edits() -> Vec<Vec<u8>> {
    let mut all = vec![vec![0, 0, 0]];
    for at in (0..1500_u16).step_by(50) {
        let [low, high] = at.to_le_bytes();
        all.push(vec![low, high, 1]);
    }
    all
}

/// Frames of whole conversations, as `palisade_protocol::frame` writes them.
fn streams() -> Vec<Vec<u8>> {
    let framed = |body: &[u8]| {
        let length = u32::try_from(body.len()).unwrap().to_le_bytes();
        [&length, body].concat()
    };
    let frames: Vec<Vec<u8>> = pinned("to_svm").iter().map(|body| framed(body)).collect();
    let mut all = frames.clone();
    all.push(frames.concat());
    all
}

fn tokens() -> Vec<Vec<u8>> {
    let token = JoinToken {
        id: uuid(2),
        component: Component::Svm,
        deployment: "site".parse().unwrap(),
        tenant: TenantId::default_tenant(),
        servers: List::cut([
            "127.0.0.1:7444".parse().unwrap(),
            "[::1]:1".parse().unwrap(),
        ]),
        root_sha256: [3; 32],
        secret: [4; 32],
        expires_ms: u64::MAX,
    };
    vec![
        codec::encode(&token).unwrap(),
        token.to_text().unwrap().into_bytes(),
        format!("  {}\n", token.to_text().unwrap()).into_bytes(),
        b"pj1.".to_vec(),
        b"pj1.AAAA====".to_vec(),
        b"pj2.AAAA".to_vec(),
    ]
}

fn spiffe_ids() -> Vec<Vec<u8>> {
    let id = uuid(5);
    [
        format!("spiffe://site/tenant/default/agent/{id}"),
        format!("spiffe://site/svm/{id}"),
        "spiffe://site/server/server-1".to_owned(),
        format!("spiffe://site/tenant//agent/{id}"),
        format!("spiffe://site/tenant/default/agent/{id}/"),
        format!("spiffe://SITE/svm/{id}"),
        format!("spiffe://site/svm/{}", id.simple()),
        "spiffe://site/server/..".to_owned(),
        format!("spiffe://{}/server/x", "a".repeat(250)),
        "https://site/server/x".to_owned(),
    ]
    .map(String::into_bytes)
    .to_vec()
}

fn outlines() -> Vec<Vec<u8>> {
    let claim = |size: u64, id: ContentId, values: &[[u8; 32]], bytes: &[u8]| {
        [&size.to_le_bytes()[..], &id.0, &values.concat(), bytes].concat()
    };
    let parts = [vec![1; FRAGMENT_BYTES as usize], vec![2; 50]];
    let mut builder = OutlineBuilder::new();
    for part in &parts {
        builder.push(part).unwrap();
    }
    let two = builder.finish();
    let small = b"one fragment".as_slice();
    let id = ContentId::of(small);
    let size = small.len() as u64;
    vec![
        claim(two.size(), two.id(), two.chaining_values(), &parts[1]),
        claim(two.size() + 1, two.id(), two.chaining_values(), &parts[1]),
        claim(two.size(), id, two.chaining_values(), &parts[1]),
        claim(size, id, &[], small),
        claim(size, two.id(), &[], small),
        claim(size + 1, id, &[], small),
        claim(0, ContentId::of(b""), &[], b""),
        claim(0, id, &[], b"x"),
        claim(FRAGMENT_BYTES, id, &[], b""),
        claim(u64::MAX, id, &[[0; 32]; 3], b""),
        claim(i32::MAX as u64, id, &[[0; 32]; 3], b""),
        claim(3 * FRAGMENT_BYTES, id, &[[0; 32]; 3], b""),
        claim(100 * FRAGMENT_BYTES, id, &[[9; 32]; 100], b""),
    ]
}

/// For each size all kinds of steps, on the first fragment and on the last.
fn steps() -> Vec<Vec<u8>> {
    (0..6_u8)
        .map(|size| {
            let mut bytes = vec![size];
            for kind in 0..6 {
                bytes.extend_from_slice(&[kind, 0, 5, 1, kind, 2, 76, 0]);
            }
            bytes
        })
        .collect()
}

fn packet<M: Message>(message: &M) -> Vec<u8> {
    ipc::encode(message).unwrap()
}

/// What workers say of a content, from Member to Done.
fn answers() -> Vec<Vec<u8>> {
    let done = |outcome, members_truncated| {
        WorkerEvent::Done(ScanDone {
            request: 1,
            outcome,
            members_truncated,
            cpu_ms: 3,
            wall_ms: u64::MAX,
        })
    };
    let member = WorkerEvent::Member {
        request: 1,
        index: 0,
        name: "bundle.zip/inner.exe".into(),
        size: 5000,
    };
    let reason = |reason| Outcome::NotScanned { reason };
    let found = Outcome::Found {
        names: vec!["Marker".into(), "Another".into()],
        member: "inner.exe".into(),
        metadata: vec![Metadatum {
            key: "author".into(),
            value: "somebody".into(),
        }],
        suspicious: false,
    };
    let limit = || {
        reason(NotScanned::Limit {
            which: "MaxFiles".into(),
        })
    };
    let conversations = [
        vec![done(Outcome::Clean, false)],
        vec![member.clone(), done(Outcome::Clean, false)],
        vec![member.clone(), done(Outcome::Clean, true)],
        vec![done(found, false)],
        vec![done(Outcome::found(["Heuristic".into()], true), false)],
        vec![done(reason(NotScanned::Encrypted), false)],
        vec![done(limit(), false), done(Outcome::Clean, false)],
        vec![done(reason(NotScanned::TooLarge { max: 1 << 31 }), false)],
        vec![done(reason(NotScanned::TimedOut), false)],
        vec![done(Outcome::engine_error("it broke"), false)],
        vec![WorkerEvent::Serving {
            worker: 1,
            gaps: Vec::new(),
        }],
        vec![WorkerEvent::Serving {
            worker: 1,
            gaps: vec!["landlock: too old a kernel".into()],
        }],
        vec![WorkerEvent::CanaryMissed {
            detail: "clean".into(),
        }],
        vec![WorkerEvent::SandboxFailed {
            detail: "landlock".into(),
        }],
    ];
    let framed = |event: &WorkerEvent| {
        let packet = packet(event);
        let length = u16::try_from(packet.len()).unwrap().to_le_bytes();
        [&length[..], &packet].concat()
    };
    conversations
        .iter()
        .map(|events| events.iter().flat_map(framed).collect())
        .collect()
}

fn zygote_events() -> Vec<Vec<u8>> {
    let problem = DefinitionProblem {
        file: "bad.yar".into(),
        line: Some(2),
        message: "syntax error".into(),
    };
    let exited = |exit| ZygoteEvent::Exited { worker: 1, exit };
    [
        ZygoteEvent::Loaded(Loaded {
            engine: "clamav".into(),
            engine_version: "1.4.3".into(),
            signatures: 485_000,
            load_ms: 3000,
            warnings: vec![problem.clone()],
        }),
        ZygoteEvent::LoadFailed {
            problems: vec![problem],
        },
        ZygoteEvent::Spawned {
            worker: 1,
            pid: i32::MAX,
        },
        exited(WorkerExit::Code(-1)),
        exited(WorkerExit::Signal(9)),
        exited(WorkerExit::NotStarted {
            detail: "no memory".into(),
        }),
    ]
    .iter()
    .map(packet)
    .collect()
}

fn hash_lists() -> Vec<Vec<u8>> {
    let (sha, md5) = ("0123456789abcdef".repeat(4), "0123456789ABCDEF".repeat(2));
    let sha_list = format!("# why\n{sha}\n{sha}  *setup.exe\r\n{sha}:*:Name.A:73\n{sha}:5:B\n\n");
    let md5_list = format!("{md5}\n{md5}:18446744073709551615:N\n{md5} \u{202e}name\n");
    let wrong = [
        format!("{sha}:-1:A\n"),
        format!("{sha}x\n"),
        format!("{sha}  {}\n", "n".repeat(300)),
        format!("# {}\n", "c".repeat(1100)),
        "x".to_owned(),
    ];
    let mut all = Vec::new();
    for kind in 0..4_u8 {
        for list in [&sha_list, &md5_list] {
            all.push([&[kind][..], list.as_bytes()].concat());
        }
    }
    all.extend(wrong.map(|list| [&[1][..], list.as_bytes()].concat()));
    all
}

fn byte_sizes() -> Vec<Vec<u8>> {
    [
        "0",
        "512 MiB",
        " 1GiB ",
        "4096 B",
        "7KiB",
        "18446744073709551615",
        "18446744073709551616",
        "17179869184 GiB",
        "17179869183 GiB",
        "-1",
        "1.5 GiB",
        "1 MB",
        "",
        "KiB",
        "\u{661} KiB",
        "1\u{a0}KiB",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
