/* Verifies and rewrites 4 MiB without end, word by word, and prints a number after each 64 KiB: 1, 2, 3. What
 * a word has to be follows from its place and from how often it was written, so that one that is lost, old,
 * or in another place shows. Then it says "WRONG" and where, and powers off. */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned long u64;

enum { kCom1 = 0x3f8, kSleepControl = 0x600, kSleepS5 = 0x34, kWordsInChunk = 65536 / 8, kChunks = 64 };

__asm__(
    ".global _start\n"
    "_start:\n"
    "  cli\n"
    "  mov $0x1f00000, %esp\n"
    "  call run\n");

static void out8(u16 port, u8 value) {
  __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static void print(const char* text) {
  while (*text != 0) {
    out8(kCom1, (u8)*text++);
  }
}

static void print_number(u64 number) {
  char text[24];
  char* at = text + sizeof(text) - 1;
  *at = 0;
  *--at = '\n';
  do {
    *--at = (char)('0' + number % 10);
    number /= 10;
  } while (number != 0);
  print(at);
}

static u64 word(u64 turn, u64 place) {
  return turn == 0 ? 0 : turn * 0x9e3779b97f4a7c15u ^ place * 0xd1b54a32d192ed03u;
}

__attribute__((used, noreturn)) void run(void) {
  volatile u64* const memory = (u64*)0x1400000;
  u64 chunks = 0;
  for (u64 turn = 0;; ++turn) {
    for (u64 place = 0; place < (u64)kChunks * kWordsInChunk; ++place) {
      if (memory[place] != word(turn, place)) {
        print("WRONG ");
        print_number(place);
        out8(kSleepControl, kSleepS5);
      }
      memory[place] = word(turn + 1, place);
      if ((place + 1) % kWordsInChunk == 0) {
        print_number(++chunks);
      }
    }
  }
}
