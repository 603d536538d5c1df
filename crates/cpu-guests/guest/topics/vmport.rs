//! VMware's backdoor, of machines that have it: the port, which programs of any privilege may read, and the
//! performance counters that tell of time.

use crate::kit::*;

const MAGIC: u32 = 0x564d_5868;
const PORT: u32 = 0x5658;

macro_rules! ask {
    ($how:ident, $magic:expr, $command:expr) => {{
        let (eax, ebx, ecx): (u32, u32, u32);
        let vector = $how!(["in eax, dx", "mov r8d, ebx", "xchg rbx, r9"],
            inout("eax") $magic => eax, inout("ecx") $command => ecx, inout("edx") PORT => _,
            out("r8") ebx, inout("r9") 0u64 => _);
        (vector, eax, ebx, ecx)
    }};
}

/// The backdoor's counter, and what reading it raised.
macro_rules! counter {
    ($how:ident, $number:expr) => {{
        let (low, high): (u32, u32);
        let vector = $how!(["rdpmc"], in("ecx") $number, out("eax") low, out("edx") high);
        (vector, u64::from(low) | u64::from(high) << 32)
    }};
}

pub fn run() {
    let (_, version, magic, _) = ask!(attempt, MAGIC, 10);
    if magic != MAGIC {
        skip("VMware's port");
        return;
    }
    check("version", version, 6);
    let wrong = ask!(attempt, MAGIC ^ 1, 10);
    check("another word is no request", (wrong.0, wrong.2 == MAGIC), (NONE, false));
    let (vector, megabytes, ..) = ask!(attempt, MAGIC, 20);
    check("memory", (vector, (16..1 << 20).contains(&megabytes)), (NONE, true));
    let (vector, version, magic, _) = ask!(user, MAGIC, 10);
    check("from CPL 3", (vector, version, magic), (0x80, 6, MAGIC));
    check("another word from CPL 3", ask!(user, MAGIC ^ 1, 10).0, GP);
    for number in [0x1_0000, 0x1_0001, 0x1_0002] {
        let (vector, first) = counter!(attempt, number);
        check(format_args!("counter {number:#x}"), vector, NONE);
        let (vector, second) = counter!(user, number);
        check(format_args!("counter {number:#x} from CPL 3"), (vector, second >= first), (0x80, true));
    }
    check("no further counter", counter!(attempt, 0x1_0003).0, GP);
}
