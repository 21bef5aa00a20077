#include "guest.h"
/* By the 64-bit entry: prints the command line that the zero page names (boot.rst: cmd_line_ptr at 0x228). */
.code64
.global _start
_start:
    mov 0x228(%rsi), %esi
    print_from_si
    print_newline
    power_off
