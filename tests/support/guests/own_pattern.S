#include "guest.h"
/* Fills memory with a pattern of its VM generation id and looks at it again and again. When it finds itself with
 * another id, as a clone, it must find what its parent wrote; then it writes a pattern of its own, says its id, looks
 * ROUNDS times whether any other shows through, and says "kept". Then it waits to be cloned itself. */
#define PATTERN 0x2000000
#define WORDS 4096 /* 8 pages */
#define ROUNDS 8
.code64
.global _start
_start:
    cli
    mov GENERATION, %r8
    call fill
    print ready
wait:
    pause
    cmp GENERATION, %r8
    je wait
    mov $'I', %bl
    call verify /* what was inherited */
    mov GENERATION, %r8
    call fill
    print_digits %r8, 16
    mov $ROUNDS, %r10d
    mov $'O', %bl
1:  call verify /* what is its own */
    dec %r10d
    jnz 1b
    print kept
    jmp wait

/* Word n holds the id plus n. Change rax, rcx, rdi. */
fill:
    mov $PATTERN, %edi
    mov $WORDS, %ecx
    mov %r8, %rax
2:  mov %rax, (%rdi)
    inc %rax
    add $8, %rdi
    dec %ecx
    jnz 2b
    ret
verify:
    mov $PATTERN, %edi
    mov $WORDS, %ecx
    mov %r8, %rax
3:  cmp %rax, (%rdi)
    jne fail
    inc %rax
    add $8, %rdi
    dec %ecx
    jnz 3b
    ret
verdicts
ready: .asciz "ready\n"
kept: .asciz "kept\n"
