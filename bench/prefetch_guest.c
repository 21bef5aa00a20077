/*
 * The guest of bench/prefetch.py, as its first process: fills memory, says READY, and touches what it is told
 * to by a letter on its console:
 *
 *   s   MIB of it in stretches of one to six pages all over it, a third of the pages for writing
 *   o   its first MIB in order, for reading
 *
 * It answers "touched LETTER PAGES NANOSECONDS WRONG", by its own clock; WRONG pages do not hold what was
 * written to them at the start. Then it does the very same once more, and says "again NANOSECONDS WRONG". The
 * kernel's command line gives FILL_MIB and MIB.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, STRETCH = 6, WORDS = PAGE / sizeof(uint64_t) };

static volatile uint64_t* memory;
static size_t pages, most;

static uint64_t now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

// What each page begins with; no two the same.
static uint64_t content(size_t page) {
  return (page + 1) * 0x9e3779b97f4a7c15u;
}

static uint64_t next(uint64_t* state) {
  *state ^= *state << 13;
  *state ^= *state >> 7;
  *state ^= *state << 17;
  return *state;
}

// The pages that 's' touches, in their order; the same each time.
static size_t* make_order(void) {
  size_t slots = pages / STRETCH, count = 0;
  size_t* slot = calloc(slots, sizeof *slot);
  size_t* order = calloc(most, sizeof *order);
  uint64_t state = 1;
  for (size_t i = 0; i < slots; i++) {
    const size_t other = next(&state) % (i + 1);
    slot[i] = slot[other];
    slot[other] = i * STRETCH;
  }
  for (size_t i = 0; i < slots && count < most; i++) {
    const size_t length = 1 + next(&state) % STRETCH;
    for (size_t page = slot[i]; page < slot[i] + length && count < most; page++) order[count++] = page;
  }
  most = count;
  free(slot);
  return order;
}

static size_t touch(char letter, const size_t* order) {
  size_t wrong = 0;
  for (size_t i = 0; i < most; i++) {
    const size_t page = letter == 's' ? order[i] : i;
    wrong += memory[page * WORDS] != content(page);
    if (letter == 's' && i % 3 == 0) memory[page * WORDS + 1] = i;
  }
  return wrong;
}

static size_t number(const char* name) {
  const char* text = getenv(name);
  return text ? strtoul(text, NULL, 10) : 0;
}

int main(void) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  pages = (number("FILL_MIB") << 20) / PAGE;
  most = (number("MIB") << 20) / PAGE;
  void* const all = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const size_t* order = make_order();
  if (all == MAP_FAILED || !order) {
    printf("FAILED: memory\n");
    return 1;
  }
  madvise(all, pages * PAGE, MADV_NOHUGEPAGE);
  memory = all;
  for (size_t page = 0; page < pages; page++) memory[page * WORDS] = content(page);
  printf("READY\n");
  for (char letter; read(0, &letter, 1) == 1;) {
    if (letter != 's' && letter != 'o') continue;
    const uint64_t begin = now();
    const size_t wrong = touch(letter, order);
    const uint64_t end = now();
    printf("touched %c %zu %llu %zu\n", letter, most, (unsigned long long)(end - begin), wrong);
    const uint64_t begin_again = now();
    const size_t wrong_again = touch(letter, order);
    const uint64_t end_again = now();
    printf("again %llu %zu\n", (unsigned long long)(end_again - begin_again), wrong_again);
  }
  return 0;
}
