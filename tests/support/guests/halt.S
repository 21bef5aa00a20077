#include "guest.h"
/* Says so and halts with interrupts off. */
.code64
.global _start
_start:
    cli
    print text
1:  hlt
    jmp 1b
text: .asciz "halting\n"
