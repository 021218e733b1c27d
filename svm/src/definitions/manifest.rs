//! What is known of a generation besides its files.

use std::path::PathBuf;

use palisade_protocol::bounded::{List, Text};
use palisade_protocol::verdict::{EngineGeneration, Generation, Generations};
use serde::{Deserialize, Serialize};

use crate::engine::EngineKind;

/// What a generation holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Its number.
    pub generation: u64,
    /// The engines that have definitions in it, in [`EngineKind::ALL`]'s order.
    pub engines: Vec<EngineManifest>,
    /// The directory that it was copied from.
    #[serde(default)]
    pub origin: PathBuf,
    /// When, in milliseconds since 1970.
    #[serde(default)]
    pub added_ms: u64,
    /// Bytes of its files.
    #[serde(default)]
    pub bytes: u64,
}

/// One engine's definitions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineManifest {
    /// Which engine.
    pub engine: EngineKind,
    /// The generation that first had exactly these.
    pub generation: u64,
    /// Over their names and bytes.
    #[serde(with = "hex::serde")]
    pub fingerprint: [u8; 16],
}

/// Fingerprints of all engines' definitions, whatever their numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prints(Vec<Print>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Print {
    engine: EngineKind,
    #[serde(with = "hex::serde")]
    fingerprint: [u8; 16],
}

impl Manifest {
    /// What makes two generations the same definitions.
    pub fn prints(&self) -> Prints {
        let print = |engine: &EngineManifest| Print {
            engine: engine.engine,
            fingerprint: engine.fingerprint,
        };
        Prints(self.engines.iter().map(print).collect())
    }

    /// As messages carry it.
    pub fn generations(&self) -> Generations {
        List::cut(self.engines.iter().map(|engine| EngineGeneration {
            engine: Text::cut(engine.engine.name()),
            generation: Generation(engine.generation),
            fingerprint: engine.fingerprint,
        }))
    }
}
