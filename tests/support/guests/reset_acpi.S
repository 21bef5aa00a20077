#include "guest.h"
/* Resets by the ACPI reset register. */
.code64
.global _start
_start:
    mov $RESET, %edx
    mov $RESET_VALUE, %al
    outb %al, %dx
1:  hlt
    jmp 1b
