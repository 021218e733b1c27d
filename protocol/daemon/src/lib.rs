//! What Palisade's programs share besides the wire: where a site's files are,
//! how settings are read, how logs are written, what exit codes mean.
//!
//! | module | owns |
//! | --- | --- |
//! | [`site`] | the folders of a system installation and of a development site |
//! | [`settings`] | TOML with drop-ins and environment overrides; unknown keys are errors |
//! | [`cli`] | the options that every program takes, and the exit codes |
//! | [`logging`] | stderr for people, JSON lines for programs |
//! | [`lifecycle`] | stop signals, and readiness towards systemd |
//! | [`membership`] | what a component keeps of its site: identity, servers, name |
//! | [`enrol`] | getting an identity with a join token |
//! | [`control`] | the component's end of a control session |
//! | [`host`] | what a machine says of itself |
//! | [`local`] | sockets by which a daemon is asked from its own machine |
//!
//! Kept apart from `palisade-protocol` so that the wire contract stays free of
//! files, signals and global state.

#![forbid(unsafe_code)]

pub mod cli;
pub mod control;
pub mod enrol;
pub mod host;
pub mod lifecycle;
pub mod local;
pub mod logging;
pub mod membership;
pub mod settings;
pub mod site;
