#include "guest.h"
/* The 64-bit entry of the guests in C: a stack, the devices' addresses, and the zero page as their argument. */
.code64
.global _start
_start:
    cli
    mov $0x1f00000, %esp
    mov %rsi, %rbx
    map_mmio
    mov %rbx, %rdi
    call guest_main
