//! Which columns are sealed: one table. What moves all of them (the first sealing,
//! another data key) goes by it.

/// A table with sealed columns.
#[derive(Debug)]
pub struct Table {
    /// Its name.
    pub name: &'static str,
    /// The columns that name a row; all of them are text.
    pub key: &'static [&'static str],
    /// Those that are sealed; the first one is never NULL.
    pub columns: &'static [Column],
}

/// A sealed column.
#[derive(Debug)]
pub struct Column {
    /// Its name.
    pub name: &'static str,
    /// The column of its keyed index.
    pub index: Option<&'static str>,
    /// Whether it was text before it was sealed.
    pub text: bool,
}

const fn text(name: &'static str) -> Column {
    Column {
        name,
        index: None,
        text: true,
    }
}

const fn found(name: &'static str, index: &'static str) -> Column {
    Column {
        name,
        index: Some(index),
        text: true,
    }
}

const fn bytes(name: &'static str) -> Column {
    Column {
        name,
        index: None,
        text: false,
    }
}

/// Tables whose rows keep their keys when they are sealed.
pub const TABLES: [Table; 6] = [
    Table {
        name: "api_tokens",
        key: &["id"],
        columns: &[found("name", "name_index")],
    },
    Table {
        name: "svms",
        key: &["id"],
        columns: &[
            found("name", "name_index"),
            text("version"),
            text("hostname"),
            text("product_uuid"),
            text("report"),
        ],
    },
    Table {
        name: "agents",
        key: &["id"],
        columns: &[
            found("name", "name_index"),
            text("version"),
            text("hostname"),
            found("product_uuid", "product_index"),
            text("boot_id"),
            text("report"),
        ],
    },
    Table {
        name: "detections",
        key: &["agent_id", "id"],
        columns: &[
            bytes("path"),
            text("name"),
            text("engine"),
            bytes("blake3"),
            bytes("sha256"),
            text("member"),
            text("container"),
        ],
    },
    Table {
        name: "quarantine_keys",
        key: &["agent_id"],
        columns: &[bytes("key")],
    },
    Table {
        name: "maintenance_grants",
        key: &["id"],
        columns: &[text("reason")],
    },
];

/// Tables that came after values were sealed: nothing in them was ever plain.
pub const LATER: [Table; 8] = [
    Table {
        name: "accounts",
        key: &["id"],
        columns: &[
            found("name", "name_index"),
            text("password"),
            text("grants"),
            bytes("totp"),
        ],
    },
    Table {
        name: "sessions",
        key: &["id"],
        columns: &[text("address")],
    },
    Table {
        name: "account_tokens",
        key: &["id"],
        columns: &[text("name"), text("scope")],
    },
    Table {
        name: "audit",
        key: &["id"],
        columns: &[text("body")],
    },
    Table {
        name: "policies",
        key: &["id"],
        columns: &[text("body")],
    },
    Table {
        name: "policy_groups",
        key: &["id"],
        columns: &[found("name", "name_index"), text("query")],
    },
    Table {
        name: "policy_reports",
        key: &["agent_id"],
        columns: &[text("body")],
    },
    Table {
        name: "definitions_keys",
        key: &["id"],
        columns: &[bytes("secret")],
    },
];

/// Tables whose keys are keyed indexes themselves: a hypervisor's URI and a domain's
/// UUID tell who they are.
pub const INVENTORY: [Table; 2] = [
    Table {
        name: "hosts",
        key: &["id"],
        columns: &[
            text("uri"),
            text("host"),
            text("datacenter"),
            text("cluster"),
            text("error"),
        ],
    },
    Table {
        name: "domains",
        key: &["host_id", "id"],
        columns: &[text("uuid"), text("name"), text("tags")],
    },
];
