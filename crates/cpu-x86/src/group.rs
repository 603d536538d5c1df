//! The CPUs of one machine, as far as their caches concern each other.
//!
//! A CPU that decodes instructions from a page needs to hear of every later write to it. But CPUs may
//! hold TLB entries that let them write without a word. So it takes a new epoch, and asks all by
//! [`Signal::Flush`] to empty their first-level TLBs. Until each has passed that epoch, or does not
//! run, the page is not *settled*, and blocks decoded from it are compared with memory before each
//! execution.
//!
//! Why that is enough: a CPU enters a write permission into its TLB only if the page is not marked as
//! code at that moment, and it publishes that it runs before it enters anything. Marking a page and
//! reading who runs are ordered the other way round, so at least one side sees the other.
//!
//! The group also carries what the board changes for all CPUs at once: the A20 gate, and the map from
//! physical addresses to memory. Each change gives the map a new version and asks all CPUs to flush.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

use accel::{Signal, Signals};

use crate::hyperv::Invalidation;
#[cfg(target_arch = "x86_64")]
use crate::translate::Sharing;

/// What [`Member::passed`] holds while its CPU does not run: it has no TLB entries that matter.
const NOT_RUNNING: u64 = u64::MAX;

#[derive(Debug)]
pub(crate) struct Member {
    signals: Arc<Signals>,
    /// The latest epoch whose flush the CPU has done.
    passed: AtomicU64,
    /// The CPU's time-stamp counter is not that of the machine's clock.
    apart: AtomicBool,
    /// What other CPUs want it to forget of its translations, how often they have asked, and up to which time
    /// that is done (see `hyperv`).
    pub(crate) wanted: Mutex<Invalidation>,
    pub(crate) asked: AtomicU64,
    pub(crate) invalidated: AtomicU64,
}

impl Member {
    /// Whether its CPU does not run.
    pub(crate) fn rests(&self) -> bool {
        self.passed.load(Ordering::SeqCst) == NOT_RUNNING
    }
}

/// The CPUs that share a guest's memory. Each machine makes one and gives it to all its CPUs.
#[derive(Debug, Default)]
pub struct CpuGroup {
    epoch: AtomicU64,
    members: RwLock<Vec<Arc<Member>>>,
    /// Version of the physical address map, the A20 gate included.
    map: AtomicU64,
    a20_closed: AtomicBool,
    /// Held from marking a page as code until the flush for it is asked for.
    marking: Mutex<()>,
    /// Whose turn it is, and who is next, for CPUs that run one at a time.
    turn: Mutex<()>,
    next_turn: Mutex<()>,
    #[cfg(target_arch = "x86_64")]
    sharing: Arc<Sharing>,
}

impl CpuGroup {
    /// Opens or closes the A20 gate: while it is closed, bit 20 of every physical address that a CPU
    /// outside system management mode uses is zero. A CPU that has it closed for itself by an I/O
    /// instruction sees it so with the next one.
    pub fn set_a20(&self, open: bool) {
        if self.a20_closed.swap(!open, Ordering::SeqCst) == open {
            self.map_changed();
        }
    }

    /// Whether the A20 gate is open, as it is at first.
    pub fn a20(&self) -> bool {
        !self.a20_closed.load(Ordering::SeqCst)
    }

    /// The map from physical addresses to memory has changed: every CPU drops what its TLB has of it
    /// before its next block of instructions; one that made the change by an I/O instruction or a store
    /// to a device, before its next instruction.
    pub fn map_changed(&self) {
        self.map.fetch_add(1, Ordering::SeqCst);
        let members = self.members.read().unwrap_or_else(|e| e.into_inner());
        members.iter().for_each(|member| member.signals.raise(Signal::Flush));
    }

    /// Writes to pages that were known to be dirty are to be noted again: every CPU asks again before
    /// it writes, from its next block of instructions on.
    pub fn watch_writes(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        let members = self.members.read().unwrap_or_else(|e| e.into_inner());
        members.iter().for_each(|member| member.signals.raise(Signal::Flush));
    }

    /// The translations that the CPUs share.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn sharing(&self) -> Arc<Sharing> {
        Arc::clone(&self.sharing)
    }

    /// The time-stamp counter of `member`'s CPU is `apart` from the machine's clock, or is not. If that is a
    /// change, all CPUs look at it before they go on.
    pub(crate) fn set_apart(&self, member: &Member, apart: bool) {
        if member.apart.swap(apart, Ordering::SeqCst) != apart {
            let members = self.members.read().unwrap_or_else(|e| e.into_inner());
            members.iter().for_each(|member| member.signals.raise(Signal::Flush));
        }
    }

    /// Whether the time-stamp counters of all CPUs are that of the machine's clock.
    pub(crate) fn clocks_agree(&self) -> bool {
        let members = self.members.read().unwrap_or_else(|e| e.into_inner());
        members.iter().all(|member| !member.apart.load(Ordering::SeqCst))
    }

    /// Has each CPU but `own` whose number `wanted` names, in the order in which they were made, forget `what` of
    /// its translations. Returns them with the numbers of these requests.
    pub(crate) fn invalidate(
        &self,
        own: &Arc<Member>,
        wanted: impl Fn(u32) -> bool,
        what: &Invalidation,
    ) -> Vec<(Arc<Member>, u64)> {
        let members = self.members.read().unwrap_or_else(|e| e.into_inner());
        let others = (0..).zip(members.iter());
        let others = others.filter(|(n, member)| wanted(*n) && !Arc::ptr_eq(member, own));
        let ask = |(_, member): (u32, &Arc<Member>)| {
            let number = member.ask(what);
            member.signals.raise(Signal::Flush);
            (Arc::clone(member), number)
        };
        others.map(ask).collect()
    }

    /// The version of the physical address map.
    pub(crate) fn map_version(&self) -> u64 {
        self.map.load(Ordering::SeqCst)
    }

    /// Adds a CPU.
    pub(crate) fn join(&self, signals: &Arc<Signals>) -> Arc<Member> {
        let member = Arc::new(Member {
            signals: Arc::clone(signals),
            passed: AtomicU64::new(NOT_RUNNING),
            apart: AtomicBool::new(false),
            wanted: Mutex::default(),
            asked: AtomicU64::new(0),
            invalidated: AtomicU64::new(0),
        });
        self.members.write().unwrap_or_else(|e| e.into_inner()).push(Arc::clone(&member));
        member
    }

    /// Takes a CPU out.
    pub(crate) fn leave(&self, member: &Arc<Member>) {
        let mut members = self.members.write().unwrap_or_else(|e| e.into_inner());
        members.retain(|other| !Arc::ptr_eq(other, member));
    }

    /// `member` is about to run; returns the epoch that it has passed, and whether its first-level TLB
    /// has to be emptied first.
    pub(crate) fn enter(&self, member: &Member, last_passed: u64) -> (u64, bool) {
        loop {
            let epoch = self.epoch.load(Ordering::SeqCst);
            member.passed.store(epoch, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            // Whoever took a newer epoch before this may not have seen that `member` runs.
            if self.epoch.load(Ordering::SeqCst) == epoch {
                return (epoch, epoch != last_passed);
            }
        }
    }

    /// Waits until no other CPU has its turn. Each that waits gets one before any gets a second.
    pub(crate) fn turn(&self) -> MutexGuard<'_, ()> {
        let _next = self.next_turn.lock().unwrap_or_else(|e| e.into_inner());
        self.turn.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Held while a page is marked as code and the flush for it is asked for, so that whoever finds a
    /// page marked knows that the current epoch is that flush's or a later one.
    pub(crate) fn order_marks(&self) -> MutexGuard<'_, ()> {
        self.marking.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// `member` has emptied its first-level TLB after it saw `epoch`.
    pub(crate) fn pass(&self, member: &Member, epoch: u64) {
        member.passed.store(epoch, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// `member` has stopped running.
    pub(crate) fn rest(&self, member: &Member) {
        member.passed.store(NOT_RUNNING, Ordering::SeqCst);
    }

    /// The current epoch.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// A page was just marked as code: asks all CPUs to flush. Returns the epoch that they have to
    /// pass; 0 if there is only one CPU, whose TLB the caller has seen to.
    pub(crate) fn request_flush(&self) -> u64 {
        fence(Ordering::SeqCst);
        let members = self.members.read().unwrap_or_else(|e| e.into_inner());
        if members.len() <= 1 {
            return 0;
        }
        let epoch = self.epoch.fetch_add(1, Ordering::SeqCst) + 1;
        for member in members.iter() {
            if member.passed.load(Ordering::SeqCst) < epoch {
                member.signals.raise(Signal::Flush);
            }
        }
        epoch
    }

    /// The epoch that every CPU has passed.
    pub(crate) fn settled(&self) -> u64 {
        let members = self.members.read().unwrap_or_else(|e| e.into_inner());
        let passed = members.iter().map(|member| member.passed.load(Ordering::SeqCst));
        passed.min().unwrap_or(NOT_RUNNING)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use iced_x86::code_asm::*;

    use crate::cpu::Translation;
    use crate::testing::{CODE, STACK, engines, load, long_mode_cpus};

    const FUNCTION: u64 = 0x4_0000;
    const ASKED: u64 = 0x5_0000;
    const ANSWERED: u64 = 0x5_1000;

    /// One CPU writes a function, over and over, on pages that change; the other calls it after each
    /// change and serialises first, as the architecture asks for.
    #[test]
    fn code_that_another_cpu_rewrites_is_seen() {
        engines().for_each(rewrite);
    }

    fn rewrite(engine: Option<Translation>) {
        // CPUs that take turns are slow.
        let rounds = if engine.is_some_and(|how| how.check) { 100 } else { 20_000 };
        let mut cpus = long_mode_cpus(2);
        for cpu in &mut cpus {
            assert!(cpu.set_translation(engine), "the host can translate");
        }
        let mut caller = cpus.remove(0);
        let mut writer = cpus.remove(0);
        load(&caller, |a| {
            // The caller: RBX holds the next round.
            let mut wait = a.create_label();
            let mut wrong = a.create_label();
            a.mov(ebx, 1).unwrap();
            a.set_label(&mut wait).unwrap();
            a.cmp(dword_ptr(ASKED), ebx).unwrap();
            a.jne(wait).unwrap();
            a.mov(r8d, ebx).unwrap();
            a.xor(eax, eax).unwrap();
            a.cpuid().unwrap();
            a.mov(ebx, r8d).unwrap();
            // One of eight pages.
            a.mov(ecx, ebx).unwrap();
            a.and(ecx, 7).unwrap();
            a.shl(ecx, 12).unwrap();
            a.add(ecx, FUNCTION as i32).unwrap();
            a.call(rcx).unwrap();
            a.cmp(eax, ebx).unwrap();
            a.jne(wrong).unwrap();
            a.mov(dword_ptr(ANSWERED), ebx).unwrap();
            a.inc(ebx).unwrap();
            a.cmp(ebx, rounds).unwrap();
            a.jbe(wait).unwrap();
            a.set_label(&mut wrong).unwrap();
            a.hlt().unwrap();
        });
        let mut assembler = CodeAssembler::new(64).unwrap();
        let a = &mut assembler;
        let mut next = a.create_label();
        let mut wait = a.create_label();
        a.mov(ebx, 1).unwrap();
        a.set_label(&mut next).unwrap();
        a.mov(ecx, ebx).unwrap();
        a.and(ecx, 7).unwrap();
        a.shl(ecx, 12).unwrap();
        a.add(ecx, FUNCTION as i32).unwrap();
        // mov eax, imm32; ret
        a.mov(byte_ptr(rcx), 0xb8).unwrap();
        a.mov(dword_ptr(rcx + 1), ebx).unwrap();
        a.mov(byte_ptr(rcx + 5), 0xc3).unwrap();
        a.mov(dword_ptr(ASKED), ebx).unwrap();
        a.set_label(&mut wait).unwrap();
        a.cmp(dword_ptr(ANSWERED), ebx).unwrap();
        a.jne(wait).unwrap();
        a.inc(ebx).unwrap();
        a.cmp(ebx, rounds).unwrap();
        a.jbe(next).unwrap();
        a.hlt().unwrap();
        let start = CODE + 0x4000;
        let code = assembler.assemble(start).unwrap();
        writer.memory.write(start, &code).unwrap();
        writer.rip = start;
        writer.gpr[4] = STACK - 0x1000;

        let memory = std::sync::Arc::clone(&caller.memory);
        let signals = std::sync::Arc::clone(&writer.signals);
        let writes = thread::spawn(move || {
            accel::Vcpu::run(&mut writer);
            writer.gpr[3]
        });
        assert!(matches!(accel::Vcpu::run(&mut caller), accel::Exit::Halt { .. }));
        signals.raise(accel::Signal::Exit);
        writes.join().unwrap();
        let mut answered = [0; 4];
        memory.read(ANSWERED, &mut answered).unwrap();
        assert_eq!(i32::from_le_bytes(answered), rounds, "the caller ran stale code");
    }
}
