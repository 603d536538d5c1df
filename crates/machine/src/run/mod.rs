//! Running a machine: its state, its owner, its vCPU threads.

pub mod owner;
pub mod state;
pub mod vcpu;

#[cfg(test)]
mod tests;

pub use owner::{
    Board, EventSink, MachineEvent, Owner, Published, Refusal, Request, ResetKind, RunHandle,
};
pub use state::RunState;
