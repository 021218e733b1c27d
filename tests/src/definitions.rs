//! Signatures for tests and for the demonstration: EICAR, and markers that are
//! random per run, so that nothing can have known them before.

use std::fs;
use std::path::Path;

use anyhow::Result;
use rand::Rng as _;

/// The EICAR test file's 68 bytes, kept back to front: otherwise it would be found in
/// this very source and in every program built from it.
pub fn eicar() -> Vec<u8> {
    let reversed = br"*H+H$!ELIF-TSET-SURIVITNA-DRADNATS-RACIE$}7)CC7)^P(45XZP\4[PA@%P!O5X";
    let mut bytes = std::hint::black_box(reversed).to_vec();
    bytes.reverse();
    bytes
}

/// A pattern that exists nowhere else, and the signatures that find it.
#[derive(Debug, Clone)]
pub struct Marker {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// The signature's name, without the suffix that libclamav adds.
    pub name: String,
}

impl Marker {
    /// A new one.
    pub fn random() -> Self {
        let mut rng = rand::rng();
        let tag = hex::encode(rng.random::<[u8; 8]>());
        let bytes = format!("palisade-marker-{}", hex::encode(rng.random::<[u8; 16]>()));
        Self {
            bytes: bytes.into_bytes(),
            name: format!("Palisade_Marker_{tag}"),
        }
    }

    /// As a line of a ClamAV `.ndb` database.
    pub fn ndb(&self) -> String {
        format!("{}:0:*:{}\n", self.name, hex::encode(&self.bytes))
    }

    /// As a YARA rule.
    pub fn yara(&self) -> String {
        format!(
            "rule {} {{\n  strings:\n    $m = {{ {} }}\n  condition:\n    $m\n}}\n",
            self.name,
            self.bytes
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<Vec<_>>()
                .join(" ")
        )
    }
}

/// Writes the built-in test set: EICAR, as ClamAV's databases hold it.
///
/// # Errors
/// The file system's.
pub fn write_builtin(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let line = format!("Eicar-Test-Signature:0:0:{}\n", hex::encode(eicar()));
    fs::write(folder.join("palisade-builtin.ndb"), line)?;
    Ok(())
}
