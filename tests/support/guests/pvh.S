#include "guest.h"
/* By the PVH entry, in 32-bit protected mode: checks the start info's magic and prints its command line. */
.code32
.global _start
_start:
    cmpl $0x336ec578, (%ebx)
    jne 3f
    mov 24(%ebx), %esi /* cmdline_paddr */
    print_from_si
    print_newline
3:  power_off

.section .note.pvh, "a", @note
    .long 4
    .long 4
    .long 18 /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .long _start
