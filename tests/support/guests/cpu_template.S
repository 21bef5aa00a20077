#include "guest.h"
/* Prints, each as eight hexadecimal digits and a newline: EAX and ECX of CPUID leaf 1, ECX of leaf 0x80000001, and the
 * upper and the lower half of IA32_PAT (MSR 0x277). Then powers off. */
.macro print_hex register
    mov \register, %ebp
    shl $32, %rbp
    print_digits %rbp, 8
.endm
.code64
.global _start
_start:
    mov $1, %eax
    xor %ecx, %ecx
    cpuid
    mov %ecx, %r12d
    print_hex %eax
    print_hex %r12d
    mov $0x80000001, %eax
    xor %ecx, %ecx
    cpuid
    print_hex %ecx
    mov $0x277, %ecx
    rdmsr
    mov %eax, %r12d
    print_hex %edx
    print_hex %r12d
    power_off
