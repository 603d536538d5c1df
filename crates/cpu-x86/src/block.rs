//! Decoded blocks and their cache.
//!
//! A block is a run of instructions without a branch, decoded from one page; only an instruction that
//! crosses into the next page makes a block of its own with two. It is found by the host address of
//! its first byte, its RIP and the mode, so changes of the address space need no flush: the first-level
//! TLB has to give that same host address for the block to be entered. Programs and libraries are
//! loaded at random addresses: 64-bit code that is met at another address than before is moved there,
//! not decoded again.
//!
//! A block is fresh while the versions that the page log has for its pages are those it was decoded
//! at. When one differs, or other CPUs could have written unnoticed (see `group`) since its source
//! bytes were last compared with memory, they are compared again: pages that mix code with data cost a
//! comparison, not a decoding.

use memory::{CodeVersion, PAGE_SIZE, PageLog};

use crate::cpu::Cpu;
use crate::decode::{MAX_LEN, decode};
use crate::exception::Result;
use crate::host::{HostPtr, PAGE_OFFSET};
use crate::op::{Op, OpFlags};
use crate::segment::Mode;

/// log2 of the number of slots.
const SLOT_BITS: u32 = 15;
/// Most instructions in a block.
const MAX_OPS: usize = 64;
/// Source bytes that are looked at for one block.
const MAX_SOURCE: usize = 256;
/// Most instructions in the whole cache; they take less than 16 MiB.
const MAX_CACHED_OPS: usize = 1 << 18;
/// The same where what is run often is translated.
const MAX_COLD_OPS: usize = 1 << 14;
/// How often a block that is not worth a translation yet is executed before one is looked for again.
const PUT_OFF: u8 = 8;
/// What a slot has that is empty.
const NO_BLOCK: u32 = u32::MAX;

/// A part of one of the lists of a [`Pool`].
#[derive(Clone, Copy, Default)]
struct Part {
    start: u32,
    len: u32,
}

impl Part {
    fn of<T>(self, list: &[T]) -> &[T] {
        &list[self.start as usize..][..self.len as usize]
    }
}

/// What blocks consist of. It grows until all blocks are dropped.
#[derive(Default)]
struct Pool {
    ops: Vec<Op>,
    bytes: Vec<u8>,
}

impl Pool {
    /// Keeps a copy of `bytes`.
    fn keep(&mut self, bytes: &[u8]) -> Part {
        let start = self.bytes.len() as u32;
        self.bytes.extend_from_slice(bytes);
        Part { start, len: bytes.len() as u32 }
    }
}

/// A page that a block was decoded from.
struct Source {
    log: PageLog,
    /// Index of the page in `log`.
    page: usize,
    version: CodeVersion,
    /// Where the block's bytes in this page are.
    host: HostPtr,
    bytes: Part,
}

impl Source {
    fn is_current(&self) -> bool {
        self.log.code_version(self.page) == self.version
    }

    /// Whether memory still has the bytes.
    fn matches(&self, pool: &Pool) -> bool {
        let start = self.host.addr() as u64;
        let mut chunks = self.bytes.of(&pool.bytes).chunks_exact(8);
        let mut at = start;
        for chunk in &mut chunks {
            if self.host.at(at).read::<u64>().to_le_bytes() != chunk {
                return false;
            }
            at += 8;
        }
        chunks
            .remainder()
            .iter()
            .enumerate()
            .all(|(i, &byte)| self.host.at(at + i as u64).read::<u8>() == byte)
    }
}

/// A decoded block.
struct Block {
    /// Host address of the first byte; 0 if it is not in memory and the block is not to be kept.
    host: usize,
    rip: u64,
    mode: Mode,
    /// The epoch that all other CPUs have to have passed before page versions can be relied on; 0 if
    /// they had when the source was last compared with memory.
    epoch: u64,
    /// Length of the source in bytes.
    len: u32,
    ops: Part,
    /// One more than how often it is still interpreted before a translation is looked for again; 0 if none was
    /// looked for.
    put_off: u8,
    first: Option<Source>,
    /// Where its only instruction goes on, if it crosses into another page.
    second: Option<Source>,
}

impl Block {
    /// Makes it the block of the same bytes at `rip`. False, with nothing done, if that can't be.
    fn move_to(&mut self, rip: u64, pool: &mut Pool) -> bool {
        if !self.mode.is_64() {
            return false;
        }
        let distance = rip.wrapping_sub(self.rip);
        let ops = pool.ops.iter_mut().skip(self.ops.start as usize).take(self.ops.len as usize);
        ops.for_each(|op| *op = op.moved(distance));
        self.rip = rip;
        true
    }

    fn sources(&mut self) -> impl Iterator<Item = &mut Source> {
        self.first.iter_mut().chain(self.second.iter_mut())
    }
}

/// A block, to be executed.
pub(crate) struct Decoded<'a> {
    /// The instructions.
    pub(crate) ops: &'a [Op],
    /// Their length in bytes.
    pub(crate) len: u32,
}

impl Decoded<'_> {
    /// Whether its last instruction is a branch.
    pub(crate) fn ends_in_branch(&self) -> bool {
        self.ops.last().is_some_and(|op| op.flags.contains(OpFlags::BRANCH))
    }
}

/// All decoded blocks of one CPU. Empty and without memory until first used.
#[derive(Default)]
pub(crate) struct BlockCache {
    /// Indices of blocks.
    slots: Vec<u32>,
    blocks: Vec<Block>,
    pool: Pool,
}

fn slot_of(host: usize) -> usize {
    ((host as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - SLOT_BITS)) as usize
}

impl BlockCache {
    /// The block at `cpu`'s current instruction, decoded now if need be.
    ///
    /// # Errors
    /// What fetching the first instruction raises.
    #[inline(always)]
    pub(crate) fn get(&mut self, cpu: &mut Cpu) -> Result<Decoded<'_>> {
        let linear = cpu.code_linear();
        let index = match self.hit(cpu, linear) {
            Some(index) => index,
            None => self.find(cpu, linear)?,
        };
        Ok(self.decoded(index))
    }

    /// The same block, if it is to be interpreted without looking for a translation.
    ///
    /// # Errors
    /// How often it is executed, this time included, since a translation was last looked for.
    #[inline(always)]
    pub(crate) fn get_put_off(&mut self, cpu: &Cpu) -> std::result::Result<Decoded<'_>, u8> {
        let Some(index) = self.hit(cpu, cpu.code_linear()) else { return Err(1) };
        let block = &mut self.blocks[index];
        match block.put_off {
            0 => return Err(1),
            1 => return Err(PUT_OFF),
            times => block.put_off = times - 1,
        }
        Ok(self.decoded(index))
    }

    /// As [`Self::get`]; the next times that the block is executed, no translation is looked for.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn put_off(&mut self, cpu: &mut Cpu) -> Result<Decoded<'_>> {
        let linear = cpu.code_linear();
        let index = self.find(cpu, linear)?;
        self.blocks[index].put_off = PUT_OFF;
        Ok(self.decoded(index))
    }

    /// The index of the block at `linear`, `cpu`'s current instruction, if it is known and fresh beyond doubt.
    #[inline(always)]
    fn hit(&self, cpu: &Cpu, linear: u64) -> Option<usize> {
        let host = cpu.probe_code(linear)?;
        let index = *self.slots.get(slot_of(host.addr()))? as usize;
        let block = self.blocks.get(index)?;
        let fresh = block.host == host.addr()
            && block.rip == cpu.rip
            && block.mode == cpu.mode
            && block.epoch == 0
            && block.second.is_none()
            && block.first.as_ref().is_some_and(Source::is_current);
        fresh.then_some(index)
    }

    fn decoded(&self, index: usize) -> Decoded<'_> {
        let block = &self.blocks[index];
        Decoded { ops: block.ops.of(&self.pool.ops), len: block.len }
    }

    /// The index of the block at `linear`, `cpu`'s current instruction.
    #[cold]
    #[inline(never)]
    fn find(&mut self, cpu: &mut Cpu, linear: u64) -> Result<usize> {
        let most = if cpu.translates { MAX_COLD_OPS } else { MAX_CACHED_OPS };
        if self.slots.is_empty() {
            self.slots = vec![NO_BLOCK; 1 << SLOT_BITS];
            // What is not used yet takes no memory.
            self.pool.ops.reserve_exact(most + MAX_OPS);
        }
        let page = cpu.code_page(linear)?;
        let host = page.host.map_or(0, |host| host.at(linear & PAGE_OFFSET).addr());
        let slot = slot_of(host);
        let index = self.slots[slot] as usize;
        let pool = &mut self.pool;
        let known = self.blocks.get_mut(index).is_some_and(|block| {
            block.host == host
                && host != 0
                && block.mode == cpu.mode
                && (block.rip == cpu.rip || block.move_to(cpu.rip, pool))
        });
        if known && self.revalidate(cpu, index, linear)? {
            return Ok(index);
        }
        if self.pool.ops.len() > most {
            self.slots.fill(NO_BLOCK);
            self.blocks.clear();
            self.pool.ops.clear();
            self.pool.bytes.clear();
        }
        let block = decode_block(cpu, linear, MAX_OPS, &mut self.pool)?;
        let index = self.blocks.len();
        self.blocks.push(block);
        self.slots[slot] = index as u32;
        Ok(index)
    }

    /// Whether block `index`, found by its key, still is what memory holds.
    fn revalidate(&mut self, cpu: &mut Cpu, index: usize, linear: u64) -> Result<bool> {
        let (block, pool) = (&mut self.blocks[index], &self.pool);
        if let Some(second) = &block.second {
            let next = (linear | PAGE_OFFSET).wrapping_add(1) & cpu.linear_mask;
            let page = cpu.code_page(next)?;
            if page.host.map(|host| host.at(0)) != Some(second.host) {
                return Ok(false);
            }
        }
        if block.epoch == 0 && block.sources().all(|source| source.is_current()) {
            return Ok(true);
        }
        // What others wrote before they passed is there to be seen after this was asked.
        let settled = cpu.group.settled();
        let (known, mut epoch) = (block.epoch, 0);
        for source in block.sources() {
            if source.is_current() {
                epoch = epoch.max(known);
            } else {
                let (version, newer) = cpu.mark_code(&source.log, source.page, source.host);
                source.version = version;
                epoch = epoch.max(newer);
            }
            if !source.matches(pool) {
                return Ok(false);
            }
        }
        if epoch <= settled {
            epoch = 0;
        }
        block.epoch = epoch;
        Ok(true)
    }
}

/// `cpu`'s current instruction.
///
/// # Errors
/// What fetching it raises.
pub(crate) fn decode_one(cpu: &mut Cpu) -> Result<Op> {
    let mut pool = Pool::default();
    decode_block(cpu, cpu.code_linear(), 1, &mut pool)?;
    Ok(pool.ops[0])
}

/// Decodes the block at `linear`, `cpu`'s current instruction, of at most `max_ops` instructions.
///
/// # Errors
/// What fetching the first instruction raises.
fn decode_block(cpu: &mut Cpu, linear: u64, max_ops: usize, pool: &mut Pool) -> Result<Block> {
    let page = cpu.code_page(linear)?;
    let offset = linear & PAGE_OFFSET;
    let mut epoch = 0;
    let mut first = source(cpu, page.phys, page.host.map(|host| host.at(offset)), &mut epoch);
    let mut buffer = [0; MAX_SOURCE];
    let in_page = ((PAGE_SIZE - offset) as usize).min(MAX_SOURCE);
    cpu.fetch(linear, &mut buffer[..in_page])?;

    let bits = cpu.mode.code_bits();
    let start = pool.ops.len();
    let mut len = 0;
    while pool.ops.len() - start < max_ops {
        let rip = cpu.rip.wrapping_add(len as u64);
        let Some(op) = decode(
            &cpu.limits.instructions,
            cpu.mode.is_protected(),
            bits,
            rip,
            &buffer[len..in_page],
        ) else {
            break;
        };
        if op.flags.contains(OpFlags::STARTS_BLOCK) && pool.ops.len() > start {
            break;
        }
        len += usize::from(op.len);
        pool.ops.push(op);
        if op.flags.contains(OpFlags::ENDS_BLOCK) {
            break;
        }
    }
    let mut second = None;
    if pool.ops.len() == start {
        // The instruction goes on in the next page.
        let next = linear.wrapping_add(in_page as u64) & cpu.linear_mask;
        let next_page = cpu.code_page(next)?;
        second = source(cpu, next_page.phys, next_page.host, &mut epoch);
        cpu.fetch(next, &mut buffer[in_page..MAX_LEN])?;
        let Some(op) = decode(
            &cpu.limits.instructions,
            cpu.mode.is_protected(),
            bits,
            cpu.rip,
            &buffer[..MAX_LEN],
        ) else {
            unreachable!("{MAX_LEN} bytes are enough for any instruction")
        };
        len = usize::from(op.len);
        if let Some(second) = &mut second {
            second.bytes = pool.keep(&buffer[in_page..len]);
        }
        pool.ops.push(op);
    }
    cpu.trace_block(bits, &buffer[..len]);
    if let Some(first) = &mut first {
        first.bytes = pool.keep(&buffer[..len.min(in_page)]);
    }
    Ok(Block {
        // A block of which a part is not in RAM can't be told to be fresh.
        host: match (&first, len > in_page, &second) {
            (Some(first), false, _) | (Some(first), true, Some(_)) => first.host.addr(),
            _ => 0,
        },
        rip: cpu.rip,
        mode: cpu.mode,
        epoch,
        len: len as u32,
        ops: Part { start: start as u32, len: (pool.ops.len() - start) as u32 },
        put_off: 0,
        first,
        second,
    })
}

/// Makes the page at `phys` known as code, before it is read; `None` if it is not memory. `epoch` is to
/// be waited for unless all have passed it.
fn source(cpu: &mut Cpu, phys: u64, host: Option<HostPtr>, epoch: &mut u64) -> Option<Source> {
    let host = host?;
    let (log, page) = cpu.memory.code_log(phys, cpu.smm)?;
    let (version, newer) = cpu.mark_code(&log, page, host);
    if newer > cpu.group.settled() {
        *epoch = newer.max(*epoch);
    }
    Some(Source { log, page, version, host, bytes: Part::default() })
}

impl Cpu {
    /// Declares that instructions are decoded from a page; returns its version, and the epoch from
    /// which on the version is to be relied on.
    pub(crate) fn mark_code(
        &mut self,
        log: &PageLog,
        page: usize,
        host: HostPtr,
    ) -> (CodeVersion, u64) {
        // Whoever marks a page asks for a flush before anybody else takes the page for marked.
        let group = std::sync::Arc::clone(&self.group);
        let _order = group.order_marks();
        let (version, known) = log.mark_code(page);
        let epoch = if known { group.epoch() } else { group.request_flush() };
        if !known || epoch > self.passed_epoch {
            self.tlb.protect(host);
        }
        (version, epoch)
    }
}

#[cfg(test)]
mod tests {
    use accel::Vcpu;

    use super::BlockCache;
    use crate::cpu::Cpu;
    use crate::segment::DS;
    use crate::testing::{CODE, long_mode_cpus};

    /// What the block at [`CODE`] has as the immediate of its first instruction.
    fn immediate(cache: &mut BlockCache, cpu: &mut Cpu) -> u64 {
        cache.get(cpu).expect("mapped").ops[0].imm
    }

    /// A CPU that still may write to a page without a word does so after another has last compared a
    /// block with memory, and only then drops its right.
    #[test]
    fn a_write_before_the_flush_is_seen_after_it() {
        let mut cpus = long_mode_cpus(2);
        let mut writer = cpus.pop().expect("two");
        let mut reader = cpus.pop().expect("two");
        let group = std::sync::Arc::clone(&reader.group);
        for cpu in [&mut reader, &mut writer] {
            cpu.passed_epoch = group.enter(&cpu.member, cpu.passed_epoch).0;
        }
        // mov eax, 1; hlt
        reader.memory.write(CODE, &[0xb8, 1, 0, 0, 0, 0xf4]).expect("RAM");
        writer.store::<u8>(DS, CODE + 0x100, 0).expect("mapped");
        let mut cache = BlockCache::default();
        assert_eq!(immediate(&mut cache, &mut reader), 1);
        assert!(writer.signals().is_raised(accel::Signal::Flush));
        for value in [2, 3] {
            writer.store::<u8>(DS, CODE + 1, value).expect("mapped");
            assert_eq!(
                immediate(&mut cache, &mut reader),
                u64::from(value),
                "while it is not settled"
            );
        }
        writer.store::<u8>(DS, CODE + 1, 4).expect("mapped");
        for cpu in [&writer, &reader] {
            cpu.group.pass(&cpu.member, group.epoch());
        }
        writer.tlb.flush_l1();
        // Another block of the page is the first to find that all have passed.
        reader.memory.write(CODE + 0x200, &[0xf4]).expect("RAM");
        assert_eq!(immediate(&mut cache, &mut reader), 4, "after all have passed");
        // From now on the page's version tells.
        writer.store::<u8>(DS, CODE + 1, 5).expect("mapped");
        assert_eq!(immediate(&mut cache, &mut reader), 5);
    }
}
