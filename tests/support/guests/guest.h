/* Ports and macros that the bare guests share. Each guest is a few dozen instructions with no kernel, linked to
 * run at 16 MiB, and shows one behaviour of the machine. */
#define COM1 0x3f8
#define I8042_COMMAND 0x64
#define SLEEP_CONTROL 0x600
#define SLEEP_STATUS 0x601
#define RESET 0x602
#define SLEEP_S5 0x34 /* SLP_TYP 5, SLP_EN: ACPI 6.5, 4.8.3.7 */
#define RESET_VALUE 0x01

/* Ends the guest by ACPI power-off; never comes back. */
.macro power_off
    mov $SLEEP_CONTROL, %edx
    mov $SLEEP_S5, %al
    outb %al, %dx
9:  hlt
    jmp 9b
.endm

/* Prints the NUL-terminated text at \text. Changes rax, rdx, rsi. */
.macro print text
    mov $\text, %rsi
    mov $COM1, %edx
8:  lodsb
    test %al, %al
    jz 7f
    outb %al, %dx
    jmp 8b
7:
.endm

/* Prints PASS and powers off, or, from the label `fail`, prints FAIL and the letter in bl first. */
.macro verdicts
pass:
    print pass_text
    power_off
fail:
    print fail_text
    mov $COM1, %edx
    mov %bl, %al
    outb %al, %dx
    mov $'\n', %al
    outb %al, %dx
    power_off
pass_text: .asciz "PASS\n"
fail_text: .asciz "FAIL "
.endm

/* Goes to `fail` with the letter \name in bl unless the flags say equal. */
.macro expect_equal name
    mov $\name, %bl
    jne fail
.endm
