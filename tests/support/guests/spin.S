#include "guest.h"
/* Says so and spins with interrupts off: no event of the guest's own will ever take it out. */
.code64
.global _start
_start:
    cli
    print text
1:  jmp 1b
text: .asciz "spinning\n"
