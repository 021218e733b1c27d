//! Around every answer: a time limit, and headers that tell a browser to keep
//! nothing, guess nothing and embed nothing.

use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::problem::ApiError;

/// How long a request may take.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

const HEADERS: [(HeaderName, &str); 6] = [
    (header::STRICT_TRANSPORT_SECURITY, "max-age=31536000"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; frame-ancestors 'none'",
    ),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
];

/// Runs the request within the time limit and adds the headers. A change that has begun
/// goes on when nobody waits for it any more, so that what follows from it is done, too:
/// its line in the log, and the end of a session that was revoked.
pub async fn around(request: Request, next: Next) -> Response {
    let looks = matches!(*request.method(), Method::GET | Method::HEAD);
    let work = next.run(request);
    let within = match looks {
        true => tokio::time::timeout(REQUEST_TIMEOUT, work).await.map(Ok),
        false => tokio::time::timeout(REQUEST_TIMEOUT, tokio::spawn(work)).await,
    };
    let mut response = match within {
        Ok(Ok(response)) => response,
        Ok(Err(panicked)) => ApiError::Internal(panicked.into()).into_response(),
        Err(_) => ApiError::TimedOut.into_response(),
    };
    for (name, value) in HEADERS {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}
