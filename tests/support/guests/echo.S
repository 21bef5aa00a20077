#include "guest.h"
/* Echoes what comes in on the serial port, each byte plus one, until a 'q' comes; polls the line status. */
.code64
.global _start
_start:
    print ready
1:  mov $(COM1 + 5), %edx
    inb %dx, %al
    test $1, %al
    jz 1b
    mov $COM1, %edx
    inb %dx, %al
    cmp $'q', %al
    je 2f
    inc %al
    outb %al, %dx
    jmp 1b
2:  power_off
ready: .asciz "ready\n"
