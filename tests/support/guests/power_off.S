#include "guest.h"
/* Says hello and powers off by the ACPI sleep control register. */
.code64
.global _start
_start:
    print hello
    power_off
hello: .asciz "hello\n"
