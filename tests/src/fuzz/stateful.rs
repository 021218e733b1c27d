//! Targets with a state: signed envelopes, verified contents, a worker's whole answer.

use std::sync::OnceLock;
use std::time::Duration;

use palisade_protocol::codec;
use palisade_protocol::content::{
    ContentId, FRAGMENT_BYTES, Outline, OutlineBuilder, fragment_count, has_outline,
};
use palisade_protocol::control::{ControlFrame, ToServer};
use palisade_protocol::envelope::{Opener, Sealer};
use palisade_protocol::identity::{Identity, new_key};
use palisade_protocol::ids::{AgentId, DeploymentId, ServerName, TenantId};
use palisade_protocol::scan::{ScanResult, ToAgent, VerdictSource};
use palisade_protocol::spiffe::SpiffeId;
use palisade_protocol::verdict::VerdictKind;
use palisade_svm::engine::EngineKind;
use palisade_svm::scan::tally::{End, Tally};
use palisade_worker::ipc;
use palisade_worker::message::{Outcome, WorkerEvent};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, SanType,
};

/// When envelopes are sealed and opened, in milliseconds since 1970.
const NOW_MS: u64 = 1_800_000_000_000;
/// Changes that one run makes, at the most.
const MAX_STEPS: usize = 32;

/// A session between an agent and a server, and one frame of it as it was sealed.
struct Session {
    agent: Identity,
    server: Identity,
    frame: Vec<u8>,
    message: ToServer,
}

impl Session {
    fn get() -> &'static Self {
        static SESSION: OnceLock<Session> = OnceLock::new();
        SESSION.get_or_init(Self::new)
    }

    fn new() -> Self {
        let ca = |name: &str, below| {
            let mut params = CertificateParams::default();
            params
                .distinguished_name
                .push(rcgen::DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            params
        };
        let root = CertifiedIssuer::self_signed(ca("root", 1), new_key().unwrap()).unwrap();
        let issuing =
            CertifiedIssuer::signed_by(ca("issuing", 0), new_key().unwrap(), &root).unwrap();
        let issue = |id: SpiffeId| {
            let key = new_key().unwrap();
            let mut params = CertificateParams::default();
            params.subject_alt_names = vec![SanType::URI(id.to_string().try_into().unwrap())];
            params.extended_key_usages = vec![
                ExtendedKeyUsagePurpose::ClientAuth,
                ExtendedKeyUsagePurpose::ServerAuth,
            ];
            let leaf = params.signed_by(&key, &*issuing).unwrap();
            let chain = vec![
                leaf.der().clone(),
                issuing.der().clone(),
                root.der().clone(),
            ];
            Identity::new(&key, chain).unwrap()
        };
        let deployment: DeploymentId = "fuzz".parse().unwrap();
        let tenant = TenantId::default_tenant();
        let name: ServerName = "server-1".parse().unwrap();
        let agent = issue(SpiffeId::agent(&deployment, &tenant, AgentId::random()));
        let server = issue(SpiffeId::server(&deployment, &name));
        let message = ToServer::GetSvmList { etag: 9 };
        let mut sealer = Sealer::new(agent.clone(), server.id().clone(), 5).unwrap();
        let (envelope, _) = sealer.seal(&message, None, NOW_MS).unwrap();
        let frame = codec::encode(&ControlFrame::Envelope(envelope)).unwrap();
        let session = Self {
            agent,
            server,
            frame,
            message,
        };
        assert_eq!(
            session.open(&session.frame.clone()),
            Some(session.message.clone()),
            "what is not changed is believed"
        );
        session
    }

    /// What the server believes of a frame.
    fn open(&self, frame: &[u8]) -> Option<ToServer> {
        let Ok(ControlFrame::Envelope(envelope)) = codec::decode(frame) else {
            return None;
        };
        let (from, to) = (self.agent.id().clone(), self.server.id().clone());
        let mut opener = Opener::new(self.server.trust(), from, to, 5);
        let opened = opener.open(&envelope, NOW_MS).ok()?;
        // The same again is a replay.
        assert!(opener.open::<ToServer>(&envelope, NOW_MS).is_err());
        Some(opened.message)
    }
}

/// Bytes that nobody signed: decoded, and never believed.
pub(super) fn control_frame(bytes: &[u8]) -> bool {
    assert_eq!(Session::get().open(bytes), None, "nobody signed this");
    super::wire::<ControlFrame>(bytes)
}

/// Changes to a frame that was signed, each of three bytes: a place and what is put on
/// it. What is believed after them is what was signed, or nothing.
pub(super) fn envelope(bytes: &[u8]) -> bool {
    let session = Session::get();
    let mut frame = session.frame.clone();
    for step in bytes.chunks_exact(3).take(MAX_STEPS) {
        let at = usize::from(u16::from_le_bytes([step[0], step[1]])) % frame.len();
        frame[at] ^= step[2];
    }
    let believed = session.open(&frame);
    if let Some(believed) = &believed {
        assert_eq!(*believed, session.message, "another message is believed");
    }
    believed.is_some()
}

/// A peer's claim: size, id, chaining values; then a fragment of few bytes.
pub(super) fn outline(bytes: &[u8]) -> bool {
    let Some((size, rest)) = bytes.split_first_chunk::<8>() else {
        return false;
    };
    let Some((id, rest)) = rest.split_first_chunk::<32>() else {
        return false;
    };
    let (id, size) = (ContentId(*id), u64::from_le_bytes(*size));
    let want = match fragment_count(size) {
        Ok(count) if has_outline(size) => count,
        _ => 0,
    };
    let (values, fragment) = rest.split_at((want * 32).min(rest.len() / 32 * 32));
    let values: Vec<[u8; 32]> = values
        .chunks_exact(32)
        .map(|value| value.try_into().unwrap())
        .collect();
    let Ok(outline) = Outline::verify(id, size, values) else {
        return false;
    };
    let index = outline.fragments().saturating_sub(1) as u32;
    assert!(outline.verify_fragment(index + 1, fragment).is_err());
    if outline.verify_fragment(index, fragment).is_ok() && !has_outline(size) {
        assert_eq!(ContentId::of(fragment), id, "it is not this content");
    }
    true
}

/// Contents whose sizes lie around the borders of fragments.
const SIZES: [u64; 6] = [
    1,
    FRAGMENT_BYTES - 1,
    FRAGMENT_BYTES,
    FRAGMENT_BYTES + 1,
    2 * FRAGMENT_BYTES,
    2 * FRAGMENT_BYTES + 77,
];

fn content(pick: u8) -> &'static (Vec<u8>, Outline) {
    static CONTENTS: OnceLock<Vec<(Vec<u8>, Outline)>> = OnceLock::new();
    let contents = CONTENTS.get_or_init(|| {
        SIZES
            .iter()
            .map(|size| {
                // Nothing that repeats within a fragment, or from one to the next.
                let bytes: Vec<u8> = (0..*size)
                    .flat_map(|n| (n as u32).wrapping_mul(2_654_435_761).to_le_bytes())
                    .take(*size as usize)
                    .collect();
                let mut builder = OutlineBuilder::new();
                for part in bytes.chunks(FRAGMENT_BYTES as usize) {
                    builder.push(part).unwrap();
                }
                (bytes, builder.finish())
            })
            .collect()
    });
    &contents[usize::from(pick) % contents.len()]
}

/// A content of its first byte, and steps of four bytes (what, which fragment, where):
/// only true fragments in their true places are taken.
pub(super) fn fragments(bytes: &[u8]) -> bool {
    let Some((pick, steps)) = bytes.split_first() else {
        return false;
    };
    let (whole, outline) = content(*pick);
    let count = outline.fragments();
    let mut accepted = false;
    for step in steps.chunks_exact(4).take(MAX_STEPS) {
        let index = usize::from(step[1]) % count;
        let at = usize::from(u16::from_le_bytes([step[2], step[3]]));
        let start = index * FRAGMENT_BYTES as usize;
        let own = &whole[start..whole.len().min(start + FRAGMENT_BYTES as usize)];
        let takes = |index: usize, bytes: &[u8]| {
            let index = u32::try_from(index).unwrap();
            outline.verify_fragment(index, bytes).is_ok()
        };
        match step[0] % 6 {
            0 => {
                assert!(takes(index, own), "a true fragment is refused");
                accepted = true;
            }
            1 => {
                let mut wrong = own.to_vec();
                wrong[at % own.len()] ^= step[0].max(1);
                assert!(!takes(index, &wrong), "a wrong fragment is taken");
            }
            2 => assert!(!takes(index, &own[..at % own.len()]), "a part is taken"),
            3 => assert!(!takes(count + at, own), "a place that is none"),
            4 => assert!(
                count == 1 || !takes((index + 1) % count, own),
                "in another's place"
            ),
            _ => {
                let mut values = outline.chaining_values().to_vec();
                match values.get_mut(index) {
                    Some(value) => value[at % 32] ^= step[0].max(1),
                    None => values.push([step[0]; 32]),
                }
                let verified = Outline::verify(outline.id(), outline.size(), values);
                assert!(verified.is_err(), "a wrong outline is believed");
            }
        }
    }
    accepted
}

/// All that a worker says of one content: packets, each after its length in two bytes.
/// What comes of it is clean only if each of them that says anything says so.
pub(super) fn worker_result(bytes: &[u8]) -> bool {
    let mut tally = Tally::new();
    let (mut rest, mut said, mut clean) = (bytes, 0, true);
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_le_bytes(*length)).min(after.len());
        let (packet, after) = after.split_at(length);
        rest = after;
        let Ok(event) = ipc::decode::<WorkerEvent>(packet) else {
            // The worker is not believed any more: the scan failed.
            tally.failed(EngineKind::Clamav, "a malformed packet");
            (said, clean) = (said + 1, false);
            break;
        };
        let encoded = ipc::encode(&event).expect("what was decoded can be encoded");
        assert_eq!(ipc::decode::<WorkerEvent>(&encoded).unwrap(), event);
        if let WorkerEvent::Done(done) = event {
            clean &= done.outcome == Outcome::Clean;
            said += 1;
            tally.took(EngineKind::Clamav, Duration::from_millis(done.wall_ms));
            tally.said(EngineKind::Clamav, &done.outcome, "part");
            if done.members_truncated {
                tally.limit(EngineKind::Clamav, "members");
                clean = false;
            }
        }
    }
    let Ok(end) = tally.end() else {
        return false;
    };
    if said > 0 {
        assert_eq!(end.verdict.kind() == VerdictKind::Clean, clean, "{end:?}");
        codec::encode(&answer(end)).expect("an answer fits its frame");
    }
    said > 0 && rest.is_empty()
}

/// The answer that an agent is sent.
fn answer(end: End) -> ToAgent {
    ToAgent::Verdict(ScanResult {
        verdict: end.verdict,
        details: end.details,
        source: VerdictSource::Scanned,
        engines: end.runs,
        sha256: Some([0; 32]),
        generations: Default::default(),
        older: false,
        recheck: false,
        load: Default::default(),
    })
}
