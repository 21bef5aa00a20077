#include "guest.h"
/* Takes the interrupt by which the machine asks a guest to shut down (GSI 5, ACPI 6.5, 6.3.5.1) as its driver would:
 * once something is typed it opens the I/O APIC's pin, then waits with interrupts off until its local APIC holds the
 * vector. */
#define PIN 5
#define VECTOR 0x35
.code64
.global _start
_start:
    map_mmio
    enable_local_apic
    print closed_text
    mov $(COM1 + 5), %edx
1:  inb %dx, %al /* until something is typed */
    test $1, %al
    jz 1b
    open_pin PIN, VECTOR
    print open_text
    await_vector VECTOR
    jmp pass
verdicts
closed_text: .asciz "closed\n"
open_text: .asciz "open\n"
