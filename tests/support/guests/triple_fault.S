#include "guest.h"
/* Faults with an empty interrupt descriptor table: a triple fault. */
.code64
.global _start
_start:
    print last_words
    lidt empty
    ud2
1:  hlt
    jmp 1b
last_words: .asciz "going\n"
.balign 8
empty: .word 0
    .quad 0
