//! Orders to Protection Servers, from the console's command to a session and back.

use std::time::Duration;

use palisade_daemon::cli::Output;
use palisade_daemon::control::Session;
use palisade_daemon::membership::Membership;
use palisade_integration_server::cli::definitions::{Order, definitions};
use palisade_protocol::bounded::{List, Text};
use palisade_protocol::control::{Component, FromServer, Hello, ToServer};
use palisade_protocol::definitions::{
    DefinitionsAnswer, DefinitionsCommand, DefinitionsOrder, DefinitionsStatus, GenerationEntry,
    LastOrder, Standing,
};
use palisade_protocol::spiffe::Role;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::site::{Site, host};

/// Only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A Protection Server that does nothing by itself.
struct Svm {
    session: Session,
    pushed: mpsc::Receiver<FromServer>,
}

impl Svm {
    async fn connect(member: &Membership) -> Self {
        let hello = Hello {
            version: Text::cut("0.1.0"),
            host: host("svm-1", None),
        };
        let (session, _, pushed) = Session::connect(member, hello).await.unwrap();
        Self { session, pushed }
    }

    async fn ordered(&mut self) -> DefinitionsCommand {
        let pushed = tokio::time::timeout(PATIENCE, self.pushed.recv());
        match pushed.await.unwrap().unwrap() {
            FromServer::Definitions(command) => command,
            other => panic!("{other:?}"),
        }
    }

    async fn answer(&self, number: u64, failure: Option<&str>, status: DefinitionsStatus) {
        let answer = ToServer::Definitions(DefinitionsAnswer {
            number,
            failure: failure.map(Text::cut),
            status,
        });
        assert_eq!(
            self.session.request(&answer).await.unwrap(),
            FromServer::Ack
        );
    }
}

fn status(active: u64) -> DefinitionsStatus {
    let entry = |generation, standing| GenerationEntry {
        generation,
        standing,
        engines: List::default(),
        origin: Text::cut("/var/lib/clamav"),
        added_ms: 1_700_000_000_000,
        bytes: 5,
    };
    DefinitionsStatus {
        generations: List::cut([
            entry(active - 1, Standing::Previous),
            entry(active, Standing::Active),
        ]),
        ..DefinitionsStatus::default()
    }
}

async fn site_with_svm() -> (Site, Svm, uuid::Uuid) {
    let site = Site::start("").await;
    let member = site.join(Component::Svm, host("svm-1", None)).await;
    let Role::Svm(id) = member.identity.id().role else {
        panic!()
    };
    let svm = Svm::connect(&member).await;
    (site, svm, id.0)
}

/// What the command says, or what is wrong; it runs beside the test.
fn command(
    site: &Site,
    svm: &str,
    order: Option<Order>,
) -> tokio::task::JoinHandle<anyhow::Result<Value>> {
    let client = palisade_integration_server::cli::client::Client::new(site.target()).unwrap();
    let svm = svm.to_owned();
    tokio::task::spawn_blocking(move || {
        let text = definitions(&client, &svm, order.as_ref(), Output::Json)?;
        Ok(serde_json::from_str(&text)?)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_reaches_its_protection_server_and_its_answer_comes_back() {
    let (site, mut svm, _) = site_with_svm().await;
    let shown = command(&site, "svm-1", None);
    let asked = svm.ordered().await;
    assert_eq!(asked.order, DefinitionsOrder::Show);
    svm.answer(asked.number, None, status(5)).await;
    let shown = shown.await.unwrap().unwrap();
    assert_eq!(shown["active"], json!(5));
    assert_eq!(
        shown["generations"][0],
        json!({
            "generation": 4, "state": "previous", "engines": [], "origin": "/var/lib/clamav",
            "added": "2023-11-14T22:13:20Z", "bytes": 5,
        })
    );

    for (order, wanted) in [
        (Order::Rollback, DefinitionsOrder::Rollback),
        (Order::Refresh, DefinitionsOrder::Refresh),
        (
            Order::Activate { generation: 4 },
            DefinitionsOrder::Activate { generation: 4 },
        ),
        (
            Order::Confirm {
                signature: "New".to_owned(),
            },
            DefinitionsOrder::Confirm {
                signature: Text::cut("New"),
            },
        ),
    ] {
        let given = command(&site, "svm-1", Some(order));
        let asked = svm.ordered().await;
        assert_eq!(asked.order, wanted);
        svm.answer(asked.number, None, status(4)).await;
        assert_eq!(given.await.unwrap().unwrap()["active"], json!(4));
    }

    let refused = command(&site, "svm-1", Some(Order::Rollback));
    let asked = svm.ordered().await;
    svm.answer(asked.number, Some("rules.yar:3: broken"), status(4))
        .await;
    let error = refused.await.unwrap().unwrap_err().to_string();
    assert_eq!(error, "rules.yar:3: broken");
}

/// What takes longer than a request may goes on; the command waits for its end.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_takes_long_is_followed_to_its_end() {
    let (site, mut svm, id) = site_with_svm().await;
    let given = command(&site, &id.to_string(), Some(Order::Refresh));
    let long = svm.ordered().await;
    assert_eq!(long.order, DefinitionsOrder::Refresh);
    // Not answered; what it has is asked for after a while, and again.
    for _ in 0..2 {
        let asked = svm.ordered().await;
        assert_eq!(asked.order, DefinitionsOrder::Show);
        let working = DefinitionsStatus {
            working: Some(Text::cut("looking at the source")),
            ..status(4)
        };
        svm.answer(asked.number, None, working).await;
    }
    // Nobody waits for this any more; it harms nothing.
    svm.answer(long.number, None, status(5)).await;
    let asked = svm.ordered().await;
    let failed = DefinitionsStatus {
        last: Some(LastOrder {
            number: 1,
            what: Text::cut("looking at the source"),
            failure: Some(Text::cut("rules.yar:3: broken")),
        }),
        ..status(4)
    };
    svm.answer(asked.number, None, failed).await;
    let error = given.await.unwrap().unwrap_err().to_string();
    assert_eq!(error, "rules.yar:3: broken");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_session_it_is_said_so_at_once() {
    let (site, svm, id) = site_with_svm().await;
    // While it waits, the session ends.
    let waiting = command(&site, &id.to_string(), Some(Order::Rollback));
    let mut svm = svm;
    svm.ordered().await;
    svm.session.close();
    let error = waiting.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("ended before it answered"), "{error}");

    let error = command(&site, &id.to_string(), None)
        .await
        .unwrap()
        .unwrap_err();
    assert!(error.to_string().contains("not connected"), "{error}");
    let error = command(&site, "svm-9", None).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("called svm-9"), "{error}");
    // An agent's answer is none.
    let agent = site.join(Component::Agent, host("guest", None)).await;
    let hello = Hello {
        version: Text::cut("0.1.0"),
        host: host("guest", None),
    };
    let (agent, _, _pushes) = Session::connect(&agent, hello).await.unwrap();
    let answer = ToServer::Definitions(DefinitionsAnswer {
        number: 1,
        failure: None,
        status: status(2),
    });
    assert!(agent.request(&answer).await.is_err());
}
