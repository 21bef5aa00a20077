#include "guest.h"
/* Takes the interrupt by which a guest is told of a new VM generation id (GSI 3) as its driver would, and looks at the
 * id itself: it opens the I/O APIC's pin, waits with interrupts off until its local APIC holds the vector, and the 16
 * bytes must then be others than before. Before that they are not zeros. */
#define IO_APIC 0xfec00000
#define LOCAL_APIC 0xfee00000
#define PIN 3
#define VECTOR 0x33
#define GENERATION 0xdf100
#define SNAPSHOT_MARK 0xdf200
.code64
.global _start
_start:
    map_mmio
    mov $(LOCAL_APIC + 0xf0), %ebx
    movl $0x1ff, (%rbx) /* enabled; spurious vector 0xff */
    mov GENERATION, %r8
    mov GENERATION + 8, %r9
    mov $'Z', %bl
    mov %r8, %rax
    or %r9, %rax
    jz fail /* a random number that is 0 */
    mov SNAPSHOT_MARK, %rax
    or SNAPSHOT_MARK + 8, %rax
    expect_equal 'M'
    mov $IO_APIC, %ebx
    movl $(0x10 + 2 * PIN + 1), (%rbx)
    movl $0, 0x10(%rbx) /* to local APIC 0 */
    movl $(0x10 + 2 * PIN), (%rbx)
    movl $VECTOR, 0x10(%rbx) /* fixed, edge, open */
    print open_text
    mov $(LOCAL_APIC + 0x200 + 0x10 * (VECTOR / 32)), %ebx
1:  pause
    mov (%rbx), %eax /* IRR */
    test $(1 << (VECTOR % 32)), %eax
    jz 1b
    mov $'S', %bl
    cmp GENERATION, %r8
    je fail /* two halves that are the same by chance: once in 2^64 */
    cmp GENERATION + 8, %r9
    je fail
    jmp pass
verdicts
open_text: .asciz "open\n"
