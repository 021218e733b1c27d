//! Errors as the programs print them: one text, each cause once.

/// An error with its causes; one that a text before it holds already is left out.
pub fn text(error: &anyhow::Error) -> String {
    let mut out = String::new();
    for cause in error.chain().map(ToString::to_string) {
        let cause = cause.trim_end();
        if out.is_empty() {
            out.push_str(cause);
        } else if !out.contains(cause) {
            out.push_str(": ");
            out.push_str(cause);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    #[test]
    fn a_cause_is_said_once() {
        let error: anyhow::Result<()> = Err(std::io::Error::other("disk on fire").into());
        let twice = error
            .context("cannot write: disk on fire")
            .context("no luck")
            .unwrap_err();
        assert_eq!(super::text(&twice), "no luck: cannot write: disk on fire");
    }
}
