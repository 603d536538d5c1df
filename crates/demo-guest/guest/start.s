# From the PVH entry (flat 32-bit protected mode, paging off, EBX = start info) to 64-bit Rust.

    .section .note.pvh, "a", @note
    .balign 4
    .long 4                 # size of the name
    .long 4                 # size of the descriptor
    .long 18                # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long start

    .section .bss
    .balign 4096
pml4:   .skip 4096
pdpt:   .skip 4096
pd:     .skip 4096 * 4
        .skip 65536
stack_top:

    .section .data
    .balign 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff    # 0x08: 64-bit code
    .quad 0x00cf93000000ffff    # 0x10: data
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt

    .section .text
    .code32
    .global start
start:
    cli
    cld
    mov esp, offset stack_top
    # Identity map of the first 4 GiB with 2 MiB pages.
    mov eax, offset pdpt
    or eax, 3
    mov [pml4], eax
    mov eax, offset pd
    or eax, 3
    mov edi, offset pdpt
    mov ecx, 4
2:  mov [edi], eax
    add eax, 4096
    add edi, 8
    loop 2b
    mov eax, 0x83               # present, writable, large
    mov edi, offset pd
    mov ecx, 2048
3:  mov [edi], eax
    add eax, 0x200000
    add edi, 8
    loop 3b
    # Long mode: PAE and SSE in CR4, LME in EFER, paging in CR0.
    mov eax, offset pml4
    mov cr3, eax
    mov eax, 0x620              # PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, 0x80000023         # PG, NE, MP... PE: bits 31, 5, 1, 0
    mov cr0, eax
    lgdt [gdt_pointer]
    mov eax, offset start64
    push 8
    push eax
    retf

    .code64
start64:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    lea rsp, [rip + stack_top]
    mov edi, ebx
    call guest_main
4:  hlt
    jmp 4b

# IRQ 0: count, tell the controller, return. Keeps every register.
    .global timer_entry
timer_entry:
    push rax
    lock inc qword ptr [rip + TICKS]
    mov al, 0x20
    out 0x20, al
    pop rax
    iretq

# Anything else: say so and power off.
    .global fault_entry
fault_entry:
    cld
    and rsp, -16
    call guest_fault

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
    cmp rcx, rcx                # an empty comparison is equal
    repe cmpsb
    je 1f
    movzx eax, byte ptr [rdi - 1]
    movzx ecx, byte ptr [rsi - 1]
    sub ecx, eax
    mov eax, ecx
1:  ret

# Panics end the guest, so nothing ever unwinds; the reference is in precompiled code.
    .global rust_eh_personality
rust_eh_personality:
    ud2
