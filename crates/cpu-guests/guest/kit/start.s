# From a multiboot loader (flat 32-bit protected mode, paging off) to 64-bit Rust, with a table of
# interrupt gates behind which every event is recorded.

    .section .multiboot, "a"
    .balign 4
header:
    .long 0x1badb002
    .long 0x00010003            # page-aligned modules, memory information, addresses
    .long -(0x1badb002 + 0x00010003)
    .long header
    .long image_start
    .long image_end
    .long bss_end
    .long start

    .section .bss
    .balign 4096
    .global PML4, PDPT, PD
PML4:   .skip 4096
PDPT:   .skip 4096
PD:     .skip 4096 * 4
        .skip 65536
stack_top:
        .skip 16384
trap_stack_top:
        .skip 16384
    .global ist_stack_top
ist_stack_top:
        .skip 16384
    .global user_stack_top
user_stack_top:

    .section .data
    .balign 16
    .global GDT
GDT:
    .quad 0
    .quad 0x00af9b000000ffff    # 0x08: 64-bit code
    .quad 0x00cf93000000ffff    # 0x10: data
    .quad 0x00cf9b000000ffff    # 0x18: 32-bit code
    .quad 0x00cffb000000ffff    # 0x20: 32-bit code, user
    .quad 0x00cff3000000ffff    # 0x28: data, user
    .quad 0x00affb000000ffff    # 0x30: 64-bit code, user
    .quad 0x00009b000000ffff    # 0x38: 16-bit code
    .quad 0x000093000000ffff    # 0x40: 16-bit data
    .quad 0                     # 0x48
    .quad 0, 0                  # 0x50: task state segment
    .fill 32, 8, 0              # 0x60: for topics
gdt_end:
    .global GDTR, IDTR
GDTR:
    .word gdt_end - GDT - 1
    .quad GDT
    .balign 8
IDTR:
    .word 4095
    .quad IDT
    .balign 16
    .global TSS
TSS:
    .long 0
    .quad trap_stack_top        # RSP0
    .quad 0, 0
    .quad 0
    .quad ist_stack_top         # IST1
    .quad 0, 0, 0, 0, 0, 0
    .quad 0
    .word 0
    .word 104
    .section .bss
    .balign 16
    .global IDT
IDT: .skip 4096

    .section .text
    .code32
    .global start
start:
    cli
    cld
    mov esp, offset stack_top
    # Identity map of the first 4 GiB with 2 MiB pages, for the supervisor, and again from 512 GiB on for
    # everybody.
    mov eax, offset PDPT
    or eax, 3
    mov [PML4], eax
    or eax, 7
    mov [PML4 + 8], eax
    mov eax, offset PD
    or eax, 7
    mov edi, offset PDPT
    mov ecx, 4
2:  mov [edi], eax
    add eax, 4096
    add edi, 8
    loop 2b
    mov eax, 0x87
    mov edi, offset PD
    mov ecx, 2048
3:  mov [edi], eax
    add eax, 0x200000
    add edi, 8
    loop 3b
    mov ebx, offset start64

    .global enter_long
# From protected mode without paging to 64-bit mode, and there to EBX.
enter_long:
    mov eax, offset PML4
    mov cr3, eax
    mov eax, 0x620              # PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x901               # NXE, LME, SCE
    wrmsr
    mov eax, 0x80010033         # PG, WP, NE, ET, MP, PE
    mov cr0, eax
    lgdt [GDTR]
    push 8
    mov eax, offset entered
    push eax
    retf
    .code64
entered:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov fs, eax
    mov gs, eax
    mov ebx, ebx
    jmp rbx

start64:
    lea rsp, [rip + stack_top]
    # The task state segment's descriptor.
    lea rax, [rip + TSS]
    mov ecx, eax
    shl rcx, 16
    mov rdx, 0x0000890000000067
    or rcx, rdx
    mov [rip + GDT + 0x50], rcx
    mov eax, 0x50
    ltr ax
    # 256 gates.
    lea rdi, [rip + IDT]
    lea rsi, [rip + stubs]
    xor ecx, ecx
4:  mov eax, esi
    and eax, 0xffff
    or eax, 0x80000
    mov [rdi], eax
    mov eax, esi
    and eax, 0xffff0000
    or eax, 0xee00
    mov [rdi + 4], eax
    mov qword ptr [rdi + 8], 0
    add rdi, 16
    add rsi, 16
    inc ecx
    cmp ecx, 256
    jne 4b
    lidt [rip + IDTR]
    call guest_main
5:  cli
    hlt
    jmp 5b

# A stub of 16 bytes for each vector: an error code where the processor pushes none, then the vector.
    .balign 16
    .global stubs
stubs:
    .set n, 0
    .rept 256
    .balign 16
    .if n == 8 || (n >= 10 && n <= 14) || n == 17 || n == 21 || n == 29 || n == 30
    .else
    push 0
    .endif
    push n
    jmp trap
    .set n, n + 1
    .endr

trap:
    cld
    push r15
    push r14
    push r13
    push r12
    push r11
    push r10
    push r9
    push r8
    push rdi
    push rsi
    push rbp
    push rbx
    push rdx
    push rcx
    push rax
    mov rdi, rsp
    mov rbp, rsp
    and rsp, -16
    sub rsp, 512
    fxsave64 [rsp]              # the handler is compiled code, and nobody expects it
    call on_trap
    fxrstor64 [rsp]
    mov rsp, rbp
    pop rax
    pop rcx
    pop rdx
    pop rbx
    pop rbp
    pop rsi
    pop rdi
    pop r8
    pop r9
    pop r10
    pop r11
    pop r12
    pop r13
    pop r14
    pop r15
    add rsp, 16
    iretq

# What compiled Rust expects of its platform.
    .global memset
memset:
    mov r8, rdi
    mov rcx, rdx
    mov eax, esi
    rep stosb
    mov rax, r8
    ret
    .global memcpy
memcpy:
    mov rax, rdi
    mov rcx, rdx
    rep movsb
    ret
    .global memmove
memmove:
    cmp rdi, rsi
    jbe memcpy
    mov rax, rdi
    mov rcx, rdx
    lea rdi, [rdi + rcx - 1]
    lea rsi, [rsi + rcx - 1]
    std
    rep movsb
    cld
    ret
    .global memcmp
    .global bcmp
memcmp:
bcmp:
    xor eax, eax
    mov rcx, rdx
    cmp rcx, rcx
    repe cmpsb
    je 1f
    movzx eax, byte ptr [rdi - 1]
    movzx ecx, byte ptr [rsi - 1]
    sub ecx, eax
    mov eax, ecx
1:  ret
    .global rust_eh_personality
rust_eh_personality:
    ud2
