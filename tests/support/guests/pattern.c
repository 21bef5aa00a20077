/* Verifies and rewrites 4 MiB without end, word by word, and prints a number after each 64 KiB: 1, 2, 3. What
 * a word has to be follows from its place and from how often it was written, so that one that is lost, old,
 * or in another place shows. Then it says "WRONG" and where, and powers off. */
#include "c_guest.h"

enum { kWordsInChunk = 65536 / 8, kChunks = 64 };

static u64 word(u64 turn, u64 place) {
  return turn == 0 ? 0 : turn * 0x9e3779b97f4a7c15u ^ place * 0xd1b54a32d192ed03u;
}

void guest_main(const u8* zero_page) {
  (void)zero_page;
  volatile u64* const memory = (u64*)0x1400000;
  u64 chunks = 0;
  for (u64 turn = 0;; ++turn) {
    for (u64 place = 0; place < (u64)kChunks * kWordsInChunk; ++place) {
      if (memory[place] != word(turn, place)) {
        print("WRONG ");
        print_number(place);
        print("\n");
        power_off();
      }
      memory[place] = word(turn + 1, place);
      if ((place + 1) % kWordsInChunk == 0) {
        print_number(++chunks);
        print("\n");
      }
    }
  }
}
