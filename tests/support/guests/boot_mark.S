#include "guest.h"
/* Writes the boot mark (123 to the first page of the MMIO gap) and powers off. */
.code64
.global _start
_start:
    mov $0xc0000000, %rdi
    movb $123, (%rdi)
    power_off
