//! What a run says: a line for people, or one JSON object a line for programs.

use serde_json::{Value, json};

/// Where steps are told.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    /// JSON lines instead of sentences.
    pub json: bool,
}

impl Report {
    /// Tells a step: its fixed name, a sentence, and facts.
    pub fn step(&self, step: &str, sentence: &str, facts: &Value) {
        if self.json {
            println!(
                "{}",
                json!({ "step": step, "message": sentence, "facts": facts })
            );
        } else {
            println!("{sentence}");
        }
    }

    /// Tells what went wrong.
    pub fn failed(&self, error: &anyhow::Error) {
        if self.json {
            println!(
                "{}",
                json!({ "step": "failed", "message": format!("{error:#}") })
            );
        } else {
            eprintln!("scripts/up: {error:#}");
        }
    }
}
