#include "guest.h"
/* By the PVH entry, in 32-bit protected mode: checks the start info's magic and prints its command line. */
.code32
.global _start
_start:
    cmpl $0x336ec578, (%ebx)
    jne 3f
    mov 24(%ebx), %esi /* cmdline_paddr */
    mov $COM1, %edx
1:  lodsb
    test %al, %al
    jz 2f
    outb %al, %dx
    jmp 1b
2:  mov $'\n', %al
    outb %al, %dx
3:  mov $SLEEP_CONTROL, %edx
    mov $SLEEP_S5, %al
    outb %al, %dx
4:  hlt
    jmp 4b

.section .note.pvh, "a", @note
    .long 4
    .long 4
    .long 18 /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .long _start
