//! The software x86-64 CPU: decoder glue, interpreter and memory management unit.
//!
//! Follows AMD64 Architecture Programmer's Manual (volumes 1 to 5) and Intel 64 and IA-32
//! Architectures Software Developer's Manual; where the two differ, AMD's reading is taken, since the
//! default model presents itself as an AMD processor.
//!
//! - [`state`]: the architectural state as it is saved, restored and shown.
//! - `cpu`: the running form of that state.
//! - `op`: one decoded instruction, ready to execute.
//! - `counters`: what a CPU counts of its own work.

mod block;
mod counters;
mod cpu;
mod cpuid;
mod debug;
mod decode;
mod descriptor;
mod entropy;
mod exception;
mod exec;
mod far;
pub mod feature;
mod flags;
mod fpu;
mod group;
mod host;
mod hyperv;
mod int;
mod interrupt;
mod kvm;
mod mem;
mod mmu;
mod model;
mod msr;
mod near;
mod op;
mod pmu;
mod record;
mod reg;
mod regs;
mod run;
mod save;
mod segment;
mod smm;
mod stack;
pub mod state;
mod svm;
mod system;
mod task;
#[cfg(test)]
mod testing;
mod timed;
mod tlb;
mod trace;
#[cfg(target_arch = "x86_64")]
mod translate;
mod vmware;

pub use counters::{Counters, report};
pub use cpu::{Cpu, CpuConfig, CpuWiring, Translation};
pub use cpuid::Topology;
pub use group::CpuGroup;
pub use hyperv::Enlightenments;
pub use model::{CpuModel, ModelError, Vendor};
pub use state::CpuState;
pub use vmware::Backdoor;
