//! The second factor: time-based one-time passwords (RFC 6238, as every authenticator
//! has them: HMAC-SHA-1, 30 s, 6 digits), and recovery codes for who lost it. Pure.
//!
//! A code counts once: the step that it was of is kept, and that one and all before it
//! are refused ([`step_of`] gives it, the store compares).

use ring::hmac;

use crate::secret::{self, Hash, NoRandomness};

/// Bytes of a secret (RFC 4226 recommends 160 bits).
pub const SECRET_BYTES: usize = 20;
/// Seconds of a step.
const STEP_S: u64 = 30;
/// Digits of a code.
const DIGITS: usize = 6;
/// Steps before and after the present one that count, for clocks that are off.
const SKEW_STEPS: u64 = 1;
/// Recovery codes that are given out.
pub const RECOVERY_CODES: usize = 10;
/// Random bytes of a recovery code: 100 bits would do.
const RECOVERY_BYTES: usize = 15;

/// RFC 4648's alphabet, without what is easily mistaken.
const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// A new secret.
///
/// # Errors
/// [`NoRandomness`].
pub fn secret() -> Result<[u8; SECRET_BYTES], NoRandomness> {
    let random = secret::random()?;
    Ok(random.first_chunk().copied().unwrap_or_default())
}

/// The code of a step.
fn code(secret: &[u8], step: u64) -> u32 {
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret);
    let tag = hmac::sign(&key, &step.to_be_bytes());
    let bytes = tag.as_ref();
    let at = usize::from(bytes.last().copied().unwrap_or_default() & 0x0f);
    let word = bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk::<4>())
        .map_or(0, |word| u32::from_be_bytes(*word) & 0x7fff_ffff);
    word % 10_u32.pow(DIGITS as u32)
}

/// The step that a code is of, if it is one now. All steps are compared, whichever it is.
pub fn step_of(secret: &[u8], text: &str, now_ms: u64) -> Option<u64> {
    let digits = text.len() == DIGITS && text.bytes().all(|byte| byte.is_ascii_digit());
    let given: u32 = text.parse().ok().filter(|_| digits)?;
    let now = now_ms / 1000 / STEP_S;
    let mut found = None;
    for step in now.saturating_sub(SKEW_STEPS)..=now.saturating_add(SKEW_STEPS) {
        if code(secret, step) == given {
            found = Some(step);
        }
    }
    found
}

/// What an authenticator shows now: for the command line's tests.
pub fn text_at(secret: &[u8], now_ms: u64) -> String {
    format!("{:0DIGITS$}", code(secret, now_ms / 1000 / STEP_S))
}

/// A secret as people type it into an authenticator.
pub fn base32(bytes: &[u8]) -> String {
    let mut text = String::new();
    let (mut held, mut bits) = (0_u32, 0);
    for byte in bytes {
        held = (held << 8) | u32::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            text.push(digit(held >> bits));
        }
    }
    if bits > 0 {
        text.push(digit(held << (5 - bits)));
    }
    text
}

fn digit(value: u32) -> char {
    BASE32
        .get((value & 31) as usize)
        .map_or('A', |byte| char::from(*byte))
}

/// The secret as an authenticator reads it from a picture.
pub fn uri(deployment: &str, name: &str, secret: &[u8]) -> String {
    // Names have nothing in them that a URI would need escaped but `@`, which may stand.
    format!(
        "otpauth://totp/Palisade%20{deployment}:{name}?secret={}&issuer=Palisade%20{deployment}",
        base32(secret)
    )
}

/// New recovery codes: their texts, to show once, and their hashes, to keep.
///
/// # Errors
/// [`NoRandomness`].
pub fn recovery_codes() -> Result<Vec<(String, Hash)>, NoRandomness> {
    let mut codes = Vec::new();
    for _ in 0..RECOVERY_CODES {
        let random = secret::random()?;
        let text = base32(random.get(..RECOVERY_BYTES).unwrap_or_default()).to_lowercase();
        let groups: Vec<String> = text
            .as_bytes()
            .chunks(6)
            .map(|group| String::from_utf8_lossy(group).into_owned())
            .collect();
        let text = groups.join("-");
        let hash = recovery_hash(&text);
        codes.push((text, hash));
    }
    Ok(codes)
}

/// What a recovery code is found by: hyphens, spaces and case do not count.
pub fn recovery_hash(text: &str) -> Hash {
    let bare: String = text
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .map(|c| c.to_ascii_lowercase())
        .take(64)
        .collect();
    palisade_protocol::trust::sha256(format!("palisade recovery code {bare}").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 6238, appendix B: eight digits there, of which these are the last six.
    #[test]
    fn the_standards_own_examples_come_out() {
        let secret = b"12345678901234567890";
        for (seconds, shown) in [
            (59, "287082"),
            (1_111_111_109, "081804"),
            (1_111_111_111, "050471"),
            (1_234_567_890, "005924"),
            (2_000_000_000, "279037"),
            (20_000_000_000, "353130"),
        ] {
            assert_eq!(text_at(secret, seconds * 1000), shown);
            assert_eq!(step_of(secret, shown, seconds * 1000), Some(seconds / 30));
        }
    }

    #[test]
    fn base32_is_the_standards() {
        for (bytes, text) in [
            ("", ""),
            ("f", "MY"),
            ("fo", "MZXQ"),
            ("foobar", "MZXW6YTBOI"),
        ] {
            assert_eq!(base32(bytes.as_bytes()), text);
        }
        let uri = uri("site", "jo", b"foobar");
        assert_eq!(
            uri,
            "otpauth://totp/Palisade%20site:jo?secret=MZXW6YTBOI&issuer=Palisade%20site"
        );
    }

    #[test]
    fn recovery_codes_are_all_different_and_found_however_they_are_typed() {
        let codes = recovery_codes().unwrap();
        let hashes: std::collections::BTreeSet<Hash> =
            codes.iter().map(|(_, hash)| *hash).collect();
        assert_eq!(hashes.len(), RECOVERY_CODES);
        let (text, hash) = &codes[0];
        assert_eq!(text.len(), 27, "{text}");
        assert_eq!(recovery_hash(&text.replace('-', " ").to_uppercase()), *hash);
        assert_ne!(recovery_hash(&text[1..]), *hash);
    }

    proptest! {
        #[test]
        fn a_code_counts_for_a_minute_and_a_half_at_the_most(secret: [u8; 20], now_s in 1000_u64..10_000_000_000, off_s in 0_u64..200) {
            let shown = text_at(&secret, now_s * 1000);
            let step = step_of(&secret, &shown, (now_s + off_s) * 1000);
            if (now_s + off_s) / 30 <= now_s / 30 + 1 {
                prop_assert_eq!(step.is_some(), true);
            } else if let Some(step) = step {
                // Another step's code that happens to be the same.
                prop_assert!(step > now_s / 30);
            }
        }

        #[test]
        fn what_is_no_code_is_none(text in "\\PC{0,8}", now_ms: u64) {
            let digits = text.len() == 6 && text.bytes().all(|byte| byte.is_ascii_digit());
            prop_assume!(!digits);
            prop_assert_eq!(step_of(b"12345678901234567890", &text, now_ms), None);
        }
    }
}
