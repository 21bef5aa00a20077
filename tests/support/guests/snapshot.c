/* Has state of every kind that a snapshot keeps, and shows that it is still there; does as it is told by
 * letters on the serial port:
 *
 *   c  counts in memory and prints the number
 *   k  prints the kvmclock, nanoseconds as 16 hexadecimal digits
 *   f  says "full" once something has come in, and reads it after a pause only
 *   t  arms the local APIC's timer, says "armed", and halts until it rings: "timer"
 *   p  has the PIT tick, prints a dot every few ticks, and halts in between, until something comes in
 *   a  starts all other processors, which fill their registers and wait: "holding" once all do
 *   y  the same with MXCSR and whole vector registers, which a KVM that interprets does not know
 *   v  has all processors compare their registers with what they were: "PASS", or what is another
 *   q  powers off
 *
 * Of the other processors the first waits in a loop, the second halts with its timer armed, and the others
 * halt until an interrupt from the first processor comes.
 */
#include "c_guest.h"

typedef unsigned __int128 u128;

enum {
  kPitChannel0 = 0x40,
  kPitCommand = 0x43,

  kTimerVector = 0x41,
  kPitVector = 0x42,
  kWakeVector = 0x43,

  kPitPin = 0, /* of the I/O APIC */
  kTrampoline = 0x10000,
  kMostCpus = 32,
};

/* What a processor holds: general registers but the stack's and the one that finds this, the vector
 * registers, and what else can be read back. */
struct registers {
  u64 general[14];
  u64 vector[16][4];
  u64 msrs[8];
  u64 debug[4];
  u64 fault_address;
  u64 tsc;
  u32 mxcsr;
  u32 has_avx;
};

struct cpu {
  struct registers wanted;
  struct registers found;
  volatile u32 holds;
  volatile u32 done;
  volatile u32 interrupts;
  u32 waits; /* enum below */
};
enum { kSpins, kHaltsForTimer, kHalts };

_Static_assert(sizeof(struct registers) == 14 * 8 + 512 + 64 + 32 + 24, "the assembler below counts on it");

struct cpu cpus[kMostCpus];
u8 stacks[kMostCpus][8192] __attribute__((aligned(16)));
volatile u32 go;
volatile u32 ticks; /* of the PIT */
u64 interrupt_table[2 * 256] __attribute__((aligned(16)));

__asm__(
    /* Where the other processors begin, in real mode, copied to kTrampoline: straight to 64 bits. */
    ".global trampoline, trampoline_end, trampoline_tables\n"
    ".code16\n"
    "trampoline:\n"
    "  cli\n"
    "  lgdtl %cs:(gdt_pointer - trampoline)\n"
    "  movl $0x620, %eax\n" /* PAE, vector registers */
    "  movl %eax, %cr4\n"
    "  movl %cs:(trampoline_tables - trampoline), %eax\n"
    "  movl %eax, %cr3\n"
    "  movl $0xc0000080, %ecx\n"
    "  rdmsr\n"
    "  orl $0x100, %eax\n" /* long mode */
    "  wrmsr\n"
    "  movl $0x80000033, %eax\n"
    "  movl %eax, %cr0\n"
    "  ljmpl $0x10, $other_processor\n"
    "gdt_pointer:\n"
    "  .word 31\n"
    "  .long gdt\n"
    "trampoline_tables: .long 0\n"
    "trampoline_end:\n"
    ".balign 8\n"
    "gdt: .quad 0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff\n" /* the boot's selectors: 0x10, 0x18 */
    ".code64\n"
    "other_processor:\n"
    "  mov $0x18, %eax\n"
    "  mov %eax, %ds\n"
    "  mov %eax, %es\n"
    "  mov %eax, %ss\n"
    "  mov $0xfee00020, %eax\n"
    "  mov (%rax), %edi\n"
    "  shr $24, %edi\n"
    "  mov %edi, %eax\n"
    "  inc %eax\n"
    "  shl $13, %eax\n"
    "  lea stacks(%rax), %rsp\n"
    "  call hold\n"

    /* Every interrupt: counts it, for the processor it came to. */
    ".global interrupted, ticked\n"
    "ticked:\n"
    "  lock incl ticks\n"
    "interrupted:\n"
    "  push %rax\n"
    "  push %rcx\n"
    "  mov $0xfee00020, %eax\n"
    "  mov (%rax), %ecx\n"
    "  shr $24, %ecx\n"
    "  imul $cpu_size, %rcx, %rcx\n"
    "  lock incl cpus + cpu_interrupts(%rcx)\n"
    "  mov $0xfee000b0, %eax\n"
    "  movl $0, (%rax)\n" /* the end of it */
    "  pop %rcx\n"
    "  pop %rax\n"
    "  iretq\n"

    /* void hold_registers(struct cpu*): fills them, waits for `go`, and takes down what they are then. */
    ".macro each_vector instruction\n"
    "  .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
    "  \\instruction \\n\n"
    "  .endr\n"
    ".endm\n"
    ".macro load_half n\n"
    "  movups 112 + 32 * \\n(%r15), %xmm\\n\n"
    ".endm\n"
    ".macro load_whole n\n"
    "  vmovups 112 + 32 * \\n(%r15), %ymm\\n\n"
    ".endm\n"
    ".macro store_half n\n"
    "  movups %xmm\\n, registers_size + 112 + 32 * \\n(%r15)\n"
    ".endm\n"
    ".macro store_whole n\n"
    "  vmovups %ymm\\n, registers_size + 112 + 32 * \\n(%r15)\n"
    ".endm\n"
    ".global hold_registers\n"
    "hold_registers:\n"
    "  push %rbx\n"
    "  push %rbp\n"
    "  push %r12\n"
    "  push %r13\n"
    "  push %r14\n"
    "  push %r15\n"
    "  mov %rdi, %r15\n"
    "  cmpl $0, registers_has_avx(%r15)\n"
    "  jne 1f\n"
    "  each_vector load_half\n"
    "  jmp 2f\n"
    "1: ldmxcsr registers_mxcsr(%r15)\n"
    "  each_vector load_whole\n"
    "2:\n"
    "  i = 0\n"
    "  .irp r, rax,rbx,rcx,rdx,rsi,rdi,rbp,r8,r9,r10,r11,r12,r13,r14\n"
    "  mov i(%r15), %\\r\n"
    "  i = i + 8\n"
    "  .endr\n"
    "  movl $1, cpu_holds(%r15)\n"
    "  cmpl $0, cpu_waits(%r15)\n"
    "  jne 4f\n"
    "3: cmpl $0, go\n"
    "  je 3b\n"
    "  jmp 6f\n"
    "4: sti\n"
    "5: hlt\n"
    "  cmpl $0, go\n"
    "  je 5b\n"
    "  cli\n"
    "6:\n"
    "  i = registers_size\n"
    "  .irp r, rax,rbx,rcx,rdx,rsi,rdi,rbp,r8,r9,r10,r11,r12,r13,r14\n"
    "  mov %\\r, i(%r15)\n"
    "  i = i + 8\n"
    "  .endr\n"
    "  cmpl $0, registers_has_avx(%r15)\n"
    "  jne 7f\n"
    "  each_vector store_half\n"
    "  jmp 8f\n"
    "7: stmxcsr registers_size + registers_mxcsr(%r15)\n"
    "  each_vector store_whole\n"
    "8:\n"
    "  pop %r15\n"
    "  pop %r14\n"
    "  pop %r13\n"
    "  pop %r12\n"
    "  pop %rbp\n"
    "  pop %rbx\n"
    "  ret\n"
    "registers_mxcsr = 736\n"
    "registers_has_avx = 740\n"
    "registers_size = 744\n"
    "cpu_holds = 2 * registers_size\n"
    "cpu_interrupts = cpu_holds + 8\n"
    "cpu_waits = cpu_holds + 12\n"
    "cpu_size = cpu_holds + 16\n");

extern const u8 trampoline[], trampoline_end[], trampoline_tables[];
void interrupted(void);
void ticked(void);
void hold_registers(struct cpu* cpu);

static void write_msr(u32 index, u64 value) {
  __asm__ volatile("wrmsr" : : "c"(index), "a"((u32)value), "d"((u32)(value >> 32)) : "memory");
}
static u64 read_msr(u32 index) {
  u32 low, high;
  __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(index));
  return (u64)high << 32 | low;
}
static u64 read_tsc(void) {
  u32 low, high;
  __asm__ volatile("rdtsc" : "=a"(low), "=d"(high) : : "memory");
  return (u64)high << 32 | low;
}
static void cpuid(u32 leaf, u32* eax, u32* ebx, u32* ecx) {
  u32 edx;
  __asm__ volatile("cpuid" : "=a"(*eax), "=b"(*ebx), "=c"(*ecx), "=d"(edx) : "a"(leaf), "c"(0));
}
static void halt_once(void) {
  __asm__ volatile("sti; hlt; cli" : : : "memory");
}

/* --- kvmclock: Linux's Documentation/virt/kvm/x86/msr.rst
 * ------------------------------------------------------- */

static volatile struct {
  u32 version, padding;
  u64 tsc_timestamp, system_time;
  u32 multiplier;
  signed char shift;
  u8 flags;
  u8 more[2];
} kvmclock __attribute__((aligned(32)));
enum { kGuestStopped = 2 };

static u64 clock_ns(void) {
  for (;;) {
    const u32 version = kvmclock.version;
    __asm__ volatile("lfence" : : : "memory");
    u64 ticks_since = read_tsc() - kvmclock.tsc_timestamp;
    ticks_since = kvmclock.shift < 0 ? ticks_since >> -kvmclock.shift : ticks_since << kvmclock.shift;
    const u64 now = kvmclock.system_time + (u64)((u128)ticks_since * kvmclock.multiplier >> 32);
    __asm__ volatile("lfence" : : : "memory");
    if (version % 2 == 0 && version == kvmclock.version) {
      return now;
    }
  }
}

/* --- interrupts
 * -------------------------------------------------------------------------------------------------- */

static void set_handler(u32 vector, void (*handler)(void)) {
  const u64 at = (u64)handler;
  interrupt_table[2 * vector] = (at & 0xffff) | 0x10 << 16 | 0x8eull << 40 | (at >> 16 & 0xffff) << 48;
  interrupt_table[2 * vector + 1] = at >> 32;
}

static void take_interrupts(void) {
  const struct {
    u16 limit;
    u64 base;
  } __attribute__((packed)) pointer = {sizeof(interrupt_table) - 1, (u64)interrupt_table};
  __asm__ volatile("lidt %0" : : "m"(pointer));
  *reg(LOCAL_APIC, 0xf0) = 0x1ff; /* enabled; spurious vector 0xff */
}

static void arm_timer(u32 count) {
  *reg(LOCAL_APIC, 0x3e0) = 0xb; /* undivided */
  *reg(LOCAL_APIC, 0x320) = kTimerVector;
  *reg(LOCAL_APIC, 0x380) = count;
}

static void wait_for_timer(void) {
  const u32 before = cpus[0].interrupts;
  arm_timer(2000000000); /* of nanoseconds, as KVM's bus counts */
  print("armed\n");
  while (cpus[0].interrupts == before) {
    halt_once();
  }
  print("timer\n");
}

static void tick(void) {
  *reg(IO_APIC, 0) = 0x10 + 2 * kPitPin + 1;
  *reg(IO_APIC, 0x10) = 0; /* to the first processor */
  *reg(IO_APIC, 0) = 0x10 + 2 * kPitPin;
  *reg(IO_APIC, 0x10) = kPitVector;
  out8(kPitCommand, 0x34); /* channel 0, both bytes, rate generator */
  out8(kPitChannel0, 11932 & 0xff);
  out8(kPitChannel0, 11932 >> 8); /* 100 a second */
  print("ticking\n");
  while (!has_input()) {
    const u32 before = ticks;
    while (ticks - before < 4) {
      halt_once();
    }
    print(".");
  }
  print("\n");
}

/* --- the other processors
 * -------------------------------------------------------------------------------------------- */

/* The last one is what tells the processors apart for rdtscp; the others hold addresses, which must be
 * canonical. */
static const u32 kMsrs[8] = {0xc0000081, 0xc0000082, 0xc0000083, 0xc0000100,
                             0xc0000101, 0xc0000102, 0x175,      0x176};

static void choose_values(struct registers* wanted, u32 id, u32 has_avx) {
  u64 value = 0x123456789abcdef1u + id;
  u64* word = wanted->general;
  for (; word != (u64*)wanted->msrs; ++word) {
    value = value * 6364136223846793005u + 1442695040888963407u;
    *word = value;
  }
  for (u32 index = 0; index < 8; ++index) {
    wanted->msrs[index] = value >> (18 + index) & ~3ul;
  }
  for (u32 index = 0; index < 4; ++index) {
    wanted->debug[index] = value >> (20 + index) & ~7ul;
  }
  wanted->fault_address = value >> 19;
  wanted->mxcsr = 0x1f80 | 0x6000; /* rounds towards zero */
  wanted->has_avx = has_avx;
}

static void set_others(const struct registers* wanted) {
  for (u32 index = 0; index < 8; ++index) {
    write_msr(kMsrs[index], wanted->msrs[index]);
  }
  __asm__ volatile("mov %0, %%dr0; mov %1, %%dr1; mov %2, %%dr2; mov %3, %%dr3; mov %4, %%cr2"
                   :
                   : "r"(wanted->debug[0]), "r"(wanted->debug[1]), "r"(wanted->debug[2]),
                     "r"(wanted->debug[3]), "r"(wanted->fault_address));
}

static void take_down_others(struct registers* found) {
  for (u32 index = 0; index < 8; ++index) {
    found->msrs[index] = read_msr(kMsrs[index]);
  }
  __asm__ volatile("mov %%dr0, %0; mov %%dr1, %1; mov %%dr2, %2; mov %%dr3, %3; mov %%cr2, %4"
                   : "=r"(found->debug[0]), "=r"(found->debug[1]), "=r"(found->debug[2]),
                     "=r"(found->debug[3]), "=r"(found->fault_address));
  found->tsc = read_tsc();
}

static void allow_avx(void) {
  __asm__ volatile(
      "mov %%cr4, %%rax; or $0x40000, %%rax; mov %%rax, %%cr4; xor %%ecx, %%ecx; xor %%edx, %%edx; mov $7, "
      "%%eax; xsetbv"
      :
      :
      : "rax", "rcx", "rdx");
}

__attribute__((used, noreturn)) void hold(u32 id) {
  struct cpu* const cpu = &cpus[id];
  take_interrupts();
  if (cpu->wanted.has_avx) {
    allow_avx();
  }
  set_others(&cpu->wanted);
  cpu->wanted.tsc = read_tsc();
  if (cpu->waits == kHaltsForTimer) {
    arm_timer(2500000000);
  }
  hold_registers(cpu);
  take_down_others(&cpu->found);
  cpu->done = 1;
  for (;;) {
    __asm__ volatile("cli; hlt");
  }
}

static void send_interrupt(u32 id, u32 what) {
  *reg(LOCAL_APIC, 0x310) = id << 24;
  *reg(LOCAL_APIC, 0x300) = what;
  while ((*reg(LOCAL_APIC, 0x300) & 1 << 12) != 0) {
  }
}

static u32 cpu_count;

static void start_others(u32 with_avx) {
  u8* const place = (u8*)(u64)kTrampoline;
  for (u64 index = 0; index < (u64)(trampoline_end - trampoline); ++index) {
    place[index] = trampoline[index];
  }
  u64 tables;
  __asm__ volatile("mov %%cr3, %0" : "=r"(tables));
  *(volatile u32*)(place + (trampoline_tables - trampoline)) = (u32)tables;
  for (u32 id = 1; id < cpu_count; ++id) {
    choose_values(&cpus[id].wanted, id, with_avx);
    cpus[id].waits = id == 1 ? kSpins : id == 2 ? kHaltsForTimer : kHalts;
    send_interrupt(id, 0x4500);                     /* INIT */
    send_interrupt(id, 0x4600 | kTrampoline >> 12); /* SIPI */
    while (cpus[id].holds == 0) {
    }
  }
  print("holding\n");
}

static void complain(u32 id, const char* what, u32 index) {
  print("FAIL: processor ");
  print_number(id);
  print(", ");
  print(what);
  print(" ");
  print_number(index);
  print("\n");
}

static u32 compare(u32 id, const char* what, const u64* wanted, const u64* found, u32 count) {
  for (u32 index = 0; index < count; ++index) {
    if (wanted[index] != found[index]) {
      complain(id, what, index);
      return 0;
    }
  }
  return 1;
}

static u32 is_as_it_was(u32 id) {
  const struct registers* const wanted = &cpus[id].wanted;
  const struct registers* const found = &cpus[id].found;
  u32 same = compare(id, "register", wanted->general, found->general, 14);
  for (u32 index = 0; index < 16; ++index) {
    same &=
        compare(id, "vector register", wanted->vector[index], found->vector[index], wanted->has_avx ? 4 : 2);
  }
  same &= compare(id, "MSR", wanted->msrs, found->msrs, 8);
  same &= compare(id, "debug register", wanted->debug, found->debug, 4);
  same &= compare(id, "CR2", &wanted->fault_address, &found->fault_address, 1);
  if (wanted->has_avx && wanted->mxcsr != found->mxcsr) {
    complain(id, "MXCSR", 0);
    same = 0;
  }
  if (found->tsc <= wanted->tsc) {
    complain(id, "TSC", 0);
    same = 0;
  }
  return same;
}

static void verify(void) {
  if (cpu_count > 2) {
    while (cpus[2].interrupts == 0) { /* its timer, armed before */
    }
  }
  go = 1;
  u32 same = 1;
  for (u32 id = 1; id < cpu_count; ++id) {
    if (cpus[id].waits != kSpins) {
      send_interrupt(id, kWakeVector);
    }
    while (cpus[id].done == 0) {
    }
    same &= is_as_it_was(id);
  }
  if (same) {
    print("PASS\n");
  }
}

static void read_what_piled_up(void) {
  while (!has_input()) {
  }
  kvmclock.flags = 0;
  print("full\n");
  while ((kvmclock.flags & kGuestStopped) == 0) {
  }
  while (has_input()) {
    out8(COM1, in8(COM1));
  }
  print("\n");
}

static u64 count;

static void act(u8 letter) {
  switch (letter) {
    case 'c':
      print_number(++count);
      print("\n");
      break;
    case 'k':
      print_hex(clock_ns());
      print("\n");
      break;
    case 'f':
      read_what_piled_up();
      break;
    case 't':
      wait_for_timer();
      break;
    case 'p':
      tick();
      break;
    case 'a':
    case 'y':
      start_others(letter == 'y');
      break;
    case 'v':
      verify();
      break;
    case 'q':
      power_off();
    default:
      print("?\n");
  }
}

/* How many processors there are: CPUID's leaf of their places. */
static u32 processors(void) {
  u32 eax, ebx, ecx;
  cpuid(1, &eax, &ebx, &ecx);
  return ebx >> 16 & 0xff;
}

void guest_main(const u8* zero_page) {
  (void)zero_page;
  cpu_count = processors();
  set_handler(kTimerVector, interrupted);
  set_handler(kPitVector, ticked);
  set_handler(kWakeVector, interrupted);
  take_interrupts();
  write_msr(0x4b564d01, (u64)&kvmclock | 1);
  out8(COM1 + 2, 1); /* the FIFOs on */
  print("ready\n");
  for (;;) {
    if (has_input()) {
      act(in8(COM1));
    }
  }
}
