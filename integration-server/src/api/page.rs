//! Lists, in pages with a cursor: never an offset.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Some items of a list.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// The cursor to ask for what follows; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl<T> Page<T> {
    /// A list that is all here.
    pub fn whole(items: Vec<T>) -> Self {
        Self { items, next: None }
    }
}
