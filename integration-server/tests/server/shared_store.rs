//! What only a database that is shared and far away can do: several servers write at
//! once, it goes and comes back, it refuses. PostgreSQL alone.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use palisade_integration_server::store::postgres::{Address, CALL};
use palisade_integration_server::store::{Database, Opening, Place, Spent, Store};
use palisade_protocol::control::Component;
use palisade_protocol::ids::AgentId;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use uuid::Uuid;

use crate::postgres::{Postgres, give, place};
use crate::store::{component, detection, token};

/// Beyond a bound that is promised: a busy machine's own delay.
const SLACK: Duration = Duration::from_secs(5);

async fn open(place: &Place) -> Arc<dyn Store> {
    place.open().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_start_at_once_migrate_once() {
    let Some(postgres) = Postgres::start("servers_that_start_at_once_migrate_once") else {
        return;
    };
    let place = postgres.place().await;
    let starts: Vec<_> = (0..6)
        .map(|_| {
            let place = place.clone();
            tokio::spawn(async move { place.open().await.map(drop) })
        })
        .collect();
    for start in starts {
        start.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_spend_no_token_twice_and_give_no_name_twice() {
    let Some(postgres) = Postgres::start("servers_spend_no_token_twice") else {
        return;
    };
    let place = postgres.place().await;
    let servers = [open(&place).await, open(&place).await, open(&place).await];
    // Two tokens: joins with different ones do not wait for each other's use.
    let tokens = [token(Component::Agent, 12), token(Component::Agent, 12)];
    for token in &tokens {
        servers[0].add_join_token(token).await.unwrap();
    }
    let racers: Vec<_> = (0..48)
        .map(|n| {
            let store = Arc::clone(&servers[n % servers.len()]);
            let new = component(&tokens[n % tokens.len()]);
            tokio::spawn(async move { store.join(&new, 10).await.unwrap() })
        })
        .collect();
    let mut names = Vec::new();
    for racer in racers {
        if let Spent::Joined(name) = racer.await.unwrap() {
            names.push(name);
        }
    }
    assert_eq!(names.len(), 24, "each token has twelve uses");
    let unlike: BTreeSet<&String> = names.iter().collect();
    assert_eq!(unlike.len(), 24, "{names:?}");
    for token in &tokens {
        let kept = servers[1].join_token(token.id).await.unwrap().unwrap();
        assert_eq!(kept.used, 12);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn epochs_of_several_servers_are_all_different() {
    let Some(postgres) = Postgres::start("epochs_of_several_servers") else {
        return;
    };
    let place = postgres.place().await;
    let servers = [open(&place).await, open(&place).await];
    let racers: Vec<_> = (0..40)
        .map(|n| {
            let store = Arc::clone(&servers[n % 2]);
            tokio::spawn(async move { store.next_epoch(1000).await.unwrap() })
        })
        .collect();
    let mut epochs = BTreeSet::new();
    for racer in racers {
        epochs.insert(racer.await.unwrap());
    }
    assert_eq!(epochs.len(), 40);
}

/// Gone at once, as with its machine; then back, and nobody started the server anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_gone_and_back_is_used_again() {
    let Some(mut postgres) = Postgres::start("a_database_that_is_gone_and_back") else {
        return;
    };
    let store = open(&postgres.place().await).await;
    let token = token(Component::Agent, 1);
    store.add_join_token(&token).await.unwrap();
    for _ in 0..2 {
        postgres.stop();
        let began = Instant::now();
        let error = store.join_tokens().await.unwrap_err().to_string();
        assert!(began.elapsed() < CALL + SLACK, "{:?}", began.elapsed());
        assert!(error.contains("cannot be reached"), "{error}");
        assert!(error.contains("postgres://palisade@/"), "{error}");
        assert!(store.next_epoch(1).await.is_err());
        postgres.go();
        assert_eq!(store.join_tokens().await.unwrap(), vec![token.clone()]);
        store.next_epoch(1).await.unwrap();
    }
}

/// It neither answers nor ends the connection: like a network that lost its cable.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_hangs_holds_no_call_for_ever() {
    let Some(postgres) = Postgres::start("a_database_that_hangs") else {
        return;
    };
    let store = open(&postgres.place().await).await;
    store.next_epoch(1).await.unwrap();
    postgres.signal_all(Signal::SIGSTOP);
    let began = Instant::now();
    // More than the pool has connections: those that wait for one end, too.
    let calls: Vec<_> = (0..40)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.next_epoch(1).await })
        })
        .collect();
    for call in calls {
        let error = call.await.unwrap().unwrap_err().to_string();
        assert!(
            error.contains("did not answer") || error.contains("cannot be reached"),
            "{error}"
        );
    }
    assert!(began.elapsed() < CALL + SLACK, "{:?}", began.elapsed());
    postgres.signal_all(Signal::SIGCONT);
    // Connections that were in use are given up after a moment; the next call may
    // have to wait for that.
    crate::site::until("the database is used again", || async {
        store.next_epoch(1).await.is_ok()
    })
    .await;
}

/// Calls are in the middle of their statements when their connections lead nowhere,
/// and never say so; the database itself is there, as after a failover.
#[tokio::test(flavor = "multi_thread")]
async fn connections_that_lead_nowhere_are_given_up() {
    let Some(postgres) = Postgres::start("connections_that_lead_nowhere") else {
        return;
    };
    let name = postgres.new_database().await;
    let store = open(&place(&postgres.url("palisade", &name))).await;
    let mut lock = postgres.connect(&name).await;
    sqlx::raw_sql("BEGIN; LOCK TABLE counters")
        .execute(&mut lock)
        .await
        .unwrap();
    let began = Instant::now();
    let calls: Vec<_> = (0..40)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.next_epoch(1).await })
        })
        .collect();
    crate::site::until(
        "every connection of the pool waits for the lock",
        || async { postgres.waiting(" waiting") >= 16 },
    )
    .await;
    assert!(postgres.signal_connections(Signal::SIGSTOP) > 16);
    for call in calls {
        let error = call.await.unwrap().unwrap_err().to_string();
        assert!(
            error.contains("did not answer") || error.contains("cannot be reached"),
            "{error}"
        );
    }
    assert!(began.elapsed() < CALL + SLACK, "{:?}", began.elapsed());
    // The old connections are silent still, and others are made.
    crate::site::until("new connections serve", || async {
        store.join_tokens().await.is_ok()
    })
    .await;
    postgres.signal_connections(Signal::SIGCONT);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_database_refuses_is_named_with_its_remedy() {
    let Some(postgres) = Postgres::start("what_the_database_refuses") else {
        return;
    };
    let refused = async |url: &str| place(url).open().await.unwrap_err().to_string();

    // The control: the same database, by its owner.
    let good = postgres.new_database().await;
    let store = open(&place(&postgres.url("palisade", &good))).await;

    let none = refused(&postgres.url("palisade", "none")).await;
    assert!(
        none.contains("does not exist") && none.contains("createdb"),
        "{none}"
    );

    let nowhere = refused("postgres://palisade@localhost/d?host=/nonexistent").await;
    assert!(nowhere.contains("cannot be reached"), "{nowhere}");
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let closed = refused(&format!("postgres://palisade@127.0.0.1:{port}/d")).await;
    assert!(closed.contains("cannot be reached"), "{closed}");

    postgres
        .execute("postgres", "CREATE ROLE locked LOGIN PASSWORD 'right'")
        .await;
    let locked = postgres.url("locked", &good);
    let file = postgres.dir().join("password");
    for (password, says) in [
        ("wrong\n", "refuses this user"),
        ("right\n", "does not allow it"),
    ] {
        std::fs::write(&file, password).unwrap();
        give(&file);
        let place = with_password(&locked, &file);
        let error = place.open().await.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert!(!error.contains(password.trim()), "{error}");
    }
    std::fs::remove_file(&file).unwrap();
    let place_without = with_password(&locked, &file);
    let error = place_without.open().await.unwrap_err().to_string();
    assert!(error.contains("password file"), "{error}");

    // As a full disk or a broken one is told, by the database's own code.
    for (code, says) in [
        ("53100", "free disk space"),
        ("58030", "free disk space"),
        ("XX001", "is damaged"),
        ("25006", "is read-only"),
        ("57P03", "cannot be reached"),
    ] {
        let raise = format!(
            "CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END $$; \
             CREATE OR REPLACE TRIGGER fail BEFORE UPDATE ON counters \
             FOR EACH ROW EXECUTE FUNCTION fail()"
        );
        postgres.execute(&good, &raise).await;
        let error = store.next_epoch(1).await.unwrap_err().to_string();
        assert!(
            error.contains(says) && error.contains(&good),
            "{code}: {error}"
        );
    }
    postgres
        .execute(&good, "DROP TRIGGER fail ON counters")
        .await;
    store.next_epoch(1).await.unwrap();

    // A standby says so itself.
    let read_only = format!("ALTER DATABASE {good} SET default_transaction_read_only = on");
    postgres.execute("postgres", &read_only).await;
    let fresh = postgres.new_database().await;
    let read_only = format!("ALTER DATABASE {fresh} SET default_transaction_read_only = on");
    postgres.execute("postgres", &read_only).await;
    let error = refused(&postgres.url("palisade", &fresh)).await;
    assert!(
        error.contains("is read-only") && error.contains("primary"),
        "{error}"
    );
}

fn with_password(url: &str, file: &std::path::Path) -> Place {
    let address = Address::parse(url).unwrap();
    Place {
        database: Database::Postgres(address.into(), Some(file.to_owned())),
        master: crate::store::master(),
    }
}

/// Verified in full: the CA that is named, the host that is dialled, and not less.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_believed_for_its_ca_and_its_host_alone() {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let authority = |dir: &std::path::Path, name: &str| {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(dir.join(name), issuer.pem()).unwrap();
        issuer
    };
    let started = Postgres::start_with("a_certificate_is_believed", |dir| {
        authority(dir, "other.pem");
        let issuer = authority(dir, "ca.pem");
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(dir.join("server.pem"), certificate.pem()).unwrap();
        std::fs::write(dir.join("server.key"), key.serialize_pem()).unwrap();
        give(&dir.join("server.pem"));
        give(&dir.join("server.key"));
        vec![
            format!("listen_addresses=127.0.0.1"),
            format!("port={port}"),
            "ssl=on".to_owned(),
            format!("ssl_cert_file={}", dir.join("server.pem").display()),
            format!("ssl_key_file={}", dir.join("server.key").display()),
        ]
    });
    let Some(postgres) = started else { return };
    let address = |host: &str, ca: &str| {
        let ca = postgres.dir().join(ca);
        format!(
            "postgres://palisade@{host}:{port}/postgres?sslmode=verify-full&sslrootcert={}",
            ca.display()
        )
    };
    open(&place(&address("localhost", "ca.pem")))
        .await
        .close()
        .await;
    for (host, ca) in [("localhost", "other.pem"), ("127.0.0.1", "ca.pem")] {
        let error = place(&address(host, ca))
            .open()
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("TLS") && error.contains("sslrootcert"),
            "{host} {ca}: {error}"
        );
    }
}

/// What one server wrote, another reads: they are equal.
#[tokio::test(flavor = "multi_thread")]
async fn what_one_server_acknowledged_another_one_has() {
    let Some(postgres) = Postgres::start("what_one_server_acknowledged") else {
        return;
    };
    let place = postgres.place().await;
    let (one, other) = (open(&place).await, open(&place).await);
    let token = token(Component::Agent, 1);
    one.add_join_token(&token).await.unwrap();
    let new = component(&token);
    assert_eq!(
        other.join(&new, 10).await.unwrap(),
        Spent::Joined("guest".to_owned())
    );
    let agent = AgentId(new.id);
    assert_eq!(
        one.add_detections(agent, &[detection(b"/x")], 1)
            .await
            .unwrap(),
        1
    );
    assert_eq!(other.count_detections().await.unwrap(), 1);
    assert!(one.revoke_agent(agent, 5).await.unwrap());
    assert!(!other.revoke_agent(agent, 5).await.unwrap());
    assert_eq!(other.join_token(Uuid::new_v4()).await.unwrap(), None);
}

/// Keys are changed and all rows restored by who is alone with the database.
#[tokio::test(flavor = "multi_thread")]
async fn who_changes_what_others_rely_on_is_alone() {
    let Some(postgres) = Postgres::start("who_changes_what_others_rely_on_is_alone") else {
        return;
    };
    let place = postgres.place().await;
    let server = open(&place).await;
    let refused = async |purpose| {
        let opened = place.open_to(purpose).await;
        let error = opened.map(drop).unwrap_err().to_string();
        assert!(error.contains("is in use"), "{error}");
    };
    refused(Opening::Alone).await;
    let looking = place.open_to(Opening::Look).await.unwrap();
    drop(server);
    refused(Opening::Alone).await;
    drop(looking);
    let alone = place.open_to(Opening::Alone).await.unwrap();
    for purpose in [Opening::Serve, Opening::Look, Opening::Alone] {
        refused(purpose).await;
    }
    drop(alone);
}
