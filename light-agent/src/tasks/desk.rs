//! Where tasks are ordered and asked after, by commands, schedules and the runner.
//!
//! Every change is on disk before it is answered. Clones share the desk.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::book::{Book, Wish};
use super::shown::{Live, Shown};
use super::store::Store;
use super::task::{Order, State, Task};
use crate::spool::now_ms;

/// The desk.
#[derive(Clone)]
pub struct Desk(Arc<Inner>);

struct Inner {
    book: Mutex<Book>,
    /// Of the task that has the turn.
    live: Mutex<Option<Live>>,
    store: Store,
    /// Whoever writes a task's file.
    writing: tokio::sync::Mutex<()>,
    /// Told of each change.
    changes: watch::Sender<u64>,
}

impl Desk {
    /// Opens it with the tasks that were kept.
    ///
    /// # Errors
    /// When their folder cannot be read.
    pub fn open(store: Store) -> io::Result<Self> {
        let book = Book::of(store.load()?);
        Ok(Self(Arc::new(Inner {
            book: Mutex::new(book),
            live: Mutex::default(),
            store,
            writing: tokio::sync::Mutex::default(),
            changes: watch::Sender::default(),
        })))
    }

    /// Told of each change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Takes a wish.
    ///
    /// # Errors
    /// Why not, for people.
    pub async fn add(&self, wish: Wish) -> Result<Shown, String> {
        let id = self.book().add(wish, now_ms())?;
        if let Err(error) = self.keep(id).await {
            self.book().forget(id);
            return Err(format!("the task cannot be kept: {error}"));
        }
        self.changed();
        tracing::info!(task = id, "a scan task waits for its turn");
        self.show(id)
    }

    /// Carries out an order.
    ///
    /// # Errors
    /// Why not, for people.
    pub async fn order(&self, id: u64, order: Order) -> Result<Shown, String> {
        self.book().order(id, order, now_ms())?;
        self.changed();
        let kept = self.keep(id).await;
        let ended = self
            .book()
            .get(id)
            .is_some_and(|task| task.state.has_ended());
        if ended {
            self.shrink().await;
        }
        match kept {
            Ok(()) => self.show(id),
            Err(error) => Err(format!(
                "done, but it cannot be kept and will be undone by a restart: {error}"
            )),
        }
    }

    /// All tasks, the oldest first, without their findings.
    pub fn list(&self) -> Vec<Shown> {
        let live = self.live().clone();
        let book = self.book();
        book.all()
            .map(|task| Shown::brief(task, live.as_ref()))
            .collect()
    }

    /// One task.
    ///
    /// # Errors
    /// When there is none.
    pub fn show(&self, id: u64) -> Result<Shown, String> {
        let live = self.live().clone();
        let book = self.book();
        let task = book
            .get(id)
            .ok_or_else(|| format!("there is no task {id}"))?;
        Ok(Shown::whole(task, live.as_ref()))
    }

    /// Whether a schedule's last task has not ended.
    pub fn is_open(&self, schedule: &str) -> bool {
        self.book().is_open(schedule)
    }

    /// Gives the turn to the task that waits longest.
    pub async fn begin(&self) -> Option<Task> {
        let task = self.book().begin(now_ms())?;
        self.keep_or_say(task.id).await;
        Some(task)
    }

    /// Whether this task still has the turn.
    pub fn has_turn(&self, id: u64) -> bool {
        let book = self.book();
        book.get(id)
            .is_some_and(|task| task.state == State::Running)
    }

    /// Takes down how the task that has the turn is getting on.
    pub fn set_live(&self, live: Option<Live>) {
        *self.live() = live;
    }

    /// Takes down what came of a task so far; its state is others' business.
    pub async fn note(&self, progress: &Task) {
        if let Some(task) = self.book().get_mut(progress.id) {
            *task = Task {
                state: task.state.clone(),
                ended_ms: task.ended_ms,
                ..progress.clone()
            };
        }
        self.keep_or_say(progress.id).await;
    }

    /// A task had its turn to the end.
    pub async fn end(&self, id: u64, state: State) {
        if let Some(task) = self.book().get_mut(id)
            && task.state == State::Running
        {
            task.state = state;
            task.ended_ms = Some(now_ms());
        }
        self.keep_or_say(id).await;
        self.shrink().await;
        self.changed();
    }

    /// The files.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// Does something with the files, on a thread that may wait for the disk.
    ///
    /// # Errors
    /// What the work says.
    pub async fn with_store<R: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> io::Result<R> + Send + 'static,
    ) -> io::Result<R> {
        let _turn = self.0.writing.lock().await;
        let store = self.0.store.clone();
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        done.map_err(io::Error::other)?
    }

    /// Keeps the dates on which schedules were last due.
    ///
    /// # Errors
    /// The disk's.
    pub async fn keep_last_due(
        &self,
        last: &BTreeMap<String, jiff::civil::Date>,
    ) -> io::Result<()> {
        let last = last.clone();
        self.with_store(move |store| store.save_last_due(&last))
            .await
    }

    async fn keep(&self, id: u64) -> io::Result<()> {
        let _turn = self.0.writing.lock().await;
        // As it is now, not as it was when this began to wait.
        let Some(task) = self.book().get(id).cloned() else {
            return Ok(());
        };
        let store = self.0.store.clone();
        let kept = tokio::task::spawn_blocking(move || store.save(&task)).await;
        kept.map_err(io::Error::other)?
    }

    async fn keep_or_say(&self, id: u64) {
        if let Err(error) = self.keep(id).await {
            tracing::error!(task = id, %error, "a scan task cannot be kept on disk");
        }
    }

    async fn shrink(&self) {
        let (forgotten, ended): (Vec<u64>, Vec<u64>) = {
            let mut book = self.book();
            let forgotten = book.shrink();
            // What failed may be resumed, and needs what it covers.
            let ended = book
                .all()
                .filter(|task| matches!(task.state, State::Done | State::Cancelled))
                .map(|task| task.id);
            (forgotten, ended.collect())
        };
        let done = self.with_store(move |store| {
            forgotten.iter().for_each(|id| store.forget(*id));
            ended.iter().for_each(|id| store.forget_cover(*id));
            Ok(())
        });
        let _ = done.await;
    }

    fn changed(&self) {
        self.0.changes.send_modify(|number| *number += 1);
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn live(&self) -> MutexGuard<'_, Option<Live>> {
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
