//! The test guest's user of /dev/kvm: runs nested guests of a few instructions and checks what they did
//! (Linux, Documentation/virt/kvm/api.rst). Compiled by `cargo xtask guests` into a static program.
//!
//! Prints "kvm-test: NAME passed" for each test, or "kvm-test: NAME failed: WHY", and at last
//! "kvm-test: done".

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::time::Instant;

unsafe extern "C" {
    fn ioctl(fd: i32, request: u64, argument: u64) -> i32;
    fn mmap(at: *mut u8, len: usize, prot: i32, flags: i32, fd: i32, offset: i64) -> *mut u8;
}

const GET_API_VERSION: u64 = 0xae00;
const CREATE_VM: u64 = 0xae01;
const GET_VCPU_MMAP_SIZE: u64 = 0xae04;
const GET_SUPPORTED_CPUID: u64 = 0xc008_ae05;
const CREATE_VCPU: u64 = 0xae41;
const SET_USER_MEMORY_REGION: u64 = 0x4020_ae46;
const RUN: u64 = 0xae80;
const GET_REGS: u64 = 0x8090_ae81;
const SET_REGS: u64 = 0x4090_ae82;
const GET_SREGS: u64 = 0x8138_ae83;
const SET_SREGS: u64 = 0x4138_ae84;
const INTERRUPT: u64 = 0x4004_ae86;
const SET_CPUID2: u64 = 0x4008_ae90;

const EXIT_IO: u32 = 2;
const EXIT_HLT: u32 = 5;
const EXIT_MMIO: u32 = 6;
const EXIT_IRQ_WINDOW: u32 = 7;

const RAM: usize = 4 << 20;
/// Where guests' code, tables and stack are.
const CODE: u64 = 0x1000;
const TABLES: u64 = 0x10_0000;
const GDT: u64 = 0x11_0000;
const IDT: u64 = 0x11_1000;
const STACK: u64 = 0x9000;

type Result<T = ()> = std::result::Result<T, String>;

/// In the order of `struct kvm_regs`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Regs {
    rax: u64,
    rbx: u64,
    rcx: u64,
    rdx: u64,
    rsi: u64,
    rdi: u64,
    rsp: u64,
    rbp: u64,
    high: [u64; 8],
    rip: u64,
    rflags: u64,
}

/// `struct kvm_segment`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Segment {
    base: u64,
    limit: u32,
    selector: u16,
    kind: u8,
    present: u8,
    dpl: u8,
    db: u8,
    s: u8,
    l: u8,
    g: u8,
    avl: u8,
    unusable: u8,
    padding: u8,
}

/// `struct kvm_dtable`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Table {
    base: u64,
    limit: u16,
    padding: [u16; 3],
}

/// `struct kvm_sregs`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Sregs {
    cs: Segment,
    ds: Segment,
    es: Segment,
    fs: Segment,
    gs: Segment,
    ss: Segment,
    tr: Segment,
    ldt: Segment,
    gdt: Table,
    idt: Table,
    cr0: u64,
    cr2: u64,
    cr3: u64,
    cr4: u64,
    cr8: u64,
    efer: u64,
    apic_base: u64,
    interrupts: [u64; 4],
}

/// A virtual machine of one CPU.
struct Vm {
    cpu: File,
    _vm: File,
    ram: *mut u8,
    run: *mut u8,
    /// What the guest wrote to port 0xe9.
    output: Vec<u8>,
}

fn call(fd: &File, request: u64, argument: u64) -> Result<i32> {
    // SAFETY: the arguments are numbers or structures of the kernel's layout that live long enough.
    let result = unsafe { ioctl(fd.as_raw_fd(), request, argument) };
    if result < 0 {
        return Err(format!("ioctl {request:#x}: {}", std::io::Error::last_os_error()));
    }
    Ok(result)
}

fn map(len: usize, fd: Option<&File>) -> Result<*mut u8> {
    let (flags, fd) = match fd {
        Some(fd) => (1, fd.as_raw_fd()),
        None => (0x22, -1),
    };
    // SAFETY: a new mapping at an address of the kernel's choice.
    let at = unsafe { mmap(std::ptr::null_mut(), len, 3, flags, fd, 0) };
    if at as isize == -1 { Err("mmap".to_owned()) } else { Ok(at) }
}

impl Vm {
    fn new(kvm: &File) -> Result<Self> {
        let fd = call(kvm, CREATE_VM, 0)?;
        // SAFETY: the kernel just made it for us.
        let vm = unsafe { File::from_raw_fd(fd) };
        let ram = map(RAM, None)?;
        let region = [0u64, 0, RAM as u64, ram as u64];
        call(&vm, SET_USER_MEMORY_REGION, region.as_ptr() as u64)?;
        let fd = call(&vm, CREATE_VCPU, 0)?;
        // SAFETY: as above.
        let cpu = unsafe { File::from_raw_fd(fd) };
        let size = call(kvm, GET_VCPU_MMAP_SIZE, 0)?;
        let run = map(size as usize, Some(&cpu))?;
        let mut cpuid = vec![0u32; 2 + 256 * 10];
        cpuid[0] = 256;
        call(kvm, GET_SUPPORTED_CPUID, cpuid.as_mut_ptr() as u64)?;
        call(&cpu, SET_CPUID2, cpuid.as_ptr() as u64)?;
        Ok(Self { cpu, _vm: vm, ram, run, output: Vec::new() })
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        assert!(at as usize + bytes.len() <= RAM);
        for (n, byte) in bytes.iter().enumerate() {
            // SAFETY: within the mapping, as just checked.
            unsafe { self.ram.add(at as usize + n).write_volatile(*byte) };
        }
    }

    fn read(&self, at: u64) -> u64 {
        assert!(at as usize + 8 <= RAM);
        let mut bytes = [0; 8];
        for (n, byte) in bytes.iter_mut().enumerate() {
            // SAFETY: within the mapping, as just checked.
            *byte = unsafe { self.ram.add(at as usize + n).read_volatile() };
        }
        u64::from_le_bytes(bytes)
    }

    /// A field of `struct kvm_run`.
    fn field<T: Copy>(&self, offset: usize) -> T {
        // SAFETY: the structure is a page at least.
        unsafe { self.run.add(offset).cast::<T>().read_volatile() }
    }

    fn regs(&self) -> Result<Regs> {
        let mut regs = Regs::default();
        call(&self.cpu, GET_REGS, &raw mut regs as u64)?;
        Ok(regs)
    }

    fn start(&self, regs: Regs) -> Result {
        call(&self.cpu, SET_REGS, &raw const regs as u64).map(|_| ())
    }

    fn real_mode(&self, code: &[u8]) -> Result {
        self.write(CODE, code);
        let mut sregs = Sregs::default();
        call(&self.cpu, GET_SREGS, &raw mut sregs as u64)?;
        sregs.cs.base = 0;
        sregs.cs.selector = 0;
        call(&self.cpu, SET_SREGS, &raw const sregs as u64)?;
        self.start(Regs { rip: CODE, rsp: STACK, rflags: 2, ..Regs::default() })
    }

    fn long_mode(&self, code: &[u8]) -> Result {
        self.write(CODE, code);
        let put = |at: u64, value: u64| self.write(at, &value.to_le_bytes());
        put(TABLES, TABLES + 0x1007);
        put(TABLES + 0x1000, TABLES + 0x2007);
        put(TABLES + 0x2000, 0x87);
        put(TABLES + 0x2008, 0x20_0087);
        // Memory that there is not, for MMIO.
        put(TABLES + 0x2010, 0x4000_0087);
        put(GDT + 8, 0x00af_9b00_0000_ffff);
        put(GDT + 16, 0x00cf_9300_0000_ffff);
        let mut sregs = Sregs::default();
        call(&self.cpu, GET_SREGS, &raw mut sregs as u64)?;
        let data = Segment {
            limit: u32::MAX,
            selector: 16,
            kind: 3,
            present: 1,
            db: 1,
            s: 1,
            g: 1,
            ..Segment::default()
        };
        sregs.cs = Segment { selector: 8, kind: 11, db: 0, l: 1, ..data };
        (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
        sregs.gdt = Table { base: GDT, limit: 0x17, ..Table::default() };
        sregs.idt = Table { base: IDT, limit: 0xfff, ..Table::default() };
        sregs.cr0 = 0x8000_0031;
        sregs.cr3 = TABLES;
        sregs.cr4 = 0x620;
        sregs.efer = 0x500;
        call(&self.cpu, SET_SREGS, &raw const sregs as u64)?;
        self.start(Regs { rip: CODE, rsp: STACK, rflags: 2, ..Regs::default() })
    }

    /// Runs until the guest halts; the handler sees other exits than output.
    fn run(&mut self, mut other: impl FnMut(&mut Self, u32) -> Result) -> Result {
        loop {
            call(&self.cpu, RUN, 0)?;
            let reason: u32 = self.field(8);
            let is_output = reason == EXIT_IO && self.field::<u8>(32) == 1;
            match reason {
                EXIT_HLT => return Ok(()),
                EXIT_IO if is_output && self.field::<u16>(34) == 0xe9 => {
                    let size = usize::from(self.field::<u8>(33)) * self.field::<u32>(36) as usize;
                    let at = self.field::<u64>(40) as usize;
                    for n in 0..size {
                        let byte = self.field(at + n);
                        self.output.push(byte);
                    }
                }
                reason => other(self, reason)?,
            }
        }
    }

    fn run_alone(&mut self) -> Result {
        self.run(|vm, reason| {
            let rip = vm.regs()?.rip;
            Err(format!("exit {reason} at {rip:#x}, detail {:#x}", vm.field::<u64>(32)))
        })
    }
}

fn equal<T: PartialEq + std::fmt::Debug>(what: &str, found: T, expected: T) -> Result {
    if found == expected { Ok(()) } else { Err(format!("{what} is {found:x?}, not {expected:x?}")) }
}

/// A sum, a subroutine, a string to a port.
fn real_mode(kvm: &File) -> Result {
    let mut vm = Vm::new(kvm)?;
    vm.real_mode(&[
        0x31, 0xc0, // xor ax, ax
        0xb9, 0x64, 0x00, // mov cx, 100
        0x01, 0xc8, // add ax, cx
        0xe2, 0xfc, // loop
        0xe8, 0x01, 0x00, // call +1
        0xf4, // hlt
        0xbe, 0x19, 0x10, // mov si, 0x1019
        0xb9, 0x05, 0x00, // mov cx, 5
        0xba, 0xe9, 0x00, // mov dx, 0xe9
        0xf3, 0x6e, 0xc3, // rep outsb; ret
    ])?;
    vm.write(CODE + 0x19, b"hello");
    vm.run_alone()?;
    equal("AX", vm.regs()?.rax & 0xffff, 5050)?;
    equal("output", vm.output.as_slice(), b"hello".as_slice())
}

/// From real mode through protected mode to 64-bit mode, by the guest itself.
fn mode_switches(kvm: &File) -> Result {
    let mut vm = Vm::new(kvm)?;
    let put = |at: u64, value: u64| vm.write(at, &value.to_le_bytes());
    put(TABLES, TABLES + 0x1007);
    put(TABLES + 0x1000, TABLES + 0x2007);
    put(TABLES + 0x2000, 0x87);
    put(0x2008, 0x00af_9b00_0000_ffff);
    put(0x2010, 0x00cf_9300_0000_ffff);
    put(0x2018, 0x00cf_9b00_0000_ffff);
    vm.write(0x2000, &[0x1f, 0x00, 0x00, 0x20, 0x00, 0x00]);
    vm.real_mode(&[
        0x0f, 0x01, 0x16, 0x00, 0x20, // lgdt [0x2000]
        0x0f, 0x20, 0xc0, // mov eax, cr0
        0x0c, 0x01, // or al, 1
        0x0f, 0x22, 0xc0, // mov cr0, eax
        0xea, 0x00, 0x11, 0x18, 0x00, // jmp 0x18:0x1100
    ])?;
    vm.write(
        0x1100,
        &[
            0x0f, 0x20, 0xe0, 0x83, 0xc8, 0x20, 0x0f, 0x22, 0xe0, // cr4 |= PAE
            0xb8, 0x00, 0x00, 0x10, 0x00, 0x0f, 0x22, 0xd8, // cr3 = TABLES
            0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f, 0x32, 0x0d, 0x00, 0x01, 0x00, 0x00, 0x0f,
            0x30, // efer |= LME
            0x0f, 0x20, 0xc0, 0x0d, 0x00, 0x00, 0x00, 0x80, 0x0f, 0x22, 0xc0, // cr0 |= PG
            0xea, 0x00, 0x12, 0x00, 0x00, 0x08, 0x00, // jmp 8:0x1200
        ],
    );
    vm.write(
        0x1200,
        &[
            0x48, 0xb8, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, // mov rax, imm64
            0x48, 0x89, 0x04, 0x25, 0x00, 0x30, 0x00, 0x00, // mov [0x3000], rax
            0xf4,
        ],
    );
    vm.run_alone()?;
    equal("memory", vm.read(0x3000), 0x1122_3344_5566_7788)
}

/// CPUID, MSRs, the time-stamp counter and memory from the first to the last page.
fn long_mode(kvm: &File) -> Result {
    let mut vm = Vm::new(kvm)?;
    vm.long_mode(&[
        0x31, 0xc0, 0x0f, 0xa2, // cpuid(0)
        0x89, 0x1c, 0x25, 0x00, 0x30, 0x00, 0x00, // mov [0x3000], ebx
        0x0f, 0x31, 0x89, 0xc6, // rdtsc; mov esi, eax
        0xb9, 0x82, 0x00, 0x00, 0xc0, // LSTAR
        0xb8, 0x78, 0x56, 0x34, 0x12, 0x31, 0xd2, 0x0f, 0x30, // wrmsr
        0x31, 0xc0, 0x0f, 0x32, 0x89, 0xc3, // rdmsr; mov ebx, eax
        0xbf, 0x00, 0x00, 0x20, 0x00, // mov edi, 2 MiB
        0xb9, 0x00, 0x00, 0x04, 0x00, // mov ecx, 2 MiB / 8
        0xf3, 0x48, 0xab, // rep stosq
        0xf4,
    ])?;
    vm.run_alone()?;
    let regs = vm.regs()?;
    equal("vendor", vm.read(0x3000) as u32, u32::from_le_bytes(*b"Auth"))?;
    equal("LSTAR", regs.rbx, 0x1234_5678)?;
    equal("the last bytes", vm.read(0x3f_fff8), 0x1234_5678)
}

/// Reads and writes of memory that there is not come here.
fn mmio(kvm: &File) -> Result {
    let mut vm = Vm::new(kvm)?;
    vm.long_mode(&[
        0xbb, 0x00, 0x00, 0x40, 0x00, // mov ebx, 4 MiB (mapped to 1 GiB)
        0xb8, 0xef, 0xbe, 0xad, 0xde, // mov eax, 0xdeadbeef
        0x89, 0x43, 0x10, // mov [rbx + 0x10], eax
        0x48, 0x8b, 0x4b, 0x20, // mov rcx, [rbx + 0x20]
        0xf4,
    ])?;
    let mut seen = Vec::new();
    vm.run(|vm, reason| {
        equal("reason", reason, EXIT_MMIO)?;
        seen.push((vm.field::<u64>(32), vm.field::<u32>(48), vm.field::<u8>(52)));
        if vm.field::<u8>(52) == 0 {
            // SAFETY: the data field of the structure.
            unsafe { vm.run.add(40).cast::<u64>().write_volatile(0x0102_0304_0506_0708) };
        }
        Ok(())
    })?;
    equal("accesses", seen, vec![(0x4000_0010, 4, 1), (0x4000_0020, 8, 0)])?;
    equal("RCX", vm.regs()?.rcx, 0x0102_0304_0506_0708)
}

/// Exceptions go to the guest's own handler; interrupts arrive when it lets them.
fn events(kvm: &File) -> Result {
    let mut vm = Vm::new(kvm)?;
    for (vector, handler) in [(6u64, 0x1300u64), (0x40, 0x1320)] {
        let low = handler | 8 << 16 | 0x8e00 << 32;
        vm.write(IDT + 16 * vector, &low.to_le_bytes());
    }
    vm.long_mode(&[
        0x0f, 0x0b, // ud2
        0x90, 0x90, 0xfb, // sti after some time with interrupts off
        0x90, 0x90, 0x90, 0xff, 0xc3, // inc ebx
        0xfa, 0xf4, // cli; hlt
    ])?;
    // add qword [rsp], 2; mov al, 'U'; out 0xe9, al; iretq
    vm.write(0x1300, &[0x48, 0x83, 0x04, 0x24, 0x02, 0xb0, b'U', 0xe6, 0xe9, 0x48, 0xcf]);
    vm.write(0x1320, &[0xb0, b'I', 0xe6, 0xe9, 0x48, 0xcf]);
    // Ask for the window.
    // SAFETY: the first field of the structure.
    unsafe { vm.run.write_volatile(1) };
    vm.run(|vm, reason| {
        equal("reason", reason, EXIT_IRQ_WINDOW)?;
        // SAFETY: as above.
        unsafe { vm.run.write_volatile(0) };
        let vector = 0x40u32;
        call(&vm.cpu, INTERRUPT, &raw const vector as u64).map(|_| ())
    })?;
    equal("output", vm.output.as_slice(), b"UI".as_slice())?;
    equal("EBX", vm.regs()?.rbx, 1)
}

/// Long enough that the host's timer interrupts it many times.
fn a_busy_guest(kvm: &File) -> Result {
    let mut vm = Vm::new(kvm)?;
    vm.long_mode(&[
        0xb9, 0x80, 0x96, 0x98, 0x00, // mov ecx, 10000000
        0x48, 0x01, 0xc8, // add rax, rcx
        0xff, 0xc9, 0x75, 0xf9, // dec ecx; jnz
        0xf4,
    ])?;
    let start = Instant::now();
    vm.run_alone()?;
    println!("kvm-test: ten million rounds took {:?}", start.elapsed());
    equal("RAX", vm.regs()?.rax, 50_000_005_000_000)
}

/// Exits and entries, back to back.
fn many_exits(kvm: &File) -> Result {
    let mut vm = Vm::new(kvm)?;
    vm.long_mode(&[
        0xb9, 0x10, 0x27, 0x00, 0x00, // mov ecx, 10000
        0x88, 0xc8, 0xe6, 0xe9, // mov al, cl; out 0xe9, al
        0xff, 0xc9, 0x75, 0xf8, // dec ecx; jnz
        0xf4,
    ])?;
    let start = Instant::now();
    vm.run_alone()?;
    println!("kvm-test: ten thousand exits took {:?}", start.elapsed());
    equal("bytes", vm.output.len(), 10_000)
}

fn main() {
    let kvm = File::options().read(true).write(true).open("/dev/kvm");
    let kvm = match kvm {
        Ok(kvm) => kvm,
        Err(error) => return println!("kvm-test: open failed: {error}"),
    };
    match call(&kvm, GET_API_VERSION, 0) {
        Ok(version) => println!("kvm-test: version {version}"),
        Err(why) => return println!("kvm-test: open failed: {why}"),
    }
    let tests: [(&str, fn(&File) -> Result); 7] = [
        ("real-mode", real_mode),
        ("mode-switches", mode_switches),
        ("long-mode", long_mode),
        ("mmio", mmio),
        ("events", events),
        ("a-busy-guest", a_busy_guest),
        ("many-exits", many_exits),
    ];
    for (name, test) in tests {
        match test(&kvm) {
            Ok(()) => println!("kvm-test: {name} passed"),
            Err(why) => println!("kvm-test: {name} failed: {why}"),
        }
    }
    println!("kvm-test: done");
}
