/* What the bare guests in C share. Each has a `guest_main`, to which entry.S leads. */
#include "machine.h"

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

/* virtio 1.2, 2.7.5 */
struct descriptor {
  u64 address;
  u32 length;
  u16 flags;
  u16 next;
};
enum { kNext = 1, kWrite = 2, kIndirect = 4 };

/* Of a device above 3 GiB, which entry.S maps. */
static inline volatile u32* reg(u32 device, u32 offset) {
  return (volatile u32*)(u64)(device + offset);
}

static inline void out8(u16 port, u8 value) {
  __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}
static inline u8 in8(u16 port) {
  u8 value;
  __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
  return value;
}
static inline u8 has_input(void) {
  return in8(COM1 + 5) & 1;
}

static inline void print(const char* text) {
  while (*text != 0) {
    out8(COM1, (u8)*text++);
  }
}
static inline void print_number(u64 number) {
  char text[24];
  char* at = text + sizeof(text) - 1;
  *at = 0;
  do {
    *--at = (char)('0' + number % 10);
    number /= 10;
  } while (number != 0);
  print(at);
}
static inline void print_hex(u64 number) {
  for (int shift = 60; shift >= 0; shift -= 4) {
    out8(COM1, (u8) "0123456789abcdef"[number >> shift & 15]);
  }
}

__attribute__((noreturn)) static inline void power_off(void) {
  for (;;) {
    out8(SLEEP_CONTROL, SLEEP_S5);
  }
}

/* The zero page is boot.rst's. */
__attribute__((noreturn)) void guest_main(const u8* zero_page);
