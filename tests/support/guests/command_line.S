#include "guest.h"
/* By the 64-bit entry: prints the command line that the zero page names (boot.rst: cmd_line_ptr at 0x228). */
.code64
.global _start
_start:
    mov 0x228(%rsi), %esi
    mov $COM1, %edx
1:  lodsb
    test %al, %al
    jz 2f
    outb %al, %dx
    jmp 1b
2:  mov $'\n', %al
    outb %al, %dx
    power_off
