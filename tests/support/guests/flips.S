#include "guest.h"
/* Says so and writes a number and then a zero, without end, to each of 16 pages: whoever looks finds about half of them
   zero, and others the next time. */
.code64
.global _start
_start:
    print text
    mov $0x1400000, %ebx
    xor %eax, %eax
1:  xor $1, %eax
    mov $16, %ecx
    mov %ebx, %edx
2:  mov %rax, (%rdx)
    add $4096, %edx
    xor $1, %eax
    dec %ecx
    jnz 2b
    jmp 1b
text: .asciz "ready\n"
