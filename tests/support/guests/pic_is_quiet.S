#include "guest.h"
/* Without touching the PICs, takes the serial port's interrupt (IRQ 4) with interrupts on and no handlers: an edge that
 * reached a PIC would come through LINT0 as vector 4 and triple-fault. */
.code64
.global _start
_start:
    lidt empty
    sti
    mov $(COM1 + 4), %edx
    mov $0x08, %al /* MCR: OUT2 */
    outb %al, %dx
    mov $(COM1 + 1), %edx
    mov $0x02, %al /* IER: transmitter empty, which it is */
    outb %al, %dx
    mov $10000, %ecx
1:  dec %ecx
    jnz 1b
    cli
    jmp pass
verdicts
.balign 8
empty: .word 0
    .quad 0
