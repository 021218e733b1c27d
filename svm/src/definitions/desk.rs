//! When the steps of definitions run: one at a time, whoever asks.
//!
//! ```text
//!  every poll_s ─┐
//!  SIGHUP ───────┼──► one task ──► Keeper (a blocking thread) ──► Scanner::activate ──► told
//!  orders ───────┘       │
//!                        └──► status, readable at any time
//! ```
//!
//! Orders come from the local socket ([`crate::local`]) and from the Integration
//! Server ([`crate::report`]); both see the same answers.

use std::path::PathBuf;
use std::time::Duration;

use palisade_protocol::bounded::Text;
use palisade_protocol::definitions::{DefinitionsOrder, DefinitionsStatus, Failure, LastOrder};
use palisade_protocol::verdict::SignatureName;
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};

use super::{Change, DefinitionsError, Keeper};
use crate::brake::Brake;
use crate::cache::now_ms;
use crate::scan::Scanner;

/// Orders that may wait for their turn.
const MAX_WAITING: usize = 4;

/// What can be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// A look whether the source has anything new.
    Look,
    /// The same, and what is known to be bad is tried again.
    Refresh,
    /// A kept generation.
    Activate(u64),
    /// The generation before.
    Rollback,
    /// A braked signature.
    Confirm(SignatureName),
    /// A directory.
    Import {
        /// Which.
        directory: PathBuf,
        /// It is not put in force.
        stage_only: bool,
    },
}

impl Order {
    /// What the Integration Server asks for; none when it only wants to be told.
    pub fn of(order: DefinitionsOrder) -> Option<Self> {
        match order {
            DefinitionsOrder::Show => None,
            DefinitionsOrder::Refresh => Some(Self::Refresh),
            DefinitionsOrder::Rollback => Some(Self::Rollback),
            DefinitionsOrder::Activate { generation } => Some(Self::Activate(generation)),
            DefinitionsOrder::Confirm { signature } => Some(Self::Confirm(signature)),
        }
    }

    /// Does it.
    ///
    /// # Errors
    /// The keeper's.
    pub fn carry_out(
        &self,
        keeper: &mut Keeper,
        brake: &Brake,
    ) -> Result<Change, DefinitionsError> {
        match self {
            Self::Confirm(name) => match brake.confirm(name) {
                true => Ok(Change::Confirmed(name.to_string())),
                false => Err(DefinitionsError::NotBraked {
                    name: name.to_string(),
                }),
            },
            Self::Look => keeper.refresh(),
            Self::Refresh => keeper.look_again(),
            Self::Activate(number) => keeper.activate(*number),
            Self::Rollback => keeper.roll_back(),
            Self::Import {
                directory,
                stage_only,
            } => keeper.import(directory, *stage_only),
        }
    }

    fn doing(&self) -> String {
        match self {
            Self::Look | Self::Refresh => "looking at the source".to_owned(),
            Self::Activate(number) => format!("activating generation {number}"),
            Self::Rollback => "rolling back".to_owned(),
            Self::Confirm(name) => format!("confirming {name}"),
            Self::Import { directory, .. } => format!("importing {}", directory.display()),
        }
    }
}

impl Change {
    /// What was done, for people.
    pub fn said(&self) -> String {
        match self {
            Self::Unchanged => "nothing changed".to_owned(),
            Self::Staged(number) => format!("generation {number} is kept, and not in force"),
            Self::Confirmed(name) => format!("{name} acts from here on"),
            Self::Activated(set) => format!("generation {} is in force", set.number()),
        }
    }
}

/// What was done, or why it could not be.
type Done = Result<String, Failure>;

/// What became of an order.
#[derive(Debug, Clone)]
pub struct Answer {
    /// What was done, or why it could not be.
    pub done: Result<String, Failure>,
    /// What there is now.
    pub status: DefinitionsStatus,
}

/// Takes orders. Clones share it.
#[derive(Debug, Clone)]
pub struct Desk {
    orders: mpsc::Sender<(Order, oneshot::Sender<Done>)>,
    status: watch::Receiver<DefinitionsStatus>,
    brake: Brake,
}

/// The desk's task, to be run.
#[derive(Debug)]
pub struct Clerk {
    keeper: Keeper,
    scanner: Scanner,
    brake: Brake,
    orders: mpsc::Receiver<(Order, oneshot::Sender<Done>)>,
    status: watch::Sender<DefinitionsStatus>,
}

impl Desk {
    /// A desk for a keeper that has started.
    pub fn new(keeper: Keeper, scanner: Scanner, brake: Brake) -> (Self, Clerk) {
        let (sender, orders) = mpsc::channel(MAX_WAITING);
        let (publish, status) = watch::channel(keeper.status());
        let clerk = Clerk {
            keeper,
            scanner,
            brake: brake.clone(),
            orders,
            status: publish,
        };
        let desk = Self {
            orders: sender,
            status,
            brake,
        };
        (desk, clerk)
    }

    /// What there is, and what is being done.
    pub fn status(&self) -> DefinitionsStatus {
        DefinitionsStatus {
            braked: self.brake.braked(),
            ..self.status.borrow().clone()
        }
    }

    /// Somebody is there who carries orders out.
    pub fn is_attended(&self) -> bool {
        !self.orders.is_closed()
    }

    /// Has an order carried out, in its turn; it goes on if nobody waits for it.
    pub async fn order(&self, order: Order) -> Answer {
        let (reply, answer) = oneshot::channel();
        let refused = |why: &str| Answer {
            done: Err(Text::cut(why)),
            status: self.status(),
        };
        if self.orders.try_send((order, reply)).is_err() {
            let working = self.status().working;
            let doing = working.as_ref().map_or("stopping", |text| text.as_str());
            return refused(&format!("it is busy ({doing}); ask again later"));
        }
        match answer.await {
            Ok(done) => Answer {
                done,
                status: self.status(),
            },
            Err(_) => refused("it is stopping; nothing was changed"),
        }
    }
}

impl Clerk {
    /// Works until the task is dropped. `changed` is called after each change of what
    /// is in force.
    pub async fn run(
        mut self,
        mut hangup: Signal,
        every: Duration,
        changed: impl Fn() + Send + Sync,
    ) {
        let mut looks = tokio::time::interval_at(Instant::now() + every, every);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let asked = tokio::select! {
                _ = looks.tick() => None,
                Some(()) = hangup.recv() => {
                    tracing::info!("SIGHUP: looking for new definitions");
                    Some((Order::Refresh, None))
                }
                Some((order, reply)) = self.orders.recv() => Some((order, Some(reply))),
            };
            let (order, reply) = asked.unwrap_or((Order::Look, None));
            let Some((clerk, done)) = self.carry_out(order, reply.is_some(), &changed).await else {
                return;
            };
            self = clerk;
            if let Some(reply) = reply {
                // Whoever asked may be gone.
                let _ = reply.send(done);
            }
        }
    }

    /// Does it on a thread that may block; `None` when that thread broke.
    async fn carry_out(
        self,
        order: Order,
        ordered: bool,
        changed: &(impl Fn() + Send + Sync),
    ) -> Option<(Self, Done)> {
        let Self {
            mut keeper,
            scanner,
            brake,
            orders,
            status,
        } = self;
        let doing = order.doing();
        status.send_modify(|status| status.working = Some(Text::cut(&doing)));
        let is_look = matches!(order, Order::Look | Order::Refresh);
        let again = order != Order::Look;
        let (scans, brakes) = (scanner.clone(), brake.clone());
        let worked = tokio::task::spawn_blocking(move || {
            let done = order.carry_out(&mut keeper, &brakes);
            let activated = matches!(done, Ok(Change::Activated(_)));
            let said = done.as_ref().map(Change::said).map_err(ToString::to_string);
            if let Ok(Change::Activated(set)) = done {
                brakes.in_force(&keeper.parts(), now_ms());
                // Waits for the end of engines that nobody uses any more.
                scans.activate(set);
            }
            (keeper, said, activated)
        });
        let (keeper, said, activated) = match worked.await {
            Ok(worked) => worked,
            Err(error) => {
                tracing::error!(%error, "definitions are no longer looked after");
                return None;
            }
        };
        let done = said.map_err(|error| Failure::cut(&error));
        let before = status.borrow().clone();
        log(&doing, is_look, again, &done, before.problem.as_ref());
        let mut now = keeper.status();
        now.problem = match (&done, is_look) {
            (Err(problem), true) => Some(problem.clone()),
            // A look that finds what is known to be bad finds nothing new.
            (Ok(_), true) if !activated && !again => before.problem,
            (_, true) => None,
            (_, false) => before.problem,
        };
        now.last = before.last;
        if ordered {
            let number = now.last.as_ref().map_or(0, |last| last.number) + 1;
            let what = match &done {
                Ok(said) => format!("{doing}: {said}"),
                Err(_) => doing,
            };
            now.last = Some(LastOrder {
                number,
                what: Text::cut(&what),
                failure: done.as_ref().err().cloned(),
            });
        }
        status.send_replace(now);
        if activated {
            changed();
        }
        let clerk = Self {
            keeper,
            scanner,
            brake,
            orders,
            status,
        };
        Some((clerk, done))
    }
}

/// Says what came of a step; what is wrong with the source, once.
fn log(doing: &str, is_look: bool, again: bool, done: &Done, known: Option<&Failure>) {
    match done {
        Err(error) if is_look && (again || known != Some(error)) => tracing::error!(
            %error,
            "the definitions' source cannot be used; the last good generation stays in force"
        ),
        Err(_) if is_look => {}
        Err(error) => tracing::error!(doing, %error, "an order about definitions failed"),
        Ok(said) if !is_look => tracing::info!(doing, said, "an order about definitions was done"),
        Ok(_) => {}
    }
}
