#include "guest.h"
/* Says so and spins until it finds itself with another VM generation id, as a clone does with its first instructions:
 * then sends one byte and halts for good. */
.code64
.global _start
_start:
    cli
    mov GENERATION, %r8
    print text
    mov $COM1, %edx
    mov $'!', %al
1:  pause
    cmp GENERATION, %r8
    je 1b
    outb %al, %dx
2:  hlt
    jmp 2b
text: .asciz "ready\n"
