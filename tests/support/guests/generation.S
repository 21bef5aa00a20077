#include "guest.h"
/* Takes the interrupt by which a guest is told of a new VM generation id (GSI 3) as its driver would, and looks at the
 * id itself: it opens the I/O APIC's pin, waits with interrupts off until its local APIC holds the vector, and the 16
 * bytes must then be others than before. Before that they are not zeros. */
#define PIN 3
#define VECTOR 0x33
.code64
.global _start
_start:
    map_mmio
    enable_local_apic
    mov GENERATION, %r8
    mov GENERATION + 8, %r9
    mov $'Z', %bl
    mov %r8, %rax
    or %r9, %rax
    jz fail /* a random number that is 0 */
    mov SNAPSHOT_MARK, %rax
    or SNAPSHOT_MARK + 8, %rax
    expect_equal 'M'
    open_pin PIN, VECTOR
    print open_text
    await_vector VECTOR
    mov $'S', %bl
    cmp GENERATION, %r8
    je fail /* two halves that are the same by chance: once in 2^64 */
    cmp GENERATION + 8, %r9
    je fail
    jmp pass
verdicts
open_text: .asciz "open\n"
