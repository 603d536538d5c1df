//! QMP, the QEMU Machine Protocol: server and client.
//!
//! A session is a stream of JSON objects in both directions. The server greets with its version; the
//! client negotiates capabilities with `qmp_capabilities`; then each request
//! `{"execute": NAME, "arguments": {...}, "id": ANY}` is answered by `{"return": ..., "id": ...}` or
//! `{"id": ..., "error": {"class": ..., "desc": ...}}`, and events arrive in between. With the capability
//! `oob`, requests with `exec-oob` in place of `execute` overtake those that wait.
//!
//! | module | what is in it |
//! |---|---|
//! | [`json`] | QMP's dialect of JSON: incremental parser, writer |
//! | [`events`] | events, from any thread to all sessions, with rate limits |
//! | [`server`] | sessions, their transports, and the [`server::Service`] that answers |
//! | [`client`] | the other side, async and blocking |

pub mod client;
pub mod events;
pub mod json;
pub mod server;

pub use schema::{ErrorClass, QmpError};
