/* Macros that the bare guests share. Each guest is a few dozen instructions with no kernel, linked to run at 16 MiB, and
 * shows one behaviour of the machine. */
#include "machine.h"

/* Ends the guest by ACPI power-off; never comes back. */
.macro power_off
    mov $SLEEP_CONTROL, %edx
    mov $SLEEP_S5, %al
    outb %al, %dx
9:  hlt
    jmp 9b
.endm

/* Prints the NUL-terminated text at rsi, esi in 32-bit mode. Changes rax, rdx, rsi. */
.macro print_from_si
    mov $COM1, %edx
8:  lodsb
    test %al, %al
    jz 7f
    outb %al, %dx
    jmp 8b
7:
.endm

/* Prints the NUL-terminated text at \text. Changes rax, rdx, rsi. */
.macro print text
    mov $\text, %rsi
    print_from_si
.endm

/* Ends the line. Changes rax, rdx. */
.macro print_newline
    mov $COM1, %edx
    mov $'\n', %al
    outb %al, %dx
.endm

/* Prints the upper \count hexadecimal digits of the 64-bit \register, and ends the line. Changes rax, rcx, rdx, and turns
 * the register. */
.macro print_digits register, count
    mov $COM1, %edx
    mov $\count, %ecx
5:  rol $4, \register
    mov \register, %rax
    and $15, %al
    add $'0', %al
    cmp $'9', %al
    jbe 4f
    add $('a' - '9' - 1), %al
4:  outb %al, %dx
    dec %ecx
    jnz 5b
    print_newline
.endm

/* Maps the gigabyte from 3 GiB on, where MMIO lies, by a page directory at 2 MiB: the boot's own tables (PDPT at
 * 0xa000) map the first gigabyte only. Changes rax, rcx, rdi. */
.macro map_mmio
    mov $0x200000, %edi
    mov $0xc0000083, %eax /* present, writable, 2 MiB */
    mov $512, %ecx
6:  mov %rax, (%rdi)
    add $8, %rdi
    add $0x200000, %rax
    dec %ecx
    jnz 6b
    movq $0x200003, 0xa018
    mov %cr3, %rax
    mov %rax, %cr3
.endm

/* Prints PASS and powers off, or, from the label `fail`, prints FAIL and the letter in bl first. */
.macro verdicts
pass:
    print pass_text
    power_off
fail:
    print fail_text
    mov $COM1, %edx
    mov %bl, %al
    outb %al, %dx
    print_newline
    power_off
pass_text: .asciz "PASS\n"
fail_text: .asciz "FAIL "
.endm

/* Goes to `fail` with the letter \name in bl unless the flags say equal. */
.macro expect_equal name
    mov $\name, %bl
    jne fail
.endm

/* Enables the local APIC; its spurious vector is 0xff. Changes rbx. */
.macro enable_local_apic
    mov $(LOCAL_APIC + 0xf0), %ebx
    movl $0x1ff, (%rbx)
.endm

/* Opens the I/O APIC's \pin: \vector for the first processor, fixed, by its edge. Changes rbx. */
.macro open_pin pin, vector
    mov $IO_APIC, %ebx
    movl $(0x10 + 2 * \pin + 1), (%rbx)
    movl $0, 0x10(%rbx)
    movl $(0x10 + 2 * \pin), (%rbx)
    movl $\vector, 0x10(%rbx)
.endm

/* Waits, with interrupts off, until the local APIC holds \vector in its IRR. Changes rax, rbx. */
.macro await_vector vector
    mov $(LOCAL_APIC + 0x200 + 0x10 * (\vector / 32)), %ebx
3:  pause
    mov (%rbx), %eax
    test $(1 << (\vector % 32)), %eax
    jz 3b
.endm
