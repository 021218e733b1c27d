//! Errors as RFC 9457 problem details: the one place that maps them to status
//! codes. What a caller may know stands in `detail`; what only the operator may
//! know goes to the log.

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::accounts::login::{NotProven, seconds};
use crate::accounts::password::PasswordError;
use crate::store::StoreError;

/// A problem, as it is sent (`application/problem+json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// The kind of problem, for programs: `urn:palisade:problem:…`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind of problem, for people.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong here, and what helps.
    pub detail: String,
}

/// Why a request is not served.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No token, or not a valid one.
    #[error(
        "a valid API token is needed (Authorization: Bearer …), or a session; on the server's own machine the token is in its state folder, in admin.token"
    )]
    Unauthorized,
    /// Who logs in, or shows a secret again, did not show the right one.
    #[error("{0}")]
    LoginRefused(String),
    /// The password is right, and there is a second factor.
    #[error("this account asks for the code of its authenticator, or a recovery code")]
    CodeNeeded,
    /// Too many failures; after so many seconds again.
    #[error("too many logins have failed; try again in {0} s")]
    TooEarly(u64),
    /// Too many changes; after so many seconds again.
    #[error("this account makes too many changes; try again in {0} s")]
    TooMany(u64),
    /// Too much at once.
    #[error("{0}")]
    Busy(String),
    /// He may not do that.
    #[error("{0}")]
    Forbidden(String),
    /// A session's change without its second token.
    #[error("a change by a session carries the session's csrf in the header x-palisade-csrf")]
    Csrf,
    /// The session's password was not shown lately.
    #[error(
        "this wants your password once more: type it, or show it to POST /api/v1/session/confirmation, and try again within five minutes"
    )]
    Unconfirmed,
    /// The request makes no sense.
    #[error("{0}")]
    BadRequest(String),
    /// The body is not JSON of the expected shape.
    #[error("{0}")]
    Unprocessable(String),
    /// The body is larger than allowed.
    #[error(
        "the request's body is larger than this takes: {} bytes, and for what is said to take more, that",
        super::MAX_BODY_BYTES
    )]
    TooLarge,
    /// The body is not declared as JSON.
    #[error("the request's body must be application/json")]
    NotJson,
    /// The object does not exist.
    #[error("there is no {kind} {id}")]
    NotFound {
        /// What kind of object.
        kind: &'static str,
        /// Which.
        id: String,
    },
    /// The object is not in a state in which it could be done.
    #[error("{0}")]
    Conflict(String),
    /// It was changed since the caller has seen it.
    #[error("{0}")]
    ChangedMeanwhile(String),
    /// The change does not say which revision it was made from.
    #[error(
        "this change says in if-match which revision it was made from: the etag of the answer to GET, or * for whichever there is"
    )]
    Unconditional,
    /// The disk is full.
    #[error("{0}")]
    Full(String),
    /// The path leads nowhere.
    #[error("there is no resource {0}; /api/v1/openapi.json lists them")]
    NoResource(String),
    /// The resource does not take the method.
    #[error("{0} does not take this method; /api/v1/openapi.json lists the ones it takes")]
    NoMethod(String),
    /// It took too long.
    #[error("the server took too long; ask again")]
    TimedOut,
    /// The store failed.
    #[error("the server cannot reach its database now; its log says why")]
    Store(#[from] StoreError),
    /// Anything else that is not the caller's fault.
    #[error("the server failed; its log says why")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What a revocation answers, by whether there was anything to revoke.
///
/// # Errors
/// [`ApiError::NotFound`].
pub fn revoked(done: bool, kind: &'static str, id: Uuid) -> Result<StatusCode, ApiError> {
    if done {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(ApiError::NotFound {
        kind,
        id: id.to_string(),
    })
}

impl ApiError {
    /// Another change was faster.
    pub fn changed_meanwhile(what: &str) -> Self {
        Self::ChangedMeanwhile(format!(
            "{what} was changed meanwhile: look at it again, and send its etag in if-match"
        ))
    }

    fn parts(&self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::Unauthorized => (
                StatusCode::UNAUTHORIZED,
                "unauthorized",
                "A valid token is needed",
            ),
            Self::LoginRefused(_) => (StatusCode::UNAUTHORIZED, "login-refused", "Not logged in"),
            Self::CodeNeeded => (StatusCode::UNAUTHORIZED, "code-needed", "A code is needed"),
            Self::TooEarly(_) => (
                StatusCode::TOO_MANY_REQUESTS,
                "too-early",
                "Too many failures",
            ),
            Self::TooMany(_) => (
                StatusCode::TOO_MANY_REQUESTS,
                "too-many",
                "Too many changes",
            ),
            Self::Busy(_) => (StatusCode::SERVICE_UNAVAILABLE, "busy", "Too much at once"),
            Self::Forbidden(_) => (StatusCode::FORBIDDEN, "forbidden", "Not allowed"),
            Self::Csrf => (StatusCode::FORBIDDEN, "csrf", "Not sure that you asked"),
            Self::Unconfirmed => (
                StatusCode::FORBIDDEN,
                "unconfirmed",
                "The password is asked for again",
            ),
            Self::BadRequest(_) => (StatusCode::BAD_REQUEST, "bad-request", "Bad request"),
            Self::Unprocessable(_) => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "bad-body",
                "The body is not as expected",
            ),
            Self::TooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "too-large",
                "The body is too large",
            ),
            Self::NotJson => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "not-json",
                "The body is not JSON",
            ),
            Self::NotFound { .. } => (StatusCode::NOT_FOUND, "not-found", "Not found"),
            Self::Conflict(_) => (StatusCode::CONFLICT, "conflict", "Not possible now"),
            Self::ChangedMeanwhile(_) => (
                StatusCode::PRECONDITION_FAILED,
                "changed-meanwhile",
                "Changed meanwhile",
            ),
            Self::Unconditional => (
                StatusCode::PRECONDITION_REQUIRED,
                "unconditional",
                "The revision is missing",
            ),
            Self::Full(_) => (StatusCode::INSUFFICIENT_STORAGE, "full", "The disk is full"),
            Self::NoResource(_) => (StatusCode::NOT_FOUND, "no-resource", "No such resource"),
            Self::NoMethod(_) => (
                StatusCode::METHOD_NOT_ALLOWED,
                "no-method",
                "Method not allowed",
            ),
            Self::TimedOut => (StatusCode::SERVICE_UNAVAILABLE, "timed-out", "Timed out"),
            Self::Store(_) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "store",
                "The database cannot be used",
            ),
            Self::Internal(_) => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "The server failed",
            ),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        match &self {
            Self::Store(error) => tracing::error!(%error, "an API request cannot be served"),
            Self::Internal(error) => tracing::error!(%error, "an API request failed"),
            _ => {}
        }
        let (status, kind, title) = self.parts();
        let wait_s = match &self {
            Self::TooEarly(seconds) | Self::TooMany(seconds) => Some(*seconds),
            _ if status == StatusCode::SERVICE_UNAVAILABLE => Some(5),
            _ => None,
        };
        let problem = Problem {
            kind: format!("urn:palisade:problem:{kind}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: self.to_string(),
        };
        let mut response = (status, axum::Json(problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(wait_s) = wait_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(wait_s));
        }
        response
    }
}

impl From<NotProven> for ApiError {
    fn from(error: NotProven) -> Self {
        match error {
            NotProven::Wrong(_) => Self::LoginRefused(error.to_string()),
            NotProven::CodeNeeded(_) => Self::CodeNeeded,
            NotProven::TooEarly(wait_ms) => Self::TooEarly(seconds(wait_ms)),
            NotProven::Password(error) => error.into(),
            NotProven::Store(error) => error.into(),
        }
    }
}

impl From<PasswordError> for ApiError {
    fn from(error: PasswordError) -> Self {
        match error {
            PasswordError::Short | PasswordError::Long | PasswordError::Name => {
                Self::Unprocessable(error.to_string())
            }
            PasswordError::Busy => Self::Busy(error.to_string()),
            PasswordError::Randomness(_) | PasswordError::Argon2(_) => Self::Internal(error.into()),
        }
    }
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => Self::TooLarge,
            StatusCode::UNSUPPORTED_MEDIA_TYPE => Self::NotJson,
            StatusCode::UNPROCESSABLE_ENTITY => Self::Unprocessable(rejection.body_text()),
            _ => Self::BadRequest(rejection.body_text()),
        }
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self::BadRequest(rejection.body_text())
    }
}

impl From<PathRejection> for ApiError {
    fn from(rejection: PathRejection) -> Self {
        Self::BadRequest(rejection.body_text())
    }
}

/// Answers for paths that lead nowhere.
pub async fn no_such_resource(uri: Uri) -> ApiError {
    ApiError::NoResource(uri.path().to_owned())
}

/// Answers for methods that a resource does not take.
pub async fn no_such_method(uri: Uri) -> ApiError {
    ApiError::NoMethod(uri.path().to_owned())
}
