# From 64-bit mode to protected mode without paging, to real mode below that, and back. Events in
# protected mode are recorded in a log; in real mode the first one ends the program.

    .section .bss
    .balign 4096
        .skip 16384
legacy_stack_top:
        .skip 16384
    .global legacy_trap_stack_top
legacy_trap_stack_top:
    .balign 8
LEGACY_SP: .skip 8
    .global LEGACY_RECOVER, LEGACY_RECOVER_SP, LEGACY_COUNT, LEGACY_RESUME, LEGACY_LOG, LEGACY_OUT
LEGACY_RECOVER: .skip 4
LEGACY_RECOVER_SP: .skip 4
LEGACY_COUNT: .skip 4
LEGACY_RESUME: .skip 32
LEGACY_LOG: .skip 80 * 16
LEGACY_OUT: .skip 4 * 32
    .balign 16
    .global LEGACY_IDT, LEGACY_TSS
LEGACY_IDT: .skip 2048
# A task state segment with maps of interrupts and ports.
LEGACY_TSS: .skip 0x88 + 0x2000 + 8

    .section .data
    .balign 8
LEGACY_IDTR:
    .word 2047
    .long LEGACY_IDT
    .balign 8
REAL_IDTR:
    .word 0x3ff
    .long 0

    .section .text
    .code64
    .global legacy_enter
# Calls the 32-bit routine at RDI in protected mode.
legacy_enter:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov [rip + LEGACY_SP], rsp
    mov ebx, edi
    push 0x18
    lea rax, [rip + 2f]
    push rax
    retfq
    .code32
2:  mov eax, cr0
    and eax, 0x7fffffff
    mov cr0, eax
    mov ecx, 0xc0000080
    rdmsr
    and eax, ~0x100
    wrmsr
    mov eax, cr4
    and eax, ~0x20
    mov cr4, eax
    lidt [LEGACY_IDTR]
    call flat
    mov esp, offset legacy_stack_top
    mov eax, 0x48
    ltr ax
    call ebx
    # Back: a routine may have changed anything.
    cli
    call flat
    mov eax, cr0
    and eax, 0x7fffffff
    mov cr0, eax
    mov ebx, offset legacy_back
    jmp enter_long
    .code64
legacy_back:
    lidt [rip + IDTR]
    mov rsp, [rip + LEGACY_SP]
    push 2
    popfq
    and byte ptr [rip + GDT + 0x55], 0xfd
    mov eax, 0x50
    ltr ax
    xor eax, eax
    lldt ax
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

    .code32
flat:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov fs, eax
    mov gs, eax
    ret

# The stubs of protected mode.
    .balign 16
    .global legacy_stubs
legacy_stubs:
    .set n, 0
    .rept 256
    .balign 16
    .if n == 8 || (n >= 10 && n <= 14) || n == 17
    .else
    push 0
    .endif
    push n
    jmp legacy_trap
    .set n, n + 1
    .endr

legacy_trap:
    pushad
    mov ebp, esp
    push ds
    push es
    cld
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ecx, [LEGACY_COUNT]
    inc dword ptr [LEGACY_COUNT]
    cmp ecx, 16
    jae 4f
    imul edi, ecx, 80
    add edi, offset LEGACY_LOG
    # Vector, code and frame, as far as it goes, then the general registers.
    lea esi, [ebp + 32]
    mov ecx, 11
    rep movsd
    mov esi, ebp
    mov ecx, 8
    rep movsd
    mov eax, dr6
    stosd
4:  mov eax, [ebp + 32]
    bt dword ptr [LEGACY_RESUME], eax
    jc 5f
    mov eax, [LEGACY_RECOVER]
    test eax, eax
    jnz 6f
    # Nobody expects it: the program ends there.
    jmp real_back
5:  pop es
    pop ds
    popad
    add esp, 8
    iretd
6:  mov ebx, eax
    call flat
    mov esp, [LEGACY_RECOVER_SP]
    push 2
    popfd
    jmp ebx

# The rest of the way to virtual-8086 mode: its frame is at LEGACY_OUT, from EIP on.
    .global vm86_go
vm86_go:
    lea eax, [7f]
    mov [LEGACY_RECOVER], eax
    mov [LEGACY_RECOVER_SP], esp
    mov eax, [LEGACY_OUT + 36]
    or eax, 0x600
    mov cr4, eax
    sub esp, 36
    mov esi, offset LEGACY_OUT
    mov edi, esp
    mov ecx, 9
    rep movsd
    mov esi, offset LEGACY_OUT + 40
    mov eax, [esi]
    mov ecx, [esi + 4]
    mov edx, [esi + 8]
    mov ebx, [esi + 12]
    iretd
7:  jmp legacy_done

# Real mode. The program is at 0x10000; what is between real_blob and its end runs from 0x8000 on.
    .global real_go
real_go:
    lidt [REAL_IDTR]
    .byte 0xea
    .long 0x8000
    .word 0x38
# The end of a program in protected mode, whatever its segments and stack are.
    .global legacy_done
legacy_done:
real_back:
    mov eax, 0x10
    mov ds, eax
    mov ss, eax
    mov esp, offset legacy_stack_top - 4
    mov dword ptr [LEGACY_RECOVER], 0
    lidt [LEGACY_IDTR]
    call flat
    ret

    .global real_blob, real_blob_end, real_out_at, real_stubs
real_blob:
    .code16
    mov ax, 0x40
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov fs, ax
    mov gs, ax
    mov eax, cr0
    and al, 0xfe
    mov cr0, eax
    .byte 0xea
    .word real_in - real_blob + 0x8000, 0
# The registers are at 0x600: EDI to EAX, then ES, DS, FS, GS as words, EFLAGS, and SS:ESP.
real_in:
    xor ax, ax
    mov ss, ax
    mov esp, 0x600
    popad
    pop es
    pop ds
    pop fs
    pop gs
    popfd
    .byte 0x2e, 0x66, 0x0f, 0xb2, 0x26      # lss esp, cs:[0x62c]
    .word 0x62c
    .byte 0xea
    .word 0, 0x1000
real_out:
    mov dword ptr cs:[0x644], 0xffffffff    # no event
real_save:
    mov dword ptr cs:[0x61c], eax
    mov dword ptr cs:[0x62c], esp
    mov word ptr cs:[0x630], ss
    mov word ptr cs:[0x622], ds
    mov ax, 0
    mov ss, ax
    mov esp, 0x62c
    pushfd
    mov sp, 0x628
    push gs
    push fs
    mov sp, 0x622
    push es
    mov sp, 0x61c
    push ecx
    push edx
    push ebx
    sub sp, 4
    push ebp
    push esi
    push edi
    cli
    cld
    mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0x66, 0xea
    .long real_back
    .word 0x18
# Events push their vector; then come IP, CS and FLAGS.
real_trap:
    pop word ptr cs:[0x644]
    pop word ptr cs:[0x640]
    pop word ptr cs:[0x642]
    mov word ptr cs:[0x646], 0
    pop word ptr cs:[0x648]
    jmp real_save
real_stubs:
    .set n, 0
    .rept 256
    .byte 0x68
    .word n
    .byte 0xe9
    .word real_trap - . - 2
    .set n, n + 1
    .endr
real_blob_end:
    .set real_out_at, real_out - real_blob + 0x8000
    .code64
