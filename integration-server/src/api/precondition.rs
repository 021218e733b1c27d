//! Which revision a change was made from: `ETag` and `If-Match`.

use axum::Json;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::problem::ApiError;

/// An answer with its revision.
#[derive(Debug)]
pub struct Tagged<T>(pub u64, pub T);

impl<T: Serialize> IntoResponse for Tagged<T> {
    fn into_response(self) -> Response {
        let mut response = Json(self.1).into_response();
        if let Ok(tag) = HeaderValue::from_str(&format!("\"{}\"", self.0)) {
            response.headers_mut().insert(header::ETAG, tag);
        }
        response
    }
}

/// The same for something that was just made.
pub fn created<T: Serialize>(tagged: Tagged<T>) -> Response {
    (StatusCode::CREATED, tagged).into_response()
}

/// The revision that a change was made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Whichever it is.
    Any,
    /// This one.
    Revision(u64),
}

impl Wanted {
    /// Whether it is the one that there is.
    ///
    /// # Errors
    /// [`ApiError::ChangedMeanwhile`].
    pub fn check(self, what: &str, now: u64) -> Result<(), ApiError> {
        match self {
            Self::Revision(seen) if seen != now => Err(ApiError::ChangedMeanwhile(format!(
                "{what} is at revision {now}, and you have seen {seen}: look at it again, and send if-match: \"{now}\""
            ))),
            _ => Ok(()),
        }
    }
}

/// What a request's `If-Match` says.
///
/// # Errors
/// [`ApiError::Unconditional`] without one, [`ApiError::BadRequest`] for one that is none.
pub fn wanted(headers: &HeaderMap) -> Result<Wanted, ApiError> {
    let value = headers.get(header::IF_MATCH);
    let value = value.ok_or(ApiError::Unconditional)?.to_str();
    let bad = || {
        ApiError::BadRequest(
            "if-match is the etag that the answer to GET has, like \"3\", or *".to_owned(),
        )
    };
    match value.map_err(|_| bad())?.trim() {
        "*" => Ok(Wanted::Any),
        tag => {
            let number = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
            let number = number.and_then(|number| number.parse().ok());
            number.map(Wanted::Revision).ok_or_else(bad)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: Option<&str>) -> Result<Wanted, ApiError> {
        let mut headers = HeaderMap::new();
        if let Some(value) = value {
            headers.insert(header::IF_MATCH, value.parse().unwrap());
        }
        wanted(&headers)
    }

    #[test]
    fn a_change_says_what_it_was_made_from() {
        assert_eq!(of(Some("*")).unwrap(), Wanted::Any);
        assert_eq!(of(Some("\"3\"")).unwrap(), Wanted::Revision(3));
        assert!(matches!(of(None), Err(ApiError::Unconditional)));
        for bad in ["3", "\"x\"", "\"3", "W/\"3\"", "\"-1\"", ""] {
            assert!(
                matches!(of(Some(bad)), Err(ApiError::BadRequest(_))),
                "{bad}"
            );
        }
        assert!(Wanted::Any.check("it", 9).is_ok());
        assert!(Wanted::Revision(9).check("it", 9).is_ok());
        let error = Wanted::Revision(3).check("it", 9).unwrap_err().to_string();
        assert!(
            error.contains("revision 9") && error.contains("seen 3"),
            "{error}"
        );
    }
}
