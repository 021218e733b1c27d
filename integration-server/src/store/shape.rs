//! Every column of every table, in the order in which rows can be put: what a backup
//! holds, whatever database it is of.

/// What a column holds, sealed or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A number of 64 bits.
    Number,
    /// Text.
    Text,
    /// Bytes.
    Bytes,
}

/// A table.
#[derive(Debug)]
pub struct Shape {
    /// Its name.
    pub table: &'static str,
    /// Its columns, those of its key first.
    pub columns: &'static [(&'static str, Kind)],
    /// How many of them are its key.
    pub key: usize,
}

use Kind::{Bytes, Number, Text};

/// All tables; what is referred to comes before what refers to it.
pub const SHAPES: [Shape; 23] = [
    Shape {
        table: "meta",
        key: 1,
        columns: &[("name", Text), ("value", Text)],
    },
    Shape {
        table: "counters",
        key: 1,
        columns: &[("name", Text), ("value", Number)],
    },
    Shape {
        table: "data_keys",
        key: 1,
        columns: &[
            ("id", Number),
            ("purpose", Text),
            ("wrapped", Bytes),
            ("made_ms", Number),
        ],
    },
    Shape {
        table: "join_tokens",
        key: 1,
        columns: &[
            ("id", Text),
            ("component", Text),
            ("tenant", Text),
            ("secret_sha256", Bytes),
            ("uses", Number),
            ("used", Number),
            ("created_ms", Number),
            ("expires_ms", Number),
            ("revoked_ms", Number),
        ],
    },
    Shape {
        table: "api_tokens",
        key: 1,
        columns: &[
            ("id", Text),
            ("name", Bytes),
            ("name_index", Bytes),
            ("token_sha256", Bytes),
            ("created_ms", Number),
            ("revoked_ms", Number),
        ],
    },
    Shape {
        table: "svms",
        key: 1,
        columns: &[
            ("id", Text),
            ("name", Bytes),
            ("name_index", Bytes),
            ("token_id", Text),
            ("key_sha256", Bytes),
            ("enrolled_ms", Number),
            ("revoked_ms", Number),
            ("last_seen_ms", Number),
            ("version", Bytes),
            ("hostname", Bytes),
            ("product_uuid", Bytes),
            ("report", Bytes),
        ],
    },
    Shape {
        table: "agents",
        key: 1,
        columns: &[
            ("id", Text),
            ("tenant", Text),
            ("name", Bytes),
            ("name_index", Bytes),
            ("token_id", Text),
            ("key_sha256", Bytes),
            ("enrolled_ms", Number),
            ("revoked_ms", Number),
            ("last_seen_ms", Number),
            ("version", Bytes),
            ("hostname", Bytes),
            ("product_uuid", Bytes),
            ("product_index", Bytes),
            ("boot_id", Bytes),
            ("report", Bytes),
        ],
    },
    Shape {
        table: "detections",
        key: 1,
        columns: &[
            ("seq", Number),
            ("agent_id", Text),
            ("id", Text),
            ("tenant", Text),
            ("time_ms", Number),
            ("received_ms", Number),
            ("path", Bytes),
            ("verdict", Text),
            ("name", Bytes),
            ("engine", Bytes),
            ("action", Text),
            ("class", Text),
            ("blake3", Bytes),
            ("sha256", Bytes),
            ("size", Number),
            ("pid", Number),
            ("member", Bytes),
            ("container", Bytes),
        ],
    },
    Shape {
        table: "quarantine_keys",
        key: 1,
        columns: &[("agent_id", Text), ("key", Bytes), ("kept_ms", Number)],
    },
    Shape {
        table: "maintenance_grants",
        key: 1,
        columns: &[
            ("id", Text),
            ("agent_id", Text),
            ("allowed", Text),
            ("from_ms", Number),
            ("until_ms", Number),
            ("reason", Bytes),
        ],
    },
    Shape {
        table: "hosts",
        key: 1,
        columns: &[
            ("id", Text),
            ("uri", Bytes),
            ("host", Bytes),
            ("datacenter", Bytes),
            ("cluster", Bytes),
            ("error", Bytes),
            ("read_ms", Number),
            ("tried_ms", Number),
        ],
    },
    Shape {
        table: "domains",
        key: 2,
        columns: &[
            ("host_id", Text),
            ("id", Text),
            ("uuid", Bytes),
            ("name", Bytes),
            ("state", Text),
            ("tags", Bytes),
        ],
    },
    Shape {
        table: "accounts",
        key: 1,
        columns: &[
            ("id", Text),
            ("name", Bytes),
            ("name_index", Bytes),
            ("password", Bytes),
            ("grants", Bytes),
            ("totp", Bytes),
            ("totp_on_ms", Number),
            ("totp_step", Number),
            ("revision", Number),
            ("created_ms", Number),
            ("password_ms", Number),
            ("login_ms", Number),
            ("disabled_ms", Number),
            ("failures", Number),
            ("failed_ms", Number),
        ],
    },
    Shape {
        table: "recovery_codes",
        key: 1,
        columns: &[
            ("id", Text),
            ("account_id", Text),
            ("code_sha256", Bytes),
            ("used_ms", Number),
        ],
    },
    Shape {
        table: "sessions",
        key: 1,
        columns: &[
            ("id", Text),
            ("account_id", Text),
            ("token_sha256", Bytes),
            ("address", Bytes),
            ("created_ms", Number),
            ("seen_ms", Number),
            ("confirmed_ms", Number),
        ],
    },
    Shape {
        table: "account_tokens",
        key: 1,
        columns: &[
            ("id", Text),
            ("account_id", Text),
            ("name", Bytes),
            ("scope", Bytes),
            ("token_sha256", Bytes),
            ("created_ms", Number),
            ("expires_ms", Number),
            ("used_ms", Number),
            ("revoked_ms", Number),
        ],
    },
    Shape {
        table: "setup_tokens",
        key: 1,
        columns: &[
            ("id", Text),
            ("token_sha256", Bytes),
            ("created_ms", Number),
            ("used_ms", Number),
        ],
    },
    Shape {
        table: "login_sources",
        key: 1,
        columns: &[("id", Text), ("failures", Number), ("failed_ms", Number)],
    },
    Shape {
        table: "audit",
        key: 1,
        columns: &[
            ("id", Text),
            ("time_ms", Number),
            ("body", Bytes),
            ("hash", Bytes),
        ],
    },
    Shape {
        table: "policies",
        key: 1,
        columns: &[
            ("id", Text),
            ("subject", Text),
            ("revision", Number),
            ("made_ms", Number),
            ("body", Bytes),
        ],
    },
    Shape {
        table: "policy_groups",
        key: 1,
        columns: &[
            ("id", Text),
            ("tenant", Text),
            ("name", Bytes),
            ("name_index", Bytes),
            ("query", Bytes),
            ("priority", Number),
            ("revision", Number),
            ("made_ms", Number),
        ],
    },
    Shape {
        table: "policy_reports",
        key: 1,
        columns: &[
            ("agent_id", Text),
            ("body", Bytes),
            ("refused", Number),
            ("reported_ms", Number),
        ],
    },
    Shape {
        table: "definitions_keys",
        key: 1,
        columns: &[("id", Text), ("secret", Bytes), ("made_ms", Number)],
    },
];

/// What refers to what: table, column, and the table whose `id` it is.
pub const REFERENCES: [(&str, &str, &str); 10] = [
    ("svms", "token_id", "join_tokens"),
    ("agents", "token_id", "join_tokens"),
    ("detections", "agent_id", "agents"),
    ("quarantine_keys", "agent_id", "agents"),
    ("maintenance_grants", "agent_id", "agents"),
    ("domains", "host_id", "hosts"),
    ("recovery_codes", "account_id", "accounts"),
    ("sessions", "account_id", "accounts"),
    ("account_tokens", "account_id", "accounts"),
    ("policy_reports", "agent_id", "agents"),
];
