//! Rhea's CPU against the host's own, instruction by instruction.
//!
//! Every form that iced-x86 knows within the CPU's model and 64-bit mode is run, with random operands
//! and on random registers and memory, by the processor that the test runs on and by the software CPU,
//! in turn interpreted and translated; registers, flags, memory and exceptions have to agree. `forms`
//! says what is left out, and why.
//!
//! A case follows from its number alone. The environment may ask for more than the default:
//! `RHEA_CASES=50000000` for a long run, `RHEA_SEED=n` for other cases, `RHEA_FORM=Add_rm64_r64` for one
//! form, `RHEA_CASE=n` for the one case that a failure names.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod emulated;
mod forms;
mod generate;
mod native;
mod rng;
#[path = "../splitmix/mod.rs"]
mod splitmix;
mod state;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use iced_x86::{Code, Instruction, Mnemonic};

use emulated::Emulated;
use forms::Verdict;
use generate::{Case, Pool};
use native::Native;
use rng::Rng;
use state::{BREAKPOINT, CODE, DATA, DATA_LEN, Event, PAGE, STACK, State};

const DEFAULT_CASES: u64 = 1_000_000;

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is not a number: {value}")))
}

/// The host's processor, and ours: interpreted and translated.
struct Pair {
    native: Native,
    emulated: [Emulated; 2],
}

/// Whether a translated instruction, of which `host` is what it comes to, can be seen to be done: what
/// follows it is executed as well, without the trap flag.
fn can_be_translated(case: &Case, (host, event): (&State, Event)) -> bool {
    use Mnemonic::*;
    let itself = case.state.rip..case.state.rip + case.bytes.len() as u64;
    // A repeated one may not be finished, and a branch may go to itself.
    let stays = event.vector == 1 && itself.contains(&host.rip);
    let int3 = case.insn.mnemonic() == Int && case.insn.immediate8() == 3;
    let shows_flags = matches!(case.insn.mnemonic(), Pushf | Pushfq | Popf | Popfq | Iretq | Int3);
    !stays && !int3 && !shows_flags
}

impl Pair {
    /// Runs a case on the host's and on one of ours; returns the differences.
    fn run(&mut self, case: &Case, translated: bool) -> Option<String> {
        let undefined = forms::undefined_flags(&case.insn, case.state.gpr[1])?;
        let offset = (case.state.rip - CODE) as usize;
        self.native.write_code(offset, &case.bytes);
        let (mut host, mut ours) = (case.state.clone(), case.state.clone());
        let host_event = self.native.step(&mut host);
        self.native.write_code(offset, &vec![BREAKPOINT; case.bytes.len()]);
        if translated && !can_be_translated(case, (&host, host_event)) {
            return None;
        }
        let emulated = &mut self.emulated[usize::from(translated)];
        emulated.write_code(offset, &case.bytes);
        let mut our_event = emulated.step(&mut ours);
        emulated.write_code(offset, &vec![BREAKPOINT; case.bytes.len()]);
        let faults = host_event.vector != 1 && our_event.vector != 1;
        if case.insn.is_string_instruction() && case.insn.op_count() == 2 && faults {
            // Where both operands fault, which of them is told differs even with a repeat prefix.
            our_event = host_event;
        }
        if is_image(&case.insn) {
            // In which order an image's parts are accessed is the processor's own affair.
            if (host_event.vector, our_event.vector) == (14, 14) {
                our_event = host_event;
            }
        }
        if matches!(case.insn.mnemonic(), Mnemonic::Fxsave | Mnemonic::Fxsave64)
            && let Some(address) = generate::memory_address(&case.insn, &case.state)
        {
            // MXCSR_MASK: some hosts have a bit more.
            for state in [&mut host, &mut ours] {
                state.bytes_at(address + 28).into_iter().for_each(|bytes| {
                    let n = bytes.len().min(4);
                    bytes[..n].fill(0)
                });
            }
        }
        // An instruction that faults leaves all flags as they were.
        let ignored = if host_event.vector == 1 { undefined } else { 0 };
        differences(case, (&host, host_event), (&ours, our_event), ignored)
    }
}

/// Whether `insn` loads or stores more than a number.
fn is_image(insn: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(
        insn.mnemonic(),
        Fxsave | Fxsave64 | Fxrstor | Fxrstor64 | Fnsave | Frstor | Fnstenv | Fldenv
    )
}

/// What differs, a line each, with what it was before.
fn differences(
    case: &Case,
    (host, host_event): (&State, Event),
    (ours, our_event): (&State, Event),
    ignored_flags: u64,
) -> Option<String> {
    const NAMES: [&str; 16] = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12",
        "r13", "r14", "r15",
    ];
    let before = &case.state;
    let mut text = String::new();
    if host_event != our_event {
        let _ = writeln!(text, "  event: host {host_event:x?}, ours {our_event:x?}");
    }
    let mut word = |name: &str, before: u64, host: u64, ours: u64| {
        if host != ours {
            let _ = writeln!(text, "  {name}: before {before:#x}, host {host:#x}, ours {ours:#x}");
        }
    };
    for (n, name) in NAMES.iter().enumerate() {
        word(name, before.gpr[n], host.gpr[n], ours.gpr[n]);
    }
    word("rip", before.rip, host.rip, ours.rip);
    let flags = |state: &State| state.rflags & !ignored_flags;
    word("rflags", flags(before), flags(host), flags(ours));
    let u16s = |at| (before.image_u16(at), host.image_u16(at), ours.image_u16(at));
    for (name, at) in [("fcw", 0), ("fsw", 2), ("ftw", 4)] {
        let (before, host, ours) = u16s(at);
        word(name, before.into(), host.into(), ours.into());
    }
    // AMD's processors only store the pointers while an exception is pending, and keep as many bits of
    // them as they have of linear addresses.
    if host.image_u16(2) & 0x80 != 0 && before.image_u16(2) & 0x80 == 0 {
        word("fop", 0, host.image_u16(6).into(), ours.image_u16(6).into());
        for (name, at) in [("fip", 8), ("fdp", 16)] {
            let pointer = |state: &State| {
                u64::from_le_bytes(state.image[at..at + 8].try_into().expect("eight bytes"))
                    & 0xffff_ffff_ffff
            };
            word(name, 0, pointer(host), pointer(ours));
        }
    }
    word("mxcsr", before.mxcsr().into(), host.mxcsr().into(), ours.mxcsr().into());
    for n in 0..24 {
        let len = if n < 8 { 10 } else { 16 };
        let at = 32 + 16 * n;
        let hex = |state: &State| {
            state.image[at..at + len].iter().rev().map(|b| format!("{b:02x}")).collect::<String>()
        };
        if host.image[at..at + len] != ours.image[at..at + len] {
            let name = if n < 8 { format!("st{n}") } else { format!("xmm{}", n - 8) };
            let (before, host, ours) = (hex(before), hex(host), hex(ours));
            let _ = writeln!(text, "  {name}: before {before}, host {host}, ours {ours}");
        }
    }
    for n in 0..16 {
        let (host, ours) = (host.ymm_high[n], ours.ymm_high[n]);
        if host != ours {
            let before = before.ymm_high[n];
            let _ = writeln!(
                text,
                "  ymm{n} upper: before {before:032x}, host {host:032x}, ours {ours:032x}"
            );
        }
    }
    memory_differences(before, host, ours, &mut text);
    (!text.is_empty()).then_some(text)
}

fn memory_differences(before: &State, host: &State, ours: &State, text: &mut String) {
    if host.memory == ours.memory {
        return;
    }
    let different = |n: &usize| host.memory[*n] != ours.memory[*n];
    for n in (0..host.memory.len()).filter(different).take(24) {
        let at = n as u64;
        let address = if at < DATA_LEN { DATA + at } else { STACK + at - DATA_LEN };
        let (before, host, ours) = (before.memory[n], host.memory[n], ours.memory[n]);
        let _ = writeln!(
            text,
            "  [{address:#x}]: before {before:02x}, host {host:02x}, ours {ours:02x}"
        );
    }
}

/// A failure in full: what was run, on what.
fn describe(index: u64, case: &Case, differences: &str) -> String {
    let state = &case.state;
    let bytes = case.bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ");
    let registers: Vec<_> = (32..160)
        .step_by(16)
        .map(|at| {
            state.image[at..at + 10].iter().rev().map(|b| format!("{b:02x}")).collect::<String>()
        })
        .collect();
    format!(
        "RHEA_CASE={index}: {bytes}: {}\n{differences}  at {:#x} with gpr {:x?} rflags {:#x} fcw {:#x} \
         fsw {:#x} ftw {:#x} mxcsr {:#x}\n  st {registers:?}",
        case.insn,
        state.rip,
        state.gpr,
        state.rflags,
        state.image_u16(0),
        state.image_u16(2),
        state.image[4],
        state.mxcsr(),
    )
}

#[derive(Default)]
struct Tally {
    cases: u64,
    failures: u64,
    example: String,
}

/// `forms.txt` tells of every form within the CPU's model. `RHEA_RECORD=1` writes it anew.
#[test]
fn every_form_is_accounted_for() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/host/forms.txt");
    let table = forms::table();
    if std::env::var_os("RHEA_RECORD").is_some() {
        std::fs::write(path, &table).expect("the table can be written");
    }
    let recorded = std::fs::read_to_string(path).unwrap_or_default();
    let lines = recorded.lines().zip(table.lines());
    let first = lines.enumerate().find(|(_, (recorded, now))| recorded != now);
    assert_eq!(first, None, "the recorded table is not that of the CPU's model");
    assert_eq!(recorded.lines().count(), table.lines().count());
}

#[test]
fn instructions_do_what_the_host_does() {
    let seed = number("RHEA_SEED").unwrap_or(1);
    let cases = number("RHEA_CASES").unwrap_or(DEFAULT_CASES);
    let only = std::env::var("RHEA_FORM").ok();
    let forms: Vec<Code> = forms::covered();
    let range = number("RHEA_CASE").map_or(0..cases, |n| n..n + 1);
    let pool = Pool::new(seed);
    let emulated = [Emulated::new(false), Emulated::new(true)];
    let mut pair = Pair { native: Native::new(), emulated };
    // The code page is data to some cases.
    let page = [BREAKPOINT; PAGE as usize];
    pair.native.write_code(0, &page);
    pair.emulated.iter_mut().for_each(|emulated| emulated.write_code(0, &page));
    let mut tallies: BTreeMap<String, Tally> = BTreeMap::new();
    for index in range {
        let code = forms[(index % forms.len() as u64) as usize];
        let name = format!("{code:?}");
        if only.as_ref().is_some_and(|only| *only != name) {
            continue;
        }
        let mut rng = Rng(seed.wrapping_mul(0x1000_0000_01b3) ^ index << 20);
        let tally = tallies.entry(name).or_default();
        let Some(case) = (0..16).find_map(|_| generate::case(&mut rng, &pool, code)) else {
            continue;
        };
        tally.cases += 1;
        // Each form in turn by one engine and the other.
        let translated = (index / forms.len() as u64) % 2 == 1;
        if let Some(differences) = pair.run(&case, translated) {
            tally.failures += 1;
            if tally.example.is_empty() {
                let engine = if translated { "translated" } else { "interpreted" };
                tally.example = format!("{engine}: {}", describe(index, &case, &differences));
            }
        }
    }
    report(&tallies);
    let failed = tallies.values().filter(|tally| tally.failures != 0).count();
    assert_eq!(failed, 0, "forms that differ from the host");
    let empty: Vec<_> = tallies.iter().filter(|(_, tally)| tally.cases == 0).collect();
    let names: Vec<_> = empty.iter().map(|(name, _)| name).collect();
    let few = cases < 100 * forms.len() as u64 || number("RHEA_CASE").is_some();
    assert!(few || names.is_empty(), "no case was found for {names:?}");
}

fn report(tallies: &BTreeMap<String, Tally>) {
    let total: u64 = tallies.values().map(|tally| tally.cases).sum();
    println!("{} forms, {total} cases", tallies.len());
    for (name, tally) in tallies.iter().filter(|(_, tally)| tally.failures != 0) {
        println!("{name}: {} of {} differ; {}", tally.failures, tally.cases, tally.example);
    }
}

/// The table of forms: what is compared, and what is not, with the reason.
#[test]
fn every_form_of_the_model_is_compared_or_excluded_by_name() {
    let mut excluded: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let (mut covered, mut not_on_host) = (0, Vec::new());
    for code in Code::values() {
        match forms::classify(code) {
            Verdict::Covered => covered += 1,
            Verdict::Excluded(reason) => {
                excluded.entry(reason).or_default().push(format!("{code:?}"));
            }
            Verdict::NotOnHost => not_on_host.push(format!("{code:?}")),
            Verdict::Outside => {}
        }
    }
    println!("{covered} forms are compared");
    for (reason, codes) in &excluded {
        println!("not compared, since {reason}: {}", codes.join(" "));
    }
    println!("not on this host: {}", not_on_host.join(" "));
    let excluded: usize = excluded.values().map(Vec::len).sum();
    assert!(covered + not_on_host.len() > 1000, "only {covered} forms are compared");
    assert!(excluded < 150, "{excluded} forms are excluded");
}
