//! The architectural state of an x86-64 CPU: what is saved, restored, and shown to debuggers.
//!
//! Everything a guest can observe of its CPU is in [`CpuState`]; caches (TLB, decoded blocks, lazy
//! flags) are not.

use serde::{Deserialize, Serialize};

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Visible selector.
    pub selector: u16,
    /// Base address.
    pub base: u64,
    /// Limit in bytes (granularity applied).
    pub limit: u32,
    /// Attributes as in a descriptor's second doubleword, shifted right by 8: type in bits 0 to 3, S
    /// bit 4, DPL bits 5 and 6, P bit 7, AVL bit 12, L bit 13, D/B bit 14, G bit 15.
    pub attributes: u16,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRegister {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes, less one.
    pub limit: u16,
}

/// The x87 unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct X87State {
    /// Physical registers R0 to R7 (not the stack's order): 80 bits, little-endian in the low bytes.
    pub regs: [u128; 8],
    /// Control word.
    pub control: u16,
    /// Status word, TOP in bits 11 to 13.
    pub status: u16,
    /// Full tag word, 2 bits a physical register.
    pub tags: u16,
    /// Last instruction's opcode, 11 bits.
    pub opcode: u16,
    /// Last instruction's address, and its selector in legacy modes.
    pub ip: u64,
    /// See `ip`.
    pub cs: u16,
    /// Last operand's address, and its selector in legacy modes.
    pub dp: u64,
    /// See `dp`.
    pub ds: u16,
}

impl Default for X87State {
    fn default() -> Self {
        Self {
            regs: [0; 8],
            control: 0x37f,
            status: 0,
            tags: 0xffff,
            opcode: 0,
            ip: 0,
            cs: 0,
            dp: 0,
            ds: 0,
        }
    }
}

/// What the CPU is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activity {
    /// Executing instructions.
    #[default]
    Running,
    /// Halted until an interrupt.
    Halted,
    /// An application processor that waits for INIT and start-up IPIs.
    WaitForStartup,
}

/// The whole architectural state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuState {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// RFLAGS, bit 1 always set.
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS.
    pub segments: [Segment; 6],
    /// Local descriptor table register.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table register.
    pub gdtr: TableRegister,
    /// Interrupt descriptor table register.
    pub idtr: TableRegister,
    /// CR0.
    pub cr0: u64,
    /// CR2, the last page fault's address.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// The page directory pointers of PAE paging, as the last load of CR3 found them.
    pub pdptes: [u64; 4],
    /// XCR0.
    pub xcr0: u64,
    /// PKRU.
    pub pkru: u32,
    /// DR0 to DR3, DR6 and DR7 (indices 4 and 5 are unused).
    pub dr: [u64; 8],
    /// x87 and MMX.
    pub x87: X87State,
    /// XMM0 to XMM15.
    pub xmm: [u128; 16],
    /// Upper halves of YMM0 to YMM15.
    pub ymm_high: [u128; 16],
    /// MXCSR.
    pub mxcsr: u32,
    /// Model-specific registers that the CPU keeps itself, by index, in ascending order. FS and GS
    /// bases are in `segments`.
    pub msrs: Vec<(u32, u64)>,
    /// What the CPU is doing.
    pub activity: Activity,
    /// Interrupts are held off for one instruction after STI or a load of SS.
    pub interrupt_shadow: bool,
    /// So are debug exceptions, after a load of SS.
    pub debug_shadow: bool,
    /// NMIs are held off until IRET.
    pub nmi_blocked: bool,
    /// The CPU is in system management mode.
    pub smm: bool,
    /// NMIs were held off already when system management mode was entered.
    pub smm_nmi_blocked: bool,
    /// SMBASE.
    pub smbase: u32,
    /// Secure virtual machine mode.
    pub svm: SvmState,
}

/// Secure virtual machine mode (APM volume 2, chapter 15).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SvmState {
    /// The global interrupt flag.
    pub gif: bool,
    /// VM_CR.
    pub vm_cr: u64,
    /// VM_HSAVE_PA.
    pub hsave: u64,
    /// TSC_RATIO.
    pub tsc_ratio: u64,
    /// The guest that runs, if one does: the rest of [`CpuState`] is then its.
    pub guest: Option<Box<SvmGuest>>,
}

impl Default for SvmState {
    /// As after a reset: no guest, interrupts let in, time as it is.
    fn default() -> Self {
        Self { gif: true, vm_cr: 0, hsave: 0, tsc_ratio: 1 << 32, guest: None }
    }
}

/// A guest in the CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SvmGuest {
    /// Physical address of its control block.
    pub vmcb: u64,
    /// It waits for the end of system management mode.
    pub suspended: bool,
    /// Its control area.
    pub control: SvmControl,
    /// Its host.
    pub host: SvmHost,
    /// PAUSEs until one is intercepted.
    pub pause_left: u16,
}

/// The control area of a running guest, as VMRUN read it, with the present state of virtual interrupts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SvmControl {
    /// The six words of intercepts.
    pub intercepts: [u32; 6],
    /// Time in ticks after which a PAUSE is the first again.
    pub pause_threshold: u16,
    /// PAUSEs that are let pass.
    pub pause_count: u16,
    /// Physical address of the map of I/O permissions.
    pub iopm: u64,
    /// Physical address of the map of model-specific register permissions.
    pub msrpm: u64,
    /// Added to the time-stamp counter.
    pub tsc_offset: u64,
    /// Address space identifier.
    pub asid: u32,
    /// Virtual interrupts, at offset 0x60.
    pub int_ctl: u64,
    /// Nested paging is on.
    pub nested: bool,
    /// Root of the nested page tables.
    pub n_cr3: u64,
    /// Virtualisation extensions, at offset 0xb8.
    pub virt_ext: u64,
}

/// The state that a host goes on with after its guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SvmHost {
    /// ES, CS, SS, DS.
    pub segments: [Segment; 4],
    /// GDTR.
    pub gdtr: TableRegister,
    /// IDTR.
    pub idtr: TableRegister,
    /// EFER.
    pub efer: u64,
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// Address of the instruction after VMRUN.
    pub rip: u64,
    /// RSP.
    pub rsp: u64,
    /// RAX, the control block's address.
    pub rax: u64,
    /// The page attribute table.
    pub pat: u64,
    /// DEBUG_CTL and the record of branches, if the guest has its own.
    pub branches: Option<[u64; 5]>,
}

impl vmstate::State for CpuState {
    const NAME: &'static str = "cpu-x86";
    const VERSION: u32 = 5;
}
