//! The contract as Rust: everything here is generated from `schema/rhea.json` at build time,
//! except for what every schema needs ([`error`], [`input`], [`client`]).
//!
//! - **Types**: a struct or enum for each type of the schema, with serde and the wire's names; see
//!   the crate `qapi-codegen` for how they map.
//! - **Server**: the trait [`Commands`] with an async method a command, [`dispatch`] from a name and
//!   JSON arguments to it, with QEMU's checks and error texts; [`command`] and [`commands()`] for
//!   what is known of a command without executing it; [`introspection`] for `query-qmp-schema`.
//!   `qmp_capabilities` is in the schema but not in the trait: the QMP session answers it, and
//!   reads its arguments by [`input::arguments`] as [`commands::QmpCapabilities`].
//! - **Events**: the enum [`Event`].
//! - **Client**: each struct in [`mod@commands`] is a [`Command`] with its name and return type.

pub mod client;
pub mod error;
pub mod input;

mod generated {
    #![allow(
        missing_docs,
        non_snake_case,
        clippy::large_enum_variant,
        clippy::enum_variant_names,
        clippy::doc_lazy_continuation,
        clippy::too_many_lines,
        unused_qualifications
    )]
    use crate::error::QmpError;

    include!(concat!(env!("OUT_DIR"), "/schema.rs"));

    /// What is known of a command without executing it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct CommandSpec {
        /// The name on the wire.
        pub name: &'static str,
        /// It may be sent with `exec-oob`.
        pub allow_oob: bool,
        /// It may be executed before the machine is made.
        pub allow_preconfig: bool,
        /// Success is answered; the only commands without have ended the server by then.
        pub success_response: bool,
    }

    /// All commands of the schema in its order, the session's own among them.
    pub fn commands() -> &'static [CommandSpec] {
        COMMANDS
    }
}

pub use client::Command;
pub use error::{ErrorClass, QmpError};
pub use generated::*;

/// The command `name`.
pub fn command(name: &str) -> Option<&'static CommandSpec> {
    commands().iter().find(|c| c.name == name)
}

/// What `query-qmp-schema` returns, as JSON text without line breaks.
pub fn introspection() -> &'static str {
    include_str!(concat!(env!("OUT_DIR"), "/introspection.json"))
}
