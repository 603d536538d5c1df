//! The running form of a CPU: every handler works on a [`Cpu`].

use std::sync::Arc;

use accel::log::Log;
use accel::{CpuBus, GuestClock, InterruptController, Signals};
use memory::{GuestMemory, Lens};

use crate::block::BlockCache;
use crate::counters::Counters;
use crate::cpuid::Topology;
use crate::entropy::Entropy;
use crate::flags::LazyFlags;
use crate::fpu::Fpu;
use crate::group::{CpuGroup, Member};
use crate::hyperv::{Asked, Place, RunTime};
use crate::kvm::KvmMsrs;
use crate::mmu::NO_PAGE;
use crate::model::{CpuModel, Limits};
use crate::msr::Msrs;
use crate::record::Recorder;
use crate::reg::GPR_SLOTS;
use crate::regs::{CR0_CD, CR0_ET, CR0_NW, DR6_FIXED, DR7_FIXED};
use crate::run::Glance;
use crate::segment::{CS, Mode, SegAccess, attr};
use crate::smm::{IoTrap, SMBASE_RESET};
use crate::state::{Activity, Segment, TableRegister};
use crate::svm::Svm;
use crate::timed::Timed;
use crate::tlb::{Class, Tlb};
#[cfg(target_arch = "x86_64")]
use crate::translate::Translator;
use crate::vmware::Backdoor;

/// What a CPU is made from.
#[derive(Clone)]
pub struct CpuConfig {
    /// Initial APIC id of the CPU; see [`Topology::apic_id`]. CPU 0 starts at reset, others wait for a
    /// start-up IPI.
    pub apic_id: u32,
    /// How the CPUs are put together, for CPUID's topology leaves.
    pub topology: Topology,
    /// What kind of CPU it is.
    pub model: Arc<CpuModel>,
}

/// How code is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Size in bytes of the buffer for translated code. When it is full, all is translated anew.
    pub buffer: usize,
    /// How often a block is reached, from 1, until it is translated.
    pub threshold: u8,
    /// Have every translated block run by the interpreter, too, and stop where they differ.
    pub check: bool,
}

impl Translation {
    /// Whether this host can translate.
    pub fn is_possible() -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            Translator::is_possible()
        }
        #[cfg(not(target_arch = "x86_64"))]
        false
    }
}

impl Default for Translation {
    fn default() -> Self {
        Self { buffer: 128 << 20, threshold: 24, check: false }
    }
}

/// A software CPU.
#[repr(C)]
pub struct Cpu {
    /// General registers, and slots that are always zero (see `reg`).
    pub(crate) gpr: [u64; GPR_SLOTS],
    /// Address of the next instruction (see `op`).
    pub(crate) rip: u64,
    /// The flags for which one instruction is executed at a time.
    pub(crate) care_flags: u64,
    /// The arithmetic flags.
    pub(crate) flags: LazyFlags,
    /// RFLAGS without the arithmetic flags, which are kept apart (see `flags`).
    pub(crate) system_flags: u64,
    /// Derived from `seg` and the mode; two slots more than segments, so that a masked index needs no
    /// check.
    pub(crate) seg_access: [SegAccess; 8],
    /// Width of linear addresses: 32 or 64 bits set.
    pub(crate) linear_mask: u64,
    /// Width of the stack pointer: 16, 32 or 64 bits set.
    pub(crate) stack_mask: u64,
    /// Width of the instruction pointer.
    pub(crate) ip_mask: u64,
    /// How code is decoded and executed now.
    pub(crate) mode: Mode,
    /// On whose behalf memory is accessed now.
    pub(crate) class: Class,
    /// Current privilege level, 0 to 3.
    pub(crate) cpl: u8,
    /// Set by a store that hit decoded code: the running block ends after this instruction.
    pub(crate) break_block: bool,
    /// Interrupts are held off until after the next instruction.
    pub(crate) shadow: bool,
    /// So are debug exceptions: the stack segment was loaded, and its pointer will be.
    pub(crate) debug_shadow: bool,
    /// Set by an instruction that entered a handler or the kernel: a single step ends there without a
    /// trap.
    pub(crate) ends_step: bool,
    /// NMIs are held off until IRET.
    pub(crate) nmi_blocked: bool,
    /// The CPU is in system management mode.
    pub(crate) smm: bool,
    /// NMIs were held off already when system management mode was entered.
    pub(crate) smm_nmi_blocked: bool,
    /// The exception that is being raised belongs to where RIP is, not to the running instruction: a
    /// task switch has come that far.
    pub(crate) keep_rip: bool,
    /// What the CPU is doing.
    pub(crate) activity: Activity,
    /// Debug conditions (bits of DR6) that the running instruction met and that trap after it; and
    /// [`PENDING_SHUTDOWN`](crate::regs::PENDING_SHUTDOWN).
    pub(crate) pending_debug: u64,
    /// Instructions retired since reset; an estimate while code is translated.
    pub(crate) instructions: u64,
    /// The latest epoch of `group` that this CPU has passed.
    pub(crate) passed_epoch: u64,
    /// The version of the physical address map that the TLB was filled by.
    pub(crate) map_version: u64,
    /// The page of the interrupt controller's registers, which this CPU alone sees there.
    pub(crate) controller_page: u64,
    /// Physical address lines that are connected: all but line 20, or all.
    pub(crate) address_lines: u64,
    pub(crate) tlb: Tlb,
    /// x87, MMX and SSE.
    pub(crate) fpu: Fpu,

    /// ES, CS, SS, DS, FS, GS.
    pub(crate) seg: [Segment; 6],
    pub(crate) ldtr: Segment,
    pub(crate) tr: Segment,
    pub(crate) gdtr: TableRegister,
    pub(crate) idtr: TableRegister,
    pub(crate) cr0: u64,
    pub(crate) cr2: u64,
    pub(crate) cr3: u64,
    pub(crate) cr4: u64,
    /// The page directory pointers of PAE paging, as the last load of CR3 found them.
    pub(crate) pdptes: [u64; 4],
    pub(crate) xcr0: u64,
    /// Rights by protection key, two bits a key, to user pages.
    pub(crate) pkru: u32,
    pub(crate) efer: u64,
    /// DR0 to DR3, DR6, DR7; 4 and 5 are unused.
    pub(crate) dr: [u64; 8],
    pub(crate) msrs: Msrs,
    /// Where system management mode has its code and saved state.
    pub(crate) smbase: u64,
    /// Secure virtual machine mode.
    pub(crate) svm: Svm,
    /// The I/O instruction that the last SMI came from.
    pub(crate) io_trap: IoTrap,
    pub(crate) entropy: Entropy,

    pub(crate) config: CpuConfig,
    /// What the model's features decide.
    pub(crate) limits: Limits,
    pub(crate) memory: Arc<GuestMemory>,
    /// The map of `memory`, at hand.
    pub(crate) map: Lens,
    pub(crate) bus: Arc<dyn CpuBus>,
    pub(crate) interrupts: Arc<dyn InterruptController>,
    pub(crate) clock: Arc<dyn GuestClock>,
    pub(crate) signals: Arc<Signals>,
    pub(crate) group: Arc<CpuGroup>,
    pub(crate) member: Arc<Member>,
    pub(crate) glance: Arc<Glance>,
    pub(crate) log: Arc<Log>,
    pub(crate) counters: Arc<Counters>,
    /// Time goes by the instructions that are executed.
    pub(crate) timed: Option<Box<Timed>>,
    /// MONITOR was executed since the last MWAIT.
    pub(crate) monitors: bool,
    /// VMware's backdoor, if it is there.
    pub(crate) backdoor: Option<Backdoor>,
    /// Which of Hyper-V's virtual processors this is, if the board knows of any.
    pub(crate) partition: Option<Place>,
    /// What other CPUs were last asked to forget.
    pub(crate) asked: Asked,
    pub(crate) run_time: RunTime,
    /// What is written is recorded, for engines to be compared.
    pub(crate) recorder: Option<Box<Recorder>>,
    /// How the engines differed, for who is told that they do.
    pub(crate) divergence: Option<String>,
    /// There is a translator.
    pub(crate) translates: bool,
    /// The time-stamp counter up to which translated instructions are counted.
    pub(crate) counted_to: u64,
    /// Decoded blocks; the run loop takes them out while it runs.
    pub(crate) blocks: BlockCache,
    /// The translator, if code is translated; the run loop takes it out while it runs.
    #[cfg(target_arch = "x86_64")]
    pub(crate) translator: Option<Box<Translator>>,
}

/// What a CPU is wired to.
#[derive(Clone)]
pub struct CpuWiring {
    /// Guest RAM.
    pub memory: Arc<GuestMemory>,
    /// Ports and memory-mapped registers.
    pub bus: Arc<dyn CpuBus>,
    /// The CPU's own interrupt controller.
    pub interrupts: Arc<dyn InterruptController>,
    /// The machine's clock.
    pub clock: Arc<dyn GuestClock>,
    /// What raises the CPU's attention.
    pub signals: Arc<Signals>,
    /// The CPUs that share `memory`: the same for all of them.
    pub group: Arc<CpuGroup>,
}

impl Cpu {
    /// Makes a CPU in its state after power-on.
    pub fn new(config: CpuConfig, wiring: CpuWiring) -> Self {
        let counters = Arc::<Counters>::default();
        let mut cpu = Self {
            gpr: [0; GPR_SLOTS],
            rip: 0,
            care_flags: 0,
            flags: LazyFlags::default(),
            system_flags: 0,
            seg_access: [SegAccess::default(); 8],
            linear_mask: 0,
            stack_mask: 0,
            ip_mask: 0,
            mode: Mode::default(),
            class: Class::Supervisor,
            cpl: 0,
            break_block: false,
            shadow: false,
            debug_shadow: false,
            ends_step: false,
            nmi_blocked: false,
            smm: false,
            smm_nmi_blocked: false,
            keep_rip: false,
            activity: Activity::Running,
            pending_debug: 0,
            instructions: 0,
            passed_epoch: 0,
            map_version: 0,
            controller_page: NO_PAGE,
            address_lines: u64::MAX,
            tlb: Tlb::new(&counters),
            fpu: Fpu::default(),
            seg: [Segment::default(); 6],
            ldtr: Segment::default(),
            tr: Segment::default(),
            gdtr: TableRegister::default(),
            idtr: TableRegister::default(),
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            pdptes: [0; 4],
            xcr0: 1,
            pkru: 0,
            efer: 0,
            dr: [0; 8],
            msrs: Msrs::new(&config.model),
            smbase: SMBASE_RESET,
            svm: Svm::default(),
            io_trap: IoTrap::default(),
            entropy: Entropy::default(),
            limits: Limits::of(&config.model),
            config,
            map: wiring.memory.lens(),
            memory: wiring.memory,
            bus: wiring.bus,
            interrupts: wiring.interrupts,
            clock: wiring.clock,
            member: wiring.group.join(&wiring.signals),
            signals: wiring.signals,
            group: wiring.group,
            glance: Arc::default(),
            log: Arc::default(),
            counters,
            timed: None,
            recorder: None,
            monitors: false,
            backdoor: None,
            partition: None,
            asked: Asked::default(),
            run_time: RunTime::default(),
            divergence: None,
            translates: false,
            counted_to: 0,
            blocks: BlockCache::default(),
            #[cfg(target_arch = "x86_64")]
            translator: None,
        };
        cpu.reset_state(false);
        cpu
    }

    /// What the CPU counts; the same object for its whole life.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Has code translated to the host's from now on, or with `None` only interpreted, as at first.
    /// Returns whether it is so: not every host can translate.
    pub fn set_translation(&mut self, how: Option<Translation>) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            self.translator = None;
            self.translator = how.and_then(|how| Translator::new(self, how)).map(Box::new);
            self.translates = self.translator.is_some();
            let checks = self.translates && how.is_some_and(|how| how.check);
            self.recorder = checks.then(Box::default);
            // Nobody writes by what the TLB had before.
            self.tlb.flush_l1();
            self.translator.is_some() == how.is_some()
        }
        #[cfg(not(target_arch = "x86_64"))]
        how.is_none()
    }

    /// The state after power-on or, with `init`, after an INIT signal, which leaves the FPU, most
    /// model-specific registers and the cache control bits alone (APM volume 2, table 14-1).
    pub(crate) fn reset_state(&mut self, init: bool) {
        self.trace_reset();
        self.reset_svm(init);
        let data = Segment { selector: 0, base: 0, limit: 0xffff, attributes: attr::real(0) };
        self.gpr = [0; GPR_SLOTS];
        // RDX tells family, model and stepping.
        self.gpr[2] = u64::from(self.config.model.signature());
        self.rip = 0xfff0;
        self.set_rflags(0);
        self.seg = [data; 6];
        self.seg[usize::from(CS)] = Segment {
            selector: 0xf000,
            base: 0xffff_0000,
            limit: 0xffff,
            attributes: attr::real(0) | attr::CODE,
        };
        let system = attr::PRESENT;
        self.ldtr = Segment { attributes: system | 2, ..data };
        self.tr = Segment { attributes: system | 11, ..data };
        self.gdtr = TableRegister { base: 0, limit: 0xffff };
        self.idtr = TableRegister { base: 0, limit: 0xffff };
        let cache = if init { self.cr0 & (CR0_CD | CR0_NW) } else { CR0_CD | CR0_NW };
        self.cr0 = CR0_ET | cache;
        self.cr2 = 0;
        self.cr3 = 0;
        self.cr4 = 0;
        self.pdptes = [0; 4];
        self.efer = 0;
        self.dr = [0; 8];
        self.dr[6] = DR6_FIXED;
        self.dr[7] = DR7_FIXED;
        self.cpl = 0;
        self.shadow = false;
        self.debug_shadow = false;
        self.nmi_blocked = false;
        self.smm = false;
        self.smm_nmi_blocked = false;
        self.keep_rip = false;
        self.pending_debug = 0;
        self.io_trap = IoTrap::default();
        if !init {
            self.smbase = SMBASE_RESET;
            self.xcr0 = 1;
            self.pkru = 0;
            self.fpu = Fpu::default();
            self.msrs = Msrs::new(&self.config.model);
            self.keep_time();
            self.restore_run_time(0);
            self.instructions = 0;
        }
        // A system that starts anew has other things where the clock was.
        self.msrs.kvm = KvmMsrs::default();
        self.counter_moved();
        self.activity =
            if self.config.apic_id == 0 { Activity::Running } else { Activity::WaitForStartup };
        self.take_up_map();
        self.tlb.flush_every_asid();
        self.update_mode();
    }
}
