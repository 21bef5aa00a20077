// Stands in the place of a static monitor and becomes a dynamic one: a monitor with sanitizers cannot be
// static, a jail starts no other, and Landlock lets it execute nothing else. So this maps /dynamic and the
// interpreter that it names, and goes on as if the kernel had (elf(5), getauxval(3)). The libraries lie where
// the interpreter looks for them.
//
// No library: what one had set up would be in the other's way.
#include <elf.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#define PAGE 0x1000UL

enum { MOST_HEADERS = 32 };

struct image {
  uint64_t base, entry, headers, header_count;
  char interpreter[256];  // empty: none
};

static long call(long number, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f) {
  register uint64_t r10 __asm__("r10") = d;
  register uint64_t r8 __asm__("r8") = e;
  register uint64_t r9 __asm__("r9") = f;
  long result;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return result;
}

__attribute__((noreturn)) static void die(const char* what) {
  uint64_t length = 0;
  while (what[length]) length++;
  call(SYS_write, 2, (uint64_t)what, length, 0, 0, 0);
  for (;;) call(SYS_exit_group, 99, 0, 0, 0, 0, 0);
}

static uint64_t checked(long result, const char* what) {
  if (result < 0) die(what);
  return (uint64_t)result;
}

static uint64_t map(uint64_t at, uint64_t size, int protection, int flags, uint64_t file, uint64_t offset) {
  return checked(
      call(SYS_mmap, at, size, (uint64_t)protection, (uint64_t)(flags | MAP_PRIVATE), file, offset),
      "dynamic_monitor: cannot map\n");
}

static void load(const char* path, struct image* image) {
  const uint64_t file = checked(call(SYS_open, (uint64_t)path, O_RDONLY | O_CLOEXEC, 0, 0, 0, 0),
                                "dynamic_monitor: cannot open the program or its interpreter\n");
  Elf64_Ehdr head;
  Elf64_Phdr parts[MOST_HEADERS];
  if (call(SYS_pread64, file, (uint64_t)&head, sizeof head, 0, 0, 0) != sizeof head ||
      head.e_type != ET_DYN || head.e_phnum > MOST_HEADERS ||
      call(SYS_pread64, file, (uint64_t)parts, head.e_phnum * sizeof parts[0], head.e_phoff, 0, 0) !=
          (long)(head.e_phnum * sizeof parts[0]))
    die("dynamic_monitor: no position-independent program\n");
  uint64_t end = 0;
  image->interpreter[0] = 0;
  for (int index = 0; index < head.e_phnum; index++) {
    const Elf64_Phdr* part = &parts[index];
    if (part->p_type == PT_LOAD && part->p_vaddr + part->p_memsz > end) end = part->p_vaddr + part->p_memsz;
    if (part->p_type == PT_INTERP && (part->p_filesz > sizeof image->interpreter ||
                                      call(SYS_pread64, file, (uint64_t)image->interpreter, part->p_filesz,
                                           part->p_offset, 0, 0) != (long)part->p_filesz))
      die("dynamic_monitor: which interpreter?\n");
  }
  image->base = map(0, end, PROT_NONE, MAP_ANONYMOUS, ~0UL, 0);
  for (int index = 0; index < head.e_phnum; index++) {
    const Elf64_Phdr* part = &parts[index];
    if (part->p_type != PT_LOAD) continue;
    const int protection = (part->p_flags & PF_R ? PROT_READ : 0) | (part->p_flags & PF_W ? PROT_WRITE : 0) |
                           (part->p_flags & PF_X ? PROT_EXEC : 0);
    const uint64_t start = image->base + part->p_vaddr;
    const uint64_t slack = start % PAGE;
    const uint64_t of_file = (start + part->p_filesz + PAGE - 1) & ~(PAGE - 1);
    const uint64_t of_memory = (start + part->p_memsz + PAGE - 1) & ~(PAGE - 1);
    map(start - slack, part->p_filesz + slack, protection, MAP_FIXED, file, part->p_offset - slack);
    if (part->p_memsz > part->p_filesz) {
      for (volatile uint8_t* at = (uint8_t*)(start + part->p_filesz); at < (uint8_t*)of_file; at++) *at = 0;
    }
    if (of_memory > of_file)
      map(of_file, of_memory - of_file, protection, MAP_FIXED | MAP_ANONYMOUS, ~0UL, 0);
  }
  call(SYS_close, file, 0, 0, 0, 0, 0);
  image->entry = image->base + head.e_entry;
  image->headers = image->base + head.e_phoff;
  image->header_count = head.e_phnum;
}

// `stack` is as the kernel left it: arguments, environment and auxiliary vector, the last with its end.
__attribute__((noreturn, used)) void become(uint64_t* stack) {
  struct image program;
  struct image interpreter;
  load("/dynamic", &program);
  load(program.interpreter, &interpreter);
  uint64_t* at = stack + 1 + stack[0] + 1;  // behind the arguments
  while (*at++ != 0) continue;              // behind the environment
  for (; at[0] != AT_NULL; at += 2) {
    switch (at[0]) {
      case AT_PHDR:
        at[1] = program.headers;
        break;
      case AT_PHNUM:
        at[1] = program.header_count;
        break;
      case AT_ENTRY:
        at[1] = program.entry;
        break;
      case AT_BASE:
        at[1] = interpreter.base;
        break;
      default:
        break;
    }
  }
  __asm__ volatile("mov %0, %%rsp; jmp *%1" : : "r"(stack), "r"(interpreter.entry), "d"(0) : "memory");
  __builtin_unreachable();
}

__asm__(".globl _start\n_start: mov %rsp, %rdi\nand $-16, %rsp\nxor %ebp, %ebp\ncall become\n");
