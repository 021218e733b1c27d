//! Changes that somebody answers for: each is written together with its entry of the
//! audit log, in one transaction, or not at all.

use palisade_protocol::ids::{AgentId, SvmId};
use uuid::Uuid;

use super::{
    AccountRecord, AccountToken, ApiToken, DefinitionsKey, GroupRecord, JoinTokenRecord,
    MaintenanceRecord, PolicyRecord, SessionRecord,
};
use crate::access::Grant;
use crate::secret::Hash;

/// Most accounts. The first one, made with a setup token, is always possible: whoever may
/// make accounts cannot keep the site's own people out.
pub const MAX_ACCOUNTS: i64 = 10_000;
/// Most accounts of one tenant.
pub const MAX_TENANT_ACCOUNTS: usize = 1_000;
/// Most join tokens of one tenant that are valid.
pub const MAX_JOIN_TOKENS: i64 = 1_000;
/// Most valid API tokens of one account.
pub const MAX_ACCOUNT_TOKENS: i64 = 64;

/// What is to be changed. A `revision` is the one that the caller has seen: where another
/// change was faster, nothing is done.
#[derive(Debug, Clone, Copy)]
pub enum Change<'a> {
    /// Nothing in the store: the entry alone.
    Nothing,
    /// A setup token; those before are void.
    NewSetupToken(Uuid, &'a Hash),
    /// The account that a setup token is for; the token is void then.
    Setup(&'a Hash, &'a AccountRecord),
    /// A new account.
    AddAccount(&'a AccountRecord),
    /// What an account may do.
    SetGrants(Uuid, u64, &'a [Grant]),
    /// Whether an account is disabled. Its sessions and tokens end with it.
    SetDisabled(Uuid, u64, bool),
    /// A password, by its hash. All sessions but the one that is named end.
    SetPassword(Uuid, u64, &'a str, Option<Uuid>),
    /// A second factor's secret, which is not asked for yet.
    BeginTotp(Uuid, u64, &'a [u8]),
    /// The second factor is asked for from now on: the step of the code that proved it,
    /// and the hashes of the recovery codes.
    ConfirmTotp(Uuid, u64, u64, &'a [Hash]),
    /// No second factor any more.
    RemoveTotp(Uuid, u64),
    /// A session began, of an account of this revision that is not disabled.
    AddSession(&'a SessionRecord, u64),
    /// Its password was shown again.
    ConfirmSession(Uuid),
    /// A session ended.
    EndSession(Uuid),
    /// An account that is disabled is gone, with all that was its own.
    RemoveAccount(Uuid, u64),
    /// A new token of the machine's; those of the same name are void.
    NewApiToken(&'a ApiToken),
    /// A new API token of an account.
    AddAccountToken(&'a AccountToken),
    /// An account's API token is void.
    RevokeAccountToken(Uuid),
    /// A new join token.
    AddJoinToken(&'a JoinTokenRecord),
    /// A join token is void.
    RevokeJoinToken(Uuid),
    /// An agent is revoked.
    RevokeAgent(AgentId),
    /// A Protection Server is revoked.
    RevokeSvm(SvmId),
    /// What a maintenance token allows.
    AddMaintenance(&'a MaintenanceRecord),
    /// A policy's next revision.
    PutPolicy(&'a PolicyRecord),
    /// A new group.
    AddGroup(&'a GroupRecord),
    /// A group's query and priority.
    SetGroup(Uuid, u64, &'a str, u32),
    /// A group is no more; the revisions of its policy stay.
    RemoveGroup(Uuid, u64),
    /// The first keys of the repository of definitions, by their secrets.
    MakeDefinitionsKeys {
        /// Of root and targets.
        publisher: &'a [u8],
        /// Of snapshot and timestamp.
        online: &'a [u8],
    },
    /// A key of the repository of definitions is not this server's any more.
    ForgetDefinitionsKey(DefinitionsKey),
}

/// What came of it. Only what is done has an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed {
    /// It is done.
    Done,
    /// There is nothing that it could be done to, or another change was faster.
    Nothing,
    /// The name is another one's.
    Taken,
    /// There are too many already.
    Full,
}

impl Changed {
    /// Whether it is done.
    pub fn is_done(self) -> bool {
        self == Self::Done
    }
}
