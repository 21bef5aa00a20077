#include "guest.h"
/* String instructions on ports: many elements in one exit. */
.code64
.global _start
_start:
    cld
    mov $text, %rsi
    mov $(text_end - text), %ecx
    mov $COM1, %edx
    rep outsb
    mov $0x510, %edx
    mov $buffer, %rdi
    mov $300, %ecx
    rep insw
    mov $buffer, %rsi
    mov $300, %ecx
1:  lodsw
    cmp $0xffff, %ax
    expect_equal 'a'
    dec %ecx
    jnz 1b
    jmp pass
verdicts
text: .ascii "many bytes in one exit, more than one page of them would not fit and are split by the processor\n"
text_end:
.balign 16
buffer: .fill 608, 1, 0
