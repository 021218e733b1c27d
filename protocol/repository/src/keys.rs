//! Keys that sign, and the signatures on a document.

use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};

use crate::{RepositoryError, crypto, tuf};

/// A key as the root names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    /// Its id.
    pub id: String,
    value: Value,
}

impl PublicKey {
    /// A key as it stands in metadata.
    ///
    /// # Errors
    /// [`RepositoryError::Json`], or what is wrong with it.
    pub fn of(value: &Value) -> Result<Self, RepositoryError> {
        crypto::install();
        let key: tuf::Key = serde_json::from_value(value.clone())?;
        Ok(Self {
            id: key.key_id()?,
            value: value.clone(),
        })
    }

    /// As it stands in metadata.
    pub fn value(&self) -> &Value {
        &self.value
    }
}

/// A key that signs.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SigningKey").field(&self.public.id).finish()
    }
}

impl SigningKey {
    /// The secret of a new one (PKCS #8).
    ///
    /// # Errors
    /// [`RepositoryError::Key`] when the system gives no randomness.
    pub fn generate() -> Result<Vec<u8>, RepositoryError> {
        let secret = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
            .map_err(|_| RepositoryError::Key("the system gives no randomness"))?;
        Ok(secret.as_ref().to_vec())
    }

    /// The key with this secret (PKCS #8).
    ///
    /// # Errors
    /// [`RepositoryError::Key`] when it is none.
    pub fn from_pkcs8(secret: &[u8]) -> Result<Self, RepositoryError> {
        let pair = Ed25519KeyPair::from_pkcs8(secret)
            .map_err(|_| RepositoryError::Key("it is no Ed25519 key in PKCS #8"))?;
        let public = PublicKey::of(&json!({
            "keytype": "ed25519",
            "scheme": "ed25519",
            "keyval": { "public": hex::encode(pair.public_key().as_ref()) },
        }))?;
        Ok(Self { pair, public })
    }

    /// What others know of it.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    fn signature(&self, signed: &Value) -> Result<Value, RepositoryError> {
        let bytes = tuf::canonical_json::to_canonical_bytes(signed)?;
        let signature = hex::encode(self.pair.sign(&bytes).as_ref());
        Ok(json!({ "keyid": self.public.id, "sig": signature }))
    }
}

/// A role's document with the signatures of these keys.
///
/// # Errors
/// [`RepositoryError`].
pub fn sign(signed: &Value, keys: &[&SigningKey]) -> Result<Vec<u8>, RepositoryError> {
    let signatures = keys
        .iter()
        .map(|key| key.signature(signed))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(serde_json::to_vec(
        &json!({ "signed": signed, "signatures": signatures }),
    )?)
}

/// A signed document with the signature of one more key, in place of the one it had.
///
/// # Errors
/// [`RepositoryError`].
pub fn add_signature(document: &[u8], key: &SigningKey) -> Result<Vec<u8>, RepositoryError> {
    let mut document: Value = serde_json::from_slice(document)?;
    let signature = key.signature(&document["signed"])?;
    // Of what a peer sent: no place in it is taken for granted.
    let signatures = document.get_mut("signatures").and_then(Value::as_array_mut);
    let Some(signatures) = signatures else {
        return Err(RepositoryError::Contents(
            "a document has no signatures".to_owned(),
        ));
    };
    signatures.retain(|one| one["keyid"] != signature["keyid"]);
    signatures.push(signature);
    Ok(serde_json::to_vec(&document)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_document_gets_no_signature() {
        let secret = SigningKey::generate().unwrap();
        let key = SigningKey::from_pkcs8(&secret).unwrap();
        for text in ["[]", "1", "null", "{}", r#"{"signatures": 1}"#] {
            assert!(add_signature(text.as_bytes(), &key).is_err(), "{text}");
        }
    }
}
