#include "guest.h"
/* Writes to the serial port without end. */
.code64
.global _start
_start:
    mov $COM1, %edx
    mov $'x', %al
1:  outb %al, %dx
    jmp 1b
