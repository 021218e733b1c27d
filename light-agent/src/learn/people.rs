//! What was learned for people, of an agent that may be of another version.

use std::fmt;

use serde::Deserialize;

use super::advice::Advice;
use super::tally::Row;

/// Folders and programs that are shown to people.
const SHOWN: usize = 5;

/// What `status` says of it, as lines.
pub struct ForPeople<'a>(pub &'a serde_json::Value);

impl fmt::Display for ForPeople<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (key, what) in [("folders", "folder "), ("programs", "program")] {
            let rows = self.0[key].as_array().into_iter().flatten();
            for row in rows
                .take(SHOWN)
                .filter_map(|row| Row::deserialize(row).ok())
            {
                writeln!(
                    f,
                    "learned     {what} {}: {} opens, {} asked about, {} ms",
                    row.name,
                    row.opens,
                    row.asked,
                    row.took_us / 1000
                )?;
            }
        }
        let advice = self.0["suggestions"].as_array().into_iter().flatten();
        for advice in advice.filter_map(|advice| Advice::deserialize(advice).ok()) {
            writeln!(
                f,
                "suggestion  exclude {} ({} % of the cost), if nothing from outside gets there: \
                 what is excluded is not scanned when it is opened",
                advice.folder, advice.share
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn it_is_lines() {
        let shown = json!({
            "folders": [{"name": "/var/lib/x", "opens": 2000, "asked": 1900, "took_us": 5_000_000}],
            "programs": [{"name": "db", "opens": 2000, "asked": 1900, "took_us": 5_000_000}],
            "suggestions": [{"folder": "/var/lib/x", "share": 90}],
        });
        insta::assert_snapshot!(ForPeople(&shown));
        assert_eq!(ForPeople(&serde_json::Value::Null).to_string(), "");
    }
}
