//! `/api/v1/definitions`: the site's repository of definitions, from which Protection
//! Servers pull what is signed.
//!
//! ```text
//!  missing ─► PUT files/{sha256}?from=… (in parts) ─► generations ─► wanted
//!  a publisher elsewhere: metadata/{name} ─► signs ─► targets | root
//! ```

use std::collections::BTreeMap;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query};
use axum::http::StatusCode;
use palisade_protocol::bounded::Text;
use palisade_protocol::pull::{Answer, What};
use palisade_repository::contents::{self, MAX_FILES, MAX_ORIGIN_BYTES};
use palisade_repository::{FileInfo, Generation, names, reading};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::State;
use super::auth::Caller;
use super::problem::{ApiError, Problem};
use crate::definitions::DefinitionsError;
use crate::time::{now_ms, rfc3339};

/// Largest part of a file that is sent at once, in bytes.
pub const MAX_PART_BYTES: usize = 4 * 1024 * 1024;
/// Largest list of files, or signed document, in bytes.
pub const MAX_LIST_BYTES: usize = 20 * 1024 * 1024;

/// The site's definitions.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SiteDefinitions {
    /// The generation that Protection Servers shall have; absent before the first.
    pub wanted: Option<u64>,
    /// The publisher's key, by its id; absent before the first generation.
    pub publisher: Option<String>,
    /// Whether this server holds it, and signs what is imported.
    pub signs_here: bool,
    /// What is wrong with the repository, or with the directory that is imported.
    pub problem: Option<String>,
    /// The generations, by number.
    pub generations: Vec<SiteGeneration>,
    /// What Protection Servers have.
    pub svms: Vec<Following>,
}

/// A generation of the site's definitions.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SiteGeneration {
    /// Its number.
    pub generation: u64,
    /// Whether Protection Servers shall have it.
    pub wanted: bool,
    /// What it was made of.
    pub origin: String,
    /// When (RFC 3339, UTC).
    pub added: String,
    /// How many files it has.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What a Protection Server has of the site's definitions.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Following {
    /// Its id.
    pub id: Uuid,
    /// A name for people.
    pub name: String,
    /// Whether it is connected now.
    pub connected: bool,
    /// The site's generation that is in force there; absent when none is, or it has a
    /// source of its own.
    pub generation: Option<u64>,
}

/// A generation and its files.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct GenerationFiles {
    /// The generation.
    #[serde(flatten)]
    pub about: SiteGeneration,
    /// Its files, by name.
    pub contents: Vec<NamedFile>,
}

/// A file of definitions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NamedFile {
    /// Its name: by it, engines know what it is.
    pub name: String,
    /// SHA-256 of its bytes, in hexadecimal.
    #[schema(pattern = "^[0-9a-f]{64}$")]
    pub sha256: String,
    /// How many there are.
    pub length: u64,
}

/// Files that the server may have.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Files {
    /// At most 4096.
    #[schema(max_items = 4096)]
    pub files: Vec<NamedFile>,
}

/// Files that the server does not have.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Missing {
    /// Each one once.
    pub files: Vec<MissingFile>,
}

/// A file that the server does not have.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct MissingFile {
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
    /// So many bytes of it are there: go on from there.
    pub have: u64,
}

/// Which part of a file is sent.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Part {
    /// Bytes of the whole file.
    pub length: u64,
    /// The part begins at this byte.
    #[serde(default)]
    pub from: u64,
}

/// How far a file has come.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Received {
    /// So many bytes of it are there.
    pub have: u64,
}

/// A generation to make of files that are there.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewGeneration {
    /// What it is made of, for people.
    #[schema(max_length = 512)]
    pub origin: String,
    /// At most 4096.
    #[schema(max_items = 4096)]
    pub files: Vec<NamedFile>,
    /// Whether Protection Servers shall have it; they shall, when it is not said.
    #[serde(default = "yes")]
    pub wanted: bool,
}

fn yes() -> bool {
    true
}

/// What came of a change.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Chosen {
    /// The generation that it is about.
    pub generation: u64,
}

/// Which generation Protection Servers shall have.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Choose {
    /// This one; when it is not said, the one before the wanted one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
}

/// Documents that a publisher elsewhere has signed.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Signed {
    /// A root that names another publisher's key, signed by it, and by the one before
    /// unless the server holds that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<serde_json::Value>,
    /// Targets, signed by the publisher that counts then.
    pub targets: serde_json::Value,
}

/// The site's definitions
#[utoipa::path(
    get,
    path = "/api/v1/definitions",
    operation_id = "getDefinitions",
    tag = "definitions",
    responses(
        (status = 200, body = SiteDefinitions),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn get(state: State) -> Result<Json<SiteDefinitions>, ApiError> {
    let fleet = &state.fleet;
    let overview = fleet.definitions.overview().await?;
    let wanted = overview.contents.wanted;
    let svms = fleet.store.svms().await?;
    Ok(Json(SiteDefinitions {
        wanted: (wanted != 0).then_some(wanted),
        publisher: overview.publisher,
        signs_here: overview.publisher_here,
        problem: overview.problem,
        generations: overview
            .contents
            .generations
            .iter()
            .map(|(number, generation)| about(*number, wanted, generation))
            .collect(),
        svms: svms
            .into_iter()
            .map(|svm| Following {
                id: svm.id.0,
                connected: fleet.sessions.is_connected(svm.id.0),
                generation: svm.report.and_then(|report| report.followed),
                name: svm.name,
            })
            .collect(),
    }))
}

/// One generation and its files
#[utoipa::path(
    get,
    path = "/api/v1/definitions/generations/{generation}",
    operation_id = "getGeneration",
    tag = "definitions",
    params(("generation" = u64, Path, description = "The generation's number")),
    responses(
        (status = 200, body = GenerationFiles),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn show(
    state: State,
    number: Result<Path<u64>, PathRejection>,
) -> Result<Json<GenerationFiles>, ApiError> {
    let Path(number) = number?;
    let overview = state.fleet.definitions.overview().await?;
    let contents = overview.contents;
    let generation = contents
        .generations
        .get(&number)
        .ok_or(DefinitionsError::NoGeneration(number))?;
    let named = |(name, file): (&String, &FileInfo)| NamedFile {
        name: name.clone(),
        sha256: hex::encode(file.sha256),
        length: file.length,
    };
    Ok(Json(GenerationFiles {
        about: about(number, contents.wanted, generation),
        contents: generation.files.iter().map(named).collect(),
    }))
}

/// Which of these files the server lacks
#[utoipa::path(
    post,
    path = "/api/v1/definitions/missing",
    operation_id = "findMissingFiles",
    tag = "definitions",
    request_body = Files,
    responses(
        (status = 200, body = Missing),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 413, body = Problem, content_type = "application/problem+json"),
        (status = 415, body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn missing(
    state: State,
    files: Result<Json<Files>, JsonRejection>,
) -> Result<Json<Missing>, ApiError> {
    let Json(Files { files }) = files?;
    let distinct: std::collections::BTreeSet<FileInfo> = infos(files)?.into_values().collect();
    let missing = state
        .fleet
        .definitions
        .missing(distinct.into_iter().collect())
        .await;
    let named = |(file, have): (FileInfo, u64)| MissingFile {
        sha256: hex::encode(file.sha256),
        have,
    };
    Ok(Json(Missing {
        files: missing.into_iter().map(named).collect(),
    }))
}

/// Send a part of a file
///
/// Parts come one after the other, each of at most 4 MiB. With the last one, the file is
/// hashed. A disk that is full answers 507, and nothing of the file is left.
#[utoipa::path(
    put,
    path = "/api/v1/definitions/files/{sha256}",
    operation_id = "putDefinitionsFile",
    tag = "definitions",
    params(
        ("sha256" = String, Path, description = "SHA-256 of the whole file, in hexadecimal"),
        Part,
    ),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses(
        (status = 200, body = Received),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json"),
        (status = 413, body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
        (status = 507, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn put_file(
    state: State,
    sha256: Result<Path<String>, PathRejection>,
    part: Result<Query<Part>, QueryRejection>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Json<Received>, ApiError> {
    let Path(sha256) = sha256?;
    let Query(part) = part?;
    let bytes = bytes.map_err(|_| ApiError::TooLarge)?;
    let sha256 = contents::hash(&sha256)
        .ok_or_else(|| ApiError::BadRequest(format!("{sha256:?} is no SHA-256")))?;
    let file = FileInfo {
        sha256,
        length: part.length,
    };
    let definitions = &state.fleet.definitions;
    let have = definitions.receive(file, part.from, bytes.into()).await?;
    Ok(Json(Received { have }))
}

/// Make a generation of files that are there
///
/// It is signed, and Protection Servers that follow the site's definitions pull it.
#[utoipa::path(
    post,
    path = "/api/v1/definitions/generations",
    operation_id = "createGeneration",
    tag = "definitions",
    request_body = NewGeneration,
    responses(
        (status = 201, body = Chosen),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json"),
        (status = 413, body = Problem, content_type = "application/problem+json"),
        (status = 415, body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
        (status = 507, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn import(
    state: State,
    caller: Caller,
    new: Result<Json<NewGeneration>, JsonRejection>,
) -> Result<(StatusCode, Json<Chosen>), ApiError> {
    let Json(new) = new?;
    if new.origin.len() > MAX_ORIGIN_BYTES || new.origin.chars().any(char::is_control) {
        let why = format!("origin: one line of at most {MAX_ORIGIN_BYTES} bytes is possible");
        return Err(ApiError::Unprocessable(why));
    }
    let now_ms = now_ms();
    let generation = Generation {
        added_ms: now_ms,
        origin: new.origin,
        files: infos(new.files)?,
    };
    let entry = |number| caller.entry("definitions.import", number, now_ms);
    let definitions = &state.fleet.definitions;
    let generation = definitions.import(generation, new.wanted, entry).await?;
    Ok((StatusCode::CREATED, Json(Chosen { generation })))
}

/// Choose the generation that Protection Servers shall have
#[utoipa::path(
    put,
    path = "/api/v1/definitions/wanted",
    operation_id = "chooseGeneration",
    tag = "definitions",
    request_body = Choose,
    responses(
        (status = 200, body = Chosen),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json"),
        (status = 413, body = Problem, content_type = "application/problem+json"),
        (status = 415, body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
        (status = 507, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn choose(
    state: State,
    caller: Caller,
    choice: Result<Json<Choose>, JsonRejection>,
) -> Result<Json<Chosen>, ApiError> {
    let Json(Choose { generation }) = choice?;
    let action = match generation {
        Some(_) => "definitions.activate",
        None => "definitions.rollback",
    };
    let entry = |number| caller.entry(action, number, now_ms());
    let definitions = &state.fleet.definitions;
    let generation = definitions.want(generation, entry).await?;
    Ok(Json(Chosen { generation }))
}

/// A document of the repository, as it is signed
#[utoipa::path(
    get,
    path = "/api/v1/definitions/metadata/{role}",
    operation_id = "getDefinitionsMetadata",
    tag = "definitions",
    params(("role" = String, Path, description = "`root` or `targets`")),
    responses(
        (status = 200, body = Object),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn metadata(
    state: State,
    role: Result<Path<String>, PathRejection>,
) -> Result<Json<serde_json::Value>, ApiError> {
    let Path(role) = role?;
    let definitions = &state.fleet.definitions;
    let name = match role.as_str() {
        "root" => "root.json".to_owned(),
        "targets" => format!("{}.targets.json", definitions.targets_number()),
        _ => {
            return Err(ApiError::NotFound {
                kind: "document",
                id: role,
            });
        }
    };
    let none = || ApiError::from(DefinitionsError::Nothing);
    let name: Text<64> = Text::new(name).map_err(|_| none())?;
    let mut document = Vec::new();
    loop {
        let from = document.len() as u64;
        let part = definitions.part(What::Metadata(name.clone()), from).await?;
        match part {
            Answer::Part { length, bytes } if length <= reading::MAX_TARGETS_BYTES => {
                document.extend(bytes);
                if document.len() as u64 >= length {
                    break;
                }
            }
            _ => return Err(none()),
        }
    }
    let document = serde_json::from_slice(&document);
    Ok(Json(
        document.map_err(|error| ApiError::Internal(error.into()))?,
    ))
}

/// Publish what a publisher elsewhere has signed
///
/// With a root, another publisher's key counts from then on, and a key that this server
/// held is forgotten.
#[utoipa::path(
    put,
    path = "/api/v1/definitions/signed",
    operation_id = "publishSigned",
    tag = "definitions",
    request_body = Signed,
    responses(
        (status = 204, description = "Published"),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json"),
        (status = 413, body = Problem, content_type = "application/problem+json"),
        (status = 415, body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
        (status = 507, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn publish(
    state: State,
    caller: Caller,
    signed: Result<Json<Signed>, JsonRejection>,
) -> Result<StatusCode, ApiError> {
    let Json(Signed { root, targets }) = signed?;
    let bytes = |value: &serde_json::Value| {
        serde_json::to_vec(value).map_err(|error| ApiError::Internal(error.into()))
    };
    let targets = bytes(&targets)?;
    let now_ms = now_ms();
    let definitions = &state.fleet.definitions;
    match root {
        Some(root) => {
            let entry = caller.entry("definitions.key", "publisher", now_ms);
            definitions.hand_over(bytes(&root)?, targets, entry).await?;
        }
        None => {
            let entry = caller.entry("definitions.signed", "targets", now_ms);
            definitions.publish_targets(targets, entry).await?;
        }
    }
    Ok(StatusCode::NO_CONTENT)
}

fn about(number: u64, wanted: u64, generation: &Generation) -> SiteGeneration {
    SiteGeneration {
        generation: number,
        wanted: number == wanted,
        origin: generation.origin.clone(),
        added: rfc3339(generation.added_ms),
        files: generation.files.len() as u64,
        bytes: generation.bytes(),
    }
}

fn infos(files: Vec<NamedFile>) -> Result<BTreeMap<String, FileInfo>, ApiError> {
    let wrong = |why: String| Err(ApiError::Unprocessable(why));
    if files.is_empty() || files.len() > MAX_FILES {
        return wrong(format!("1 to {MAX_FILES} files are possible"));
    }
    let mut infos = BTreeMap::new();
    for file in files {
        let Some(sha256) = contents::hash(&file.sha256) else {
            return wrong(format!("{:?} is no SHA-256", file.sha256));
        };
        if !names::is_file_name(&file.name) {
            return wrong(format!("{:?} is no name of a file", file.name));
        }
        let info = FileInfo {
            sha256,
            length: file.length,
        };
        if infos.insert(file.name.clone(), info).is_some() {
            return wrong(format!("{:?} is there twice", file.name));
        }
    }
    Ok(infos)
}

impl From<DefinitionsError> for ApiError {
    fn from(error: DefinitionsError) -> Self {
        match error {
            DefinitionsError::NoGeneration(number) => Self::NotFound {
                kind: "generation",
                id: number.to_string(),
            },
            DefinitionsError::Nothing
            | DefinitionsError::NoPrevious
            | DefinitionsError::KeyElsewhere
            | DefinitionsError::Outdated
            | DefinitionsError::Missing(_)
            | DefinitionsError::OutOfPlace { .. }
            | DefinitionsError::Loose { .. }
            | DefinitionsError::Damaged { .. } => Self::Conflict(error.to_string()),
            DefinitionsError::Refused(why) => Self::Unprocessable(why),
            DefinitionsError::TooLarge { .. } => Self::Unprocessable(error.to_string()),
            DefinitionsError::Full { .. } => Self::Full(error.to_string()),
            DefinitionsError::Store(error) => Self::Store(error),
            DefinitionsError::File { .. }
            | DefinitionsError::Walk(_)
            | DefinitionsError::Repository(_) => Self::Internal(error.into()),
        }
    }
}
