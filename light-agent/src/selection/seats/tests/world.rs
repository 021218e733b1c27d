//! A site in simulated time: Protection Servers that live and die, agents that choose.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use palisade_protocol::bounded::{List, Text};
use palisade_protocol::control::{
    InfrastructurePath, LicenceState, SvmAddress, SvmEntry, SvmList, SvmReport,
};
use palisade_protocol::ids::{AgentId, SvmId};
use palisade_protocol::scan::LoadHint;
use palisade_protocol::selection::{Chooser, Measured, Reach, rank};
use palisade_protocol::verdict::{EngineGeneration, Generation};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use uuid::Uuid;

use super::*;
use crate::selection::turn::News;

/// How long an attempt at one that is dead takes.
pub const TIMES_OUT: Duration = Duration::from_secs(3);
/// Looks of one agent in a simulated minute: more are a loop.
const MAX_TURNS_PER_MINUTE: f64 = 600.0;

/// A session of the simulation.
pub struct Fake {
    pub id: SvmId,
    target: Target,
    since: Instant,
    over: RefCell<Option<String>>,
    shown: Cell<Measurement>,
}

impl Session for Rc<Fake> {
    fn id(&self) -> SvmId {
        self.id
    }
    fn target(&self) -> &Target {
        &self.target
    }
    fn is(&self, target: &Target) -> bool {
        target.id == Some(self.id)
    }
    fn since(&self) -> Instant {
        self.since
    }
    fn over(&self) -> Option<String> {
        self.over.borrow().clone()
    }
    fn measured(&self) -> Measurement {
        self.shown.get()
    }
}

/// A Protection Server.
#[derive(Debug, Clone)]
pub struct Svm {
    pub entry: SvmEntry,
    /// Whether it answers.
    pub alive: bool,
    pub listed: bool,
    pub revoked: bool,
    /// As it is, whatever the list says.
    pub load: u16,
    pub round_trip: Duration,
}

impl Svm {
    /// One that lives, on another hypervisor of the guest's cluster.
    pub fn new(number: u16) -> Self {
        let report = SvmReport {
            addresses: List::cut([SvmAddress {
                network: Text::default(),
                address: SocketAddr::from(([127, 0, 0, 1], number)),
            }]),
            path: InfrastructurePath {
                datacenter: Text::cut("d"),
                cluster: Text::cut("c"),
                hypervisor: Text::cut("there"),
            },
            licence: LicenceState::Valid,
            average_load: LoadHint::default(),
            agents: 0,
            generations: List::cut([EngineGeneration {
                engine: Text::cut("e"),
                generation: Generation(1),
                fingerprint: [0; 16],
            }]),
            draining: false,
            tags: List::default(),
            problems: List::default(),
            followed: None,
            tenants: List::default(),
        };
        Self {
            entry: SvmEntry {
                id: SvmId(Uuid::from_u128(number.into())),
                name: Text::cut(&format!("svm-{number}")),
                report,
                absent: false,
            },
            alive: true,
            listed: true,
            revoked: false,
            load: 0,
            round_trip: Duration::from_millis(1),
        }
    }

    /// How far it is: 0 on the guest's hypervisor, 3 elsewhere.
    pub fn at(mut self, tier: u8) -> Self {
        let path = &mut self.entry.report.path;
        path.hypervisor = Text::cut(if tier == 0 { "here" } else { "there" });
        path.cluster = Text::cut(if tier <= 1 { "c" } else { "other" });
        path.datacenter = Text::cut(if tier <= 2 { "d" } else { "other" });
        self
    }

    fn may_be_used(&self) -> bool {
        self.alive && self.listed && !self.revoked && !self.entry.report.draining
    }

    fn kind(&self) -> (bool, bool, bool, bool) {
        let (report, here) = (&self.entry.report, home());
        let path = &report.path;
        (
            report.licence != LicenceState::Valid,
            path.datacenter != here.datacenter,
            path.cluster != here.cluster,
            path.hypervisor != here.hypervisor,
        )
    }
}

fn home() -> InfrastructurePath {
    InfrastructurePath {
        datacenter: Text::cut("d"),
        cluster: Text::cut("c"),
        hypervisor: Text::cut("here"),
    }
}

/// The list that agents have of these.
fn list_of(svms: &[Svm]) -> Arc<SvmList> {
    let listed = svms.iter().filter(|svm| svm.listed && !svm.revoked);
    let revoked = svms.iter().filter(|svm| svm.revoked);
    Arc::new(SvmList {
        etag: 1,
        own_path: home(),
        own_tags: List::default(),
        svms: List::cut(listed.map(|svm| svm.entry.clone())),
        revoked: List::cut(revoked.map(|svm| svm.entry.id)),
    })
}

/// An agent and what it has under way.
pub struct Agent {
    pub seats: Seats<Rc<Fake>>,
    id: AgentId,
    pub now: Instant,
    dice: StdRng,
    under_way: Vec<(Instant, Target)>,
    /// Each session that stood by, and when it began to.
    pub stood_by: Vec<Instant>,
    pub moves: usize,
    next: Instant,
}

impl Agent {
    pub fn new(now: Instant, seed: u64, stands_by: bool) -> Self {
        let mut dice = StdRng::seed_from_u64(seed);
        Self {
            seats: Seats::new(stands_by),
            id: AgentId(Uuid::from_u128(dice.random())),
            now,
            dice,
            under_way: Vec::new(),
            stood_by: Vec::new(),
            moves: 0,
            next: now,
        }
    }

    /// Which one is used.
    pub fn used<'a>(&self, svms: &'a [Svm]) -> Option<&'a Svm> {
        let used = self.seats.used()?;
        svms.iter().find(|svm| svm.entry.id == used.id)
    }

    pub fn spare<'a>(&self, svms: &'a [Svm]) -> Option<&'a Svm> {
        let spare = self.seats.spare()?;
        svms.iter().find(|svm| svm.entry.id == spare.id)
    }

    /// Lets time pass, in which these do not change.
    pub fn pass(&mut self, svms: &[Svm], time: Duration) {
        let (from, until) = (self.now, self.now + time);
        let list = list_of(svms);
        self.lose(svms);
        self.next = self.now;
        let mut turns = 0.0;
        while self.next <= until {
            self.now = self.next.max(self.now);
            self.end_attempts(svms);
            self.turn(svms, &list);
            turns += 1.0;
            let minutes = (self.now - from).as_secs_f64() / 60.0 + 1.0;
            assert!(turns / minutes < MAX_TURNS_PER_MINUTE, "it loops");
        }
        self.now = until;
    }

    /// Dead ones are noticed, and a changed list is heard.
    fn lose(&mut self, svms: &[Svm]) {
        for session in self.seats.used().into_iter().chain(self.seats.spare()) {
            let lives = svms
                .iter()
                .any(|svm| svm.entry.id == session.id && svm.alive);
            if !lives {
                *session.over.borrow_mut() = Some("dead".to_owned());
            }
        }
    }

    fn end_attempts(&mut self, svms: &[Svm]) {
        let now = self.now;
        for (_, target) in self.under_way.extract_if(.., |(ends, _)| *ends <= now) {
            let svm = svms
                .iter()
                .find(|svm| Some(svm.entry.id) == target.id && svm.alive);
            let outcome = svm.ok_or("it does not answer".to_owned()).map(|svm| {
                Rc::new(Fake {
                    id: svm.entry.id,
                    target: target.clone(),
                    since: now,
                    over: RefCell::default(),
                    shown: Cell::new(shown(svm, now)),
                })
            });
            let chance = self.dice.random_range(0.0..1.0);
            self.seats.connected(&target, outcome, now, chance);
        }
    }

    fn turn(&mut self, svms: &[Svm], list: &Arc<SvmList>) {
        let now = self.now;
        let of = |id: SvmId| svms.iter().find(|svm| svm.entry.id == id);
        self.seats.measure(now);
        let chooser = Chooser {
            agent: self.id,
            path: &list.own_path,
            tags: &list.own_tags,
            reach: Reach::Any,
        };
        let ranking = rank(&chooser, &list.svms, |id| self.seats.measurements().of(id));
        let candidates = Candidates::listed(Arc::clone(list), ranking);
        let turn = self
            .seats
            .turn(&candidates, now, self.dice.random_range(0.0..1.0));
        for news in &turn.news {
            match news {
                News::StandsBy(_) => self.stood_by.push(now),
                News::Moved(..) => self.moves += 1,
                _ => {}
            }
        }
        for target in turn.connect {
            let svm = target.id.and_then(of).filter(|svm| svm.alive);
            let takes = svm.map_or(TIMES_OUT, |svm| svm.round_trip);
            self.under_way.push((now + takes, target));
        }
        for session in turn.ask {
            if let Some(svm) = of(session.id) {
                session.shown.set(shown(svm, now));
            }
        }
        for session in self.seats.used().into_iter().chain(self.seats.spare()) {
            let svm = of(session.id).unwrap();
            assert!(!svm.revoked, "a revoked one is kept");
        }
        // Whatever happens next, and not at this very moment again.
        let ends = self.under_way.iter().map(|(ends, _)| *ends);
        self.next = ends
            .fold(turn.next, Instant::min)
            .max(now + Duration::from_millis(1));
    }

    /// What must hold once nothing has changed for long: the best that may be used is used,
    /// and another one stands by.
    pub fn assert_settled(&self, svms: &[Svm]) {
        let usable: Vec<&Svm> = svms.iter().filter(|svm| svm.may_be_used()).collect();
        let used = self.used(svms);
        let best = usable.iter().map(|svm| svm.kind()).min();
        assert_eq!(
            used.filter(|svm| svm.alive)
                .map(Svm::kind)
                .filter(|_| best.is_some()),
            best,
            "{svms:#?}"
        );
        let mut kinds: Vec<_> = usable.iter().map(|svm| svm.kind()).collect();
        kinds.sort_unstable();
        let spare = self.spare(svms).map(Svm::kind);
        assert_eq!(spare, kinds.get(1).copied(), "{svms:#?}");
    }
}

fn shown(svm: &Svm, at: Instant) -> Measurement {
    let load = LoadHint {
        load_permille: svm.load,
        queue_wait_ms: 0,
    };
    let round_trip = svm.round_trip;
    Measurement {
        at,
        measured: Measured { load, round_trip },
    }
}
