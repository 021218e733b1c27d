//! Accounts, sessions, tokens and attempts in the store: one suite, both backends.

use std::sync::Arc;

use palisade_integration_server::access::{Grant, Role, Scope};
use palisade_integration_server::accounts::lockout::{ACCOUNT, ADDRESS, Counter};
use palisade_integration_server::accounts::sessions::{MAX_SESSIONS, Times};
use palisade_integration_server::store::change::MAX_ACCOUNT_TOKENS;
use palisade_integration_server::store::{
    AccountRecord, AccountToken, Attempt, Change, Changed, SessionRecord, Store,
};
use palisade_protocol::ids::AgentId;
use uuid::Uuid;

use crate::sealing::marker;
use crate::store::{Kind, detection, joined_agent, on_both};

pub fn grant(role: Role, path: &str) -> Grant {
    Grant {
        role,
        path: path.parse().unwrap(),
    }
}

pub fn account(name: &str) -> AccountRecord {
    AccountRecord {
        id: Uuid::new_v4(),
        name: name.to_owned(),
        password: "$argon2id$x".to_owned(),
        grants: vec![
            grant(Role::Auditor, "/"),
            grant(Role::Operator, "/tenants/acme"),
        ],
        totp: None,
        totp_on_ms: None,
        revision: 0,
        created_ms: 5,
        password_ms: 6,
        login_ms: None,
        disabled_ms: None,
    }
}

fn hash() -> [u8; 32] {
    let mut hash = [0; 32];
    hash[..16].copy_from_slice(Uuid::new_v4().as_bytes());
    hash
}

pub fn session(account: &AccountRecord) -> SessionRecord {
    SessionRecord {
        id: Uuid::new_v4(),
        account: account.id,
        token_sha256: hash(),
        address: "192.0.2.7".to_owned(),
        times: Times {
            created_ms: 10,
            seen_ms: 10,
            confirmed_ms: 10,
        },
    }
}

pub fn token(account: &AccountRecord) -> AccountToken {
    AccountToken {
        id: Uuid::new_v4(),
        account: account.id,
        name: "backup".to_owned(),
        scope: Grant {
            role: Role::Auditor,
            path: Scope::site(),
        },
        token_sha256: hash(),
        created_ms: 10,
        expires_ms: 1000,
        used_ms: None,
        revoked_ms: None,
    }
}

/// Without an entry: what is kept is the matter here.
async fn make(store: &dyn Store, change: Change<'_>) -> Changed {
    store.change(change, None, 50).await.unwrap()
}

async fn added(store: &dyn Store, name: &str) -> AccountRecord {
    let account = account(name);
    assert_eq!(
        make(store, Change::AddAccount(&account)).await,
        Changed::Done
    );
    account
}

on_both!(
    accounts_are_kept_and_changed_once,
    sessions_and_tokens_end_with_their_account,
    attempts_at_once_are_no_more_than_one_after_the_other,
    a_code_counts_once,
    a_setup_token_makes_one_account,
    a_tenants_detections_are_its_own
);

async fn accounts_are_kept_and_changed_once(kind: Kind) {
    let store = kind.store().await;
    let store = store.as_ref();
    let jo = added(store, "jo").await;
    assert_eq!(store.account(jo.id).await.unwrap().unwrap(), jo);
    assert_eq!(store.account_named("jo").await.unwrap().unwrap(), jo);
    assert_eq!(store.account_named("j").await.unwrap(), None);
    let taken = make(store, Change::AddAccount(&account("jo"))).await;
    assert_eq!(taken, Changed::Taken);
    added(store, "ann").await;
    let names: Vec<String> = store
        .accounts()
        .await
        .unwrap()
        .into_iter()
        .map(|a| a.name)
        .collect();
    assert_eq!(names, ["ann", "jo"]);

    let none = [];
    assert_eq!(
        make(store, Change::SetGrants(jo.id, 0, &none)).await,
        Changed::Done
    );
    // Whoever saw it before that is too late.
    let grants = [grant(Role::Admin, "/")];
    for late in [
        Change::SetGrants(jo.id, 0, &grants),
        Change::SetDisabled(jo.id, 0, true),
        Change::SetPassword(jo.id, 0, "x", None),
        Change::BeginTotp(jo.id, 0, b"x"),
        Change::RemoveTotp(jo.id, 0),
    ] {
        assert_eq!(make(store, late).await, Changed::Nothing, "{late:?}");
    }
    let now = store.account(jo.id).await.unwrap().unwrap();
    assert_eq!((now.grants.as_slice(), now.revision), (&none[..], 1));
    assert_eq!(now.password, jo.password);
    assert_eq!(
        make(store, Change::SetPassword(jo.id, 1, "new", None)).await,
        Changed::Done
    );
    let now = store.account(jo.id).await.unwrap().unwrap();
    assert_eq!((now.password.as_str(), now.password_ms), ("new", 50));
}

async fn sessions_and_tokens_end_with_their_account(kind: Kind) {
    let store = kind.store().await;
    let store = store.as_ref();
    let jo = added(store, "jo").await;
    let (one, two) = (session(&jo), session(&jo));
    for session in [&one, &two] {
        assert_eq!(
            make(store, Change::AddSession(session, 0)).await,
            Changed::Done
        );
    }
    let (found, of) = store.session(&one.token_sha256).await.unwrap().unwrap();
    assert_eq!((&found, of.id), (&one, jo.id));
    assert_eq!(of.login_ms, Some(10));
    store.saw_session(one.id, 30).await.unwrap();
    store.saw_session(one.id, 20).await.unwrap();
    assert_eq!(
        make(store, Change::ConfirmSession(one.id)).await,
        Changed::Done
    );
    let (found, _) = store.session(&one.token_sha256).await.unwrap().unwrap();
    assert_eq!((found.times.seen_ms, found.times.confirmed_ms), (30, 50));

    let key = token(&jo);
    assert_eq!(
        make(store, Change::AddAccountToken(&key)).await,
        Changed::Done
    );
    assert_eq!(
        store
            .account_token(&key.token_sha256)
            .await
            .unwrap()
            .unwrap()
            .0,
        key
    );
    store.saw_account_token(key.id, 40).await.unwrap();
    assert_eq!(
        store.account_tokens(None).await.unwrap()[0].used_ms,
        Some(40)
    );

    // Another password ends all sessions but the one that set it.
    assert_eq!(
        make(store, Change::SetPassword(jo.id, 0, "n", Some(two.id))).await,
        Changed::Done
    );
    assert!(store.session(&one.token_sha256).await.unwrap().is_none());
    assert!(store.session(&two.token_sha256).await.unwrap().is_some());
    assert_eq!(
        make(store, Change::SetDisabled(jo.id, 1, true)).await,
        Changed::Done
    );
    assert!(store.session(&two.token_sha256).await.unwrap().is_none());
    let (void, of) = store
        .account_token(&key.token_sha256)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((void.revoked_ms, of.disabled_ms), (Some(50), Some(50)));
    assert!(store.account_tokens(None).await.unwrap().is_empty());
    // And none begins any more, nor with what was proven before the change.
    for revision in [0, 1, 2] {
        let late = make(store, Change::AddSession(&session(&jo), revision)).await;
        assert_eq!(late, Changed::Nothing);
    }
    assert_eq!(
        make(store, Change::AddAccountToken(&token(&jo))).await,
        Changed::Nothing
    );
    assert_eq!(
        make(store, Change::SetDisabled(jo.id, 2, false)).await,
        Changed::Done
    );
    let old = make(store, Change::AddSession(&session(&jo), 2)).await;
    assert_eq!(old, Changed::Nothing, "of before it was disabled");
    let new = session(&jo);
    assert_eq!(
        make(store, Change::AddSession(&new, 3)).await,
        Changed::Done
    );
    assert_eq!(make(store, Change::EndSession(new.id)).await, Changed::Done);
    assert!(store.session(&new.token_sha256).await.unwrap().is_none());

    // Bounds.
    let mut first = None;
    for _ in 0..=MAX_SESSIONS {
        let mut new = session(&jo);
        new.times.seen_ms += first.map_or(0, |_| 1);
        assert_eq!(
            make(store, Change::AddSession(&new, 3)).await,
            Changed::Done
        );
        first.get_or_insert(new.token_sha256);
    }
    assert!(
        store.session(&first.unwrap()).await.unwrap().is_none(),
        "the oldest ended"
    );
    for _ in 0..MAX_ACCOUNT_TOKENS {
        assert_eq!(
            make(store, Change::AddAccountToken(&token(&jo))).await,
            Changed::Done
        );
    }
    assert_eq!(
        make(store, Change::AddAccountToken(&token(&jo))).await,
        Changed::Full
    );
    // What is void makes room, and leaves nothing behind but its entry.
    let one = store.account_tokens(Some(jo.id)).await.unwrap()[0].clone();
    let by_id = store.account_token_by_id(one.id).await.unwrap();
    assert_eq!(by_id.as_ref(), Some(&one));
    let revoked = make(store, Change::RevokeAccountToken(one.id)).await;
    assert_eq!(revoked, Changed::Done);
    assert!(store.account_token_by_id(one.id).await.unwrap().is_none());
    let again = make(store, Change::AddAccountToken(&token(&jo))).await;
    assert_eq!(again, Changed::Done);
    assert!(
        store
            .account_token(&one.token_sha256)
            .await
            .unwrap()
            .is_none()
    );

    // An account that is disabled can be removed, with all that was its own.
    let session = session(&jo);
    let begun = make(store, Change::AddSession(&session, 3)).await;
    assert_eq!(begun, Changed::Done);
    let enabled = make(store, Change::RemoveAccount(jo.id, 3)).await;
    assert_eq!(enabled, Changed::Nothing);
    let disabled = make(store, Change::SetDisabled(jo.id, 3, true)).await;
    assert_eq!(disabled, Changed::Done);
    let removed = make(store, Change::RemoveAccount(jo.id, 4)).await;
    assert_eq!(removed, Changed::Done);
    assert!(store.account(jo.id).await.unwrap().is_none());
    assert!(
        store
            .session(&session.token_sha256)
            .await
            .unwrap()
            .is_none()
    );
    assert!(store.account_tokens(Some(jo.id)).await.unwrap().is_empty());
    assert_eq!(store.check().await.unwrap(), Vec::<String>::new());
    added(store, "jo").await;
}

/// Somebody tries this account, or a name that is nobody's, from there.
fn tried(account: Option<Uuid>, source: &str) -> Vec<Counter> {
    let whose = match account {
        Some(id) => Counter::Account(id),
        None => Counter::Name(format!("n{:x}", rand::random::<u64>())),
    };
    vec![whose, Counter::Source(source.to_owned())]
}

async fn attempts_at_once_are_no_more_than_one_after_the_other(kind: Kind) {
    let place = kind.place().await;
    let (one, other) = (place.open().await.unwrap(), place.open().await.unwrap());
    let jo = added(one.as_ref(), "jo").await;
    // An account, a name that is nobody's, and a session have the same rule.
    let (nobody, session) = (marker(), Uuid::new_v4());
    for counter in [
        Counter::Account(jo.id),
        Counter::Name(nobody),
        Counter::Session(session),
    ] {
        let from = |text: &str| vec![counter.clone(), Counter::Source(text.to_owned())];
        let racers: Vec<_> = (0..24)
            .map(|n| {
                // Each from another address, through two servers.
                let store = Arc::clone(if n % 2 == 0 { &one } else { &other });
                let counters = from(&format!("{counter:?}{n}"));
                tokio::spawn(async move { store.attempt(&counters, 1000).await })
            })
            .collect();
        let mut counted = 0;
        for racer in racers {
            match racer.await.unwrap().unwrap() {
                Attempt::Counted => counted += 1,
                Attempt::TooEarly(ms) => assert!(ms > 0 && ms <= ACCOUNT.most_ms),
            }
        }
        assert_eq!(counted, ACCOUNT.free, "{counter:?}");
        let early = one.attempt(&from("b"), 1000).await.unwrap();
        assert_eq!(early, Attempt::TooEarly(ACCOUNT.first_ms), "{counter:?}");
        // One that was right forgets the account's, and its own of the address alone.
        one.take_back(&from("a0"), true).await.unwrap();
        let again = one.attempt(&from("b"), 1000).await.unwrap();
        assert_eq!(again, Attempt::Counted, "{counter:?}");
    }

    // By address, whatever the name: also one that is nobody's.
    for _ in 0..ADDRESS.free {
        let counted = one.attempt(&tried(None, "c"), 1000).await.unwrap();
        assert_eq!(counted, Attempt::Counted);
    }
    let jo = Some(jo.id);
    let early = other.attempt(&tried(jo, "c"), 1000).await.unwrap();
    assert_eq!(early, Attempt::TooEarly(ADDRESS.first_ms));
    let later = 1000 + ADDRESS.first_ms;
    let counted = one.attempt(&tried(jo, "c"), later).await.unwrap();
    assert_eq!(counted, Attempt::Counted);
    one.take_back(&tried(jo, "c"), true).await.unwrap();
    // An own account does not help with others'.
    let early = one.attempt(&tried(None, "c"), later).await.unwrap();
    assert!(matches!(early, Attempt::TooEarly(_)));
    // Long after, it is forgotten.
    let forgotten = later + ADDRESS.forgotten_ms + 1;
    for _ in 0..ADDRESS.free {
        let counted = one.attempt(&tried(None, "c"), forgotten).await.unwrap();
        assert_eq!(counted, Attempt::Counted);
    }
}

async fn a_code_counts_once(kind: Kind) {
    let store = kind.store().await;
    let jo = added(store.as_ref(), "jo").await;
    assert!(
        !store.use_totp(jo.id, 7).await.unwrap(),
        "none is asked for"
    );
    let codes = [[1; 32], [2; 32]];
    assert_eq!(
        make(store.as_ref(), Change::ConfirmTotp(jo.id, 0, 7, &codes)).await,
        Changed::Nothing,
        "there is no secret"
    );
    assert_eq!(
        make(store.as_ref(), Change::BeginTotp(jo.id, 0, b"secret")).await,
        Changed::Done
    );
    let confirm = Change::ConfirmTotp(jo.id, 1, 7, &codes);
    assert_eq!(make(store.as_ref(), confirm).await, Changed::Done);
    let now = store.account(jo.id).await.unwrap().unwrap();
    assert_eq!(
        (now.totp.as_deref(), now.totp_on_ms),
        (Some(&b"secret"[..]), Some(50))
    );
    assert_eq!(
        make(store.as_ref(), Change::BeginTotp(jo.id, 2, b"x")).await,
        Changed::Nothing
    );

    assert!(
        !store.use_totp(jo.id, 7).await.unwrap(),
        "it proved the secret"
    );
    let racers: Vec<_> = (0..12)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let code = store.use_totp(jo.id, 8).await.unwrap();
                (
                    code,
                    store.use_recovery_code(jo.id, &[1; 32], 9).await.unwrap(),
                )
            })
        })
        .collect();
    let (mut by_code, mut by_recovery) = (0, 0);
    for racer in racers {
        let (code, recovery) = racer.await.unwrap();
        by_code += usize::from(code);
        by_recovery += usize::from(recovery);
    }
    assert_eq!((by_code, by_recovery), (1, 1));
    assert!(!store.use_totp(jo.id, 6).await.unwrap(), "of before");
    assert!(store.use_totp(jo.id, 9).await.unwrap());
    assert!(!store.use_recovery_code(jo.id, &[3; 32], 9).await.unwrap());
    assert_eq!(
        make(store.as_ref(), Change::RemoveTotp(jo.id, 2)).await,
        Changed::Done
    );
    assert!(!store.use_recovery_code(jo.id, &[2; 32], 9).await.unwrap());
    assert!(!store.use_totp(jo.id, 99).await.unwrap());
}

async fn a_setup_token_makes_one_account(kind: Kind) {
    let store = kind.store().await;
    assert!(!store.has_setup_token(None).await.unwrap());
    let (old, new) = ([1; 32], [2; 32]);
    for hash in [&old, &new] {
        let change = Change::NewSetupToken(Uuid::new_v4(), hash);
        assert_eq!(make(store.as_ref(), change).await, Changed::Done);
    }
    let void = make(store.as_ref(), Change::Setup(&old, &account("jo"))).await;
    assert_eq!(void, Changed::Nothing);
    let racers: Vec<_> = (0..6)
        .map(|n| {
            let store = Arc::clone(&store);
            let account = account(&format!("a{n}"));
            tokio::spawn(async move { make(store.as_ref(), Change::Setup(&new, &account)).await })
        })
        .collect();
    let mut done = 0;
    for racer in racers {
        done += usize::from(racer.await.unwrap().is_done());
    }
    assert_eq!((done, store.accounts().await.unwrap().len()), (1, 1));
    assert!(!store.has_setup_token(None).await.unwrap());
    // A name that is taken leaves the token as it was.
    let third = [3; 32];
    make(
        store.as_ref(),
        Change::NewSetupToken(Uuid::new_v4(), &third),
    )
    .await;
    assert!(store.has_setup_token(Some(&third)).await.unwrap());
    assert!(!store.has_setup_token(Some(&new)).await.unwrap());
    let name = store.accounts().await.unwrap()[0].name.clone();
    let taken = make(store.as_ref(), Change::Setup(&third, &account(&name))).await;
    assert_eq!(taken, Changed::Taken);
    assert!(store.has_setup_token(None).await.unwrap());
}

async fn a_tenants_detections_are_its_own(kind: Kind) {
    let store = kind.store().await;
    let mut agents = Vec::new();
    for tenant in ["acme", "other", "third"] {
        let mut token = crate::store::token(palisade_protocol::control::Component::Agent, 1);
        token.tenant = tenant.parse().unwrap();
        store.add_join_token(&token).await.unwrap();
        let new = crate::store::component(&token);
        store.join(&new, 10).await.unwrap();
        agents.push(AgentId(new.id));
    }
    agents.push(joined_agent(store.as_ref()).await);
    for n in 0..3 {
        for agent in &agents {
            let found = [detection(format!("/{n}").as_bytes())];
            store.add_detections(*agent, &found, 12).await.unwrap();
        }
    }
    let of = async |tenants: &[&str], before| {
        let tenants: Vec<String> = tenants.iter().map(|name| (*name).to_owned()).collect();
        store.detections_of(&tenants, before, 2).await.unwrap()
    };
    let page = of(&["acme"], None).await;
    assert_eq!(page.items.len(), 2);
    assert!(
        page.items
            .iter()
            .all(|found| found.tenant.as_str() == "acme")
    );
    let rest = of(&["acme"], page.next).await;
    assert_eq!((rest.items.len(), rest.next), (1, None));
    let two = of(&["acme", "third"], None).await;
    assert!(
        two.items
            .iter()
            .all(|found| found.tenant.as_str() != "other")
    );
    assert_eq!(two.items.len(), 2);
    assert!(of(&[], None).await.items.is_empty());
    assert!(of(&["nobody"], None).await.items.is_empty());
}
