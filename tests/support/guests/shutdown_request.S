#include "guest.h"
/* Takes the interrupt by which the machine asks a guest to shut down (GSI 5, ACPI 6.5, 6.3.5.1) as its driver would:
 * once something is typed it opens the I/O APIC's pin, then waits with interrupts off until its local APIC holds the
 * vector. */
#define IO_APIC 0xfec00000
#define LOCAL_APIC 0xfee00000
#define PIN 5
#define VECTOR 0x35
.code64
.global _start
_start:
    map_mmio
    mov $(LOCAL_APIC + 0xf0), %ebx
    movl $0x1ff, (%rbx) /* enabled; spurious vector 0xff */
    print closed_text
    mov $(COM1 + 5), %edx
1:  inb %dx, %al /* until something is typed */
    test $1, %al
    jz 1b
    mov $IO_APIC, %ebx
    movl $(0x10 + 2 * PIN + 1), (%rbx)
    movl $0, 0x10(%rbx) /* to local APIC 0 */
    movl $(0x10 + 2 * PIN), (%rbx)
    movl $VECTOR, 0x10(%rbx) /* fixed, edge, open */
    print open_text
    mov $(LOCAL_APIC + 0x200 + 0x10 * (VECTOR / 32)), %ebx
2:  pause
    mov (%rbx), %eax /* IRR */
    test $(1 << (VECTOR % 32)), %eax
    jz 2b
    jmp pass
verdicts
closed_text: .asciz "closed\n"
open_text: .asciz "open\n"
