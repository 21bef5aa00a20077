#include "guest.h"
/* Unknown ports and MMIO read as all ones at every width; writes to them change nothing. */
.code64
.global _start
_start:
    mov $0x510, %edx
    xor %eax, %eax
    inb %dx, %al
    cmp $0xff, %al
    expect_equal 'a'
    xor %eax, %eax
    inw %dx, %ax
    cmp $0xffff, %ax
    expect_equal 'b'
    xor %eax, %eax
    inl %dx, %eax
    cmp $0xffffffff, %eax
    expect_equal 'c'
    xor %eax, %eax
    outl %eax, %dx
    inl %dx, %eax
    cmp $0xffffffff, %eax
    expect_equal 'd'
    mov $0xc1000000, %rdi
    mov $0, %rax
    movb (%rdi), %al
    cmp $0xff, %al
    expect_equal 'e'
    movw (%rdi), %ax
    cmp $0xffff, %ax
    expect_equal 'f'
    movl (%rdi), %eax
    cmp $0xffffffff, %eax
    expect_equal 'g'
    movq (%rdi), %rax
    cmp $-1, %rax
    expect_equal 'h'
    movq $0, (%rdi)
    movq (%rdi), %rax
    cmp $-1, %rax
    expect_equal 'i'
    jmp pass
verdicts
