//! What the board does for a CPU whose guest is offered a hypervisor's interface (x86: Hyper-V's).
//!
//! The CPU knows what its guest may use and how the guest calls; registers that all CPUs share, that belong
//! to interrupts or that appear as pages of memory are the board's.

/// What becomes of a message that a guest posts to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Posted {
    /// It is delivered, or waits to be.
    Taken,
    /// There is no such connection.
    Unconnected,
    /// The one before it still waits: it is to be posted again.
    Full,
}

/// A machine to its hypervisor: one partition, with a virtual processor for each CPU, numbered from 0.
pub trait Partition: Send + Sync {
    /// Number of virtual processors.
    fn processors(&self) -> u32;
    /// Reads `register` as `processor` sees it; `None` if there is none or it can't be read.
    fn read_register(&self, processor: u32, register: u32) -> Option<u64>;
    /// Writes such a register; false if there is none or it can't have this value.
    fn write_register(&self, processor: u32, register: u32, value: u64) -> bool;
    /// The guest has said what it is, so its calls are calls of this interface.
    fn takes_calls(&self) -> bool;
    /// Requests interrupt `vector` from `processor`; one that there is not takes none.
    fn interrupt(&self, processor: u32, vector: u8);
    /// The time-stamp counters of all CPUs are the machine's, or (with false) are no longer, so that guests
    /// can't tell the time by them.
    fn counters_agree(&self, agree: bool);
    /// The guest posts a message of type `kind` to `connection`; at most 240 bytes.
    fn post_message(&self, connection: u32, kind: u32, payload: &[u8]) -> Posted;
    /// The guest signals the event that `connection` leads to; false if there is no such connection.
    fn signal_event(&self, connection: u32) -> bool;
    /// Whether the guest must not write to the page that holds guest physical `address`.
    fn is_protected(&self, address: u64) -> bool;
}
