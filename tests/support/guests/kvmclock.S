#include "guest.h"
/* Sets up a kvmclock, says so, and spins until the clock says that the guest was stopped: then says "told". Linux's
 * Documentation/virt/kvm/x86/msr.rst: MSR_KVM_SYSTEM_TIME_NEW, and bit 1 of the flags, byte 29 of the structure. */
.code64
.global _start
_start:
    cli
    mov $0x4b564d01, %ecx
    mov $clock + 1, %eax /* bit 0: on */
    xor %edx, %edx
    wrmsr
    print ready
1:  testb $2, clock + 29
    jz 1b
    print told
2:  jmp 2b
ready: .asciz "ready\n"
told: .asciz "told\n"
.balign 32
clock: .skip 32
