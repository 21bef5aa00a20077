#include "guest.h"
/* Floods all that a guest can write to, without end: the serial port, doorbells of a disk that runs, the registers and
 * the configuration of another that it starts with rings that cannot be, wrong accesses, ports and addresses where
 * nothing is. The machine has two disks. */
#define RUNNING FIRST_WINDOW /* the first one's window, and the second one's */
#define BROKEN (FIRST_WINDOW + WINDOW)
#define RINGS 0x2000000 /* untouched memory: no request is there */
#define FAR_AHEAD 0x2010000 /* an available ring whose driver claims more than fits */
.macro start_disk available
    movl $0, STATUS(%rbx)
    movl $3, STATUS(%rbx)
    movl $1, DRIVER_FEATURES_SELECT(%rbx)
    movl $1, DRIVER_FEATURES(%rbx) /* VIRTIO_F_VERSION_1 */
    movl $0xb, STATUS(%rbx)
    movl $0, QUEUE_SELECT(%rbx)
    movl $8, QUEUE_SIZE(%rbx)
    movl $RINGS, QUEUE_DESC(%rbx)
    movl $\available, QUEUE_DRIVER(%rbx)
    movl $(RINGS + 0x2000), QUEUE_DEVICE(%rbx)
    movl $1, QUEUE_READY(%rbx)
    movl $0xf, STATUS(%rbx)
.endm
.code64
.global _start
_start:
    map_mmio
    /* The boot's own tables map what follows. */
    movw $1000, FAR_AHEAD + 2
    mov $RUNNING, %ebx
    start_disk RINGS + 0x1000
1:  mov $COM1, %edx
    mov $64, %ecx
2:  mov $'x', %al
    outb %al, %dx
    dec %ecx
    jnz 2b
    mov $RUNNING, %ebx
    mov $64, %ecx
3:  movl $0, QUEUE_NOTIFY(%rbx)
    dec %ecx
    jnz 3b
    movl $0xffff, QUEUE_NOTIFY(%rbx) /* no such queue */
    mov $BROKEN, %ebx
    start_disk FAR_AHEAD
    movl $0, QUEUE_NOTIFY(%rbx)
    movl $~0, CONFIGURATION(%rbx)
    movl $~0, CONFIGURATION + 0x20(%rbx)
    movb $1, STATUS(%rbx) /* of a wrong size */
    mov QUEUE_SIZE + 1(%rbx), %ax
    movl $1, STATUS(%rbx) /* clears bits */
    mov $0xc0000000, %edi
    movb $123, (%rdi) /* the boot mark */
    mov $0x510, %edx
    outl %eax, %dx
    inl %dx, %eax
    mov $0xc1000000, %edi
    mov %eax, (%rdi)
    mov (%rdi), %eax
    jmp 1b
