#include "guest.h"
/* Reads and writes ports and addresses that nobody answers, 20,000 times each, then says so and powers off. */
.code64
.global _start
_start:
    mov $20000, %ecx
1:  mov $0x510, %edx
    inl %dx, %eax
    outl %eax, %dx
    mov $0xc1000000, %rdi
    mov (%rdi), %eax
    mov %eax, (%rdi)
    dec %ecx
    jnz 1b
    print text
    power_off
text: .asciz "still here\n"
