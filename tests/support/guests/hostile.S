#include "guest.h"
/* The 64-bit entry of hostile.c: a stack, the devices' addresses, and the zero page as its argument. */
.code64
.global _start
_start:
    mov $0x1f00000, %esp
    mov %rsi, %rbx
    map_mmio
    mov %rbx, %rdi
    call guest_main
