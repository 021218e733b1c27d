//! Who somebody is: passwords, second factors, sessions, and how often may be tried.
//!
//! ```text
//!   name + password ─► lockout ─► argon2id ─► second factor ─► session ─► Caller
//!   setup token ─────► the first account
//! ```
//!
//! Owns the rules; what is kept is `store`'s, what is said over HTTP is `api`'s, and what
//! an account may do is `access`'. All of it but the hashing itself is pure, and time is
//! an argument.
//!
//! | module | owns |
//! | --- | --- |
//! | [`name`] | what an account may be called |
//! | [`password`] | argon2id with its parameters, and how many run at once |
//! | [`totp`] | RFC 6238, and recovery codes |
//! | [`gate`] | so many at a time, and so many waiting |
//! | [`lockout`] | when somebody may try again |
//! | [`sessions`] | how long a session lasts, its secrets |
//! | [`login`] | a login from its first word to its end |
//! | [`setup`] | the one-time token for the first account |

pub mod gate;
pub mod lockout;
pub mod login;
pub mod name;
pub mod password;
pub mod sessions;
pub mod setup;
pub mod totp;
