#include "guest.h"
/* Writes to the power registers everything that must not end the machine, then says so and powers off. */
.code64
.global _start
_start:
    mov $SLEEP_CONTROL, %edx
    mov $0x14, %al /* SLP_TYP 5 without SLP_EN */
    outb %al, %dx
    mov $0x20, %al /* SLP_EN with SLP_TYP 0 */
    outb %al, %dx
    mov $SLEEP_S5, %eax
    outl %eax, %dx /* wider than the register */
    mov $RESET, %edx
    mov $0xfe, %al /* not the reset value */
    outb %al, %dx
    mov $0xaa, %al /* a command of the 8042 that is not a reset */
    outb %al, $I8042_COMMAND
    print still_here
    power_off
still_here: .asciz "still here\n"
