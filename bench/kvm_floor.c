/* The floor under every monitor's start on this machine: the fewest KVM calls that bring a 64-bit guest with
 * KVM's interrupt controllers to its first port write, in a static process that does nothing else. Writes
 * that byte to standard output and ends. Memory comes before the interrupt controllers, for the reason that
 * kvm.h gives. */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { kRam = 128 << 20, kEntry = 0x1000000, kPml4 = 0x9000, kPdpt = 0xa000, kPageDirectory = 0xb000 };

static long must(long result, const char* doing) {
  if (result < 0) {
    perror(doing);
    exit(1);
  }
  return result;
}

static struct kvm_segment flat(uint16_t selector, uint8_t type, uint8_t is_code) {
  struct kvm_segment segment = {
      .limit = 0xffffffff, .selector = selector, .type = type, .present = 1, .s = 1, .g = 1};
  segment.l = is_code;
  segment.db = !is_code;
  return segment;
}

int main(void) {
  static const uint8_t guest[] = {0xba, 0xf8, 0x03, 0x00, 0x00, /* mov $0x3f8, %edx */
                                  0xb0, 's',                    /* mov $'s', %al */
                                  0xee, 0xf4};                  /* out %al, %dx; hlt */
  int kvm = (int)must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "open /dev/kvm");
  int vm = (int)must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
  uint8_t* ram = mmap(NULL, kRam, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  must(ram == MAP_FAILED ? -1 : 0, "mmap");
  ((uint64_t*)(ram + kPml4))[0] = kPdpt | 3;
  ((uint64_t*)(ram + kPdpt))[0] = kPageDirectory | 3;
  for (uint64_t i = 0; i < 512; i++) {
    ((uint64_t*)(ram + kPageDirectory))[i] = i << 21 | 0x83;
  }
  memcpy(ram + kEntry, guest, sizeof guest);

  struct kvm_userspace_memory_region slot = {.memory_size = kRam, .userspace_addr = (uintptr_t)ram};
  must(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot), "KVM_SET_USER_MEMORY_REGION");
  must(ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000UL), "KVM_SET_TSS_ADDR");
  must(ioctl(vm, KVM_CREATE_IRQCHIP, 0), "KVM_CREATE_IRQCHIP");
  struct kvm_pit_config timer = {.flags = KVM_PIT_SPEAKER_DUMMY};
  must(ioctl(vm, KVM_CREATE_PIT2, &timer), "KVM_CREATE_PIT2");

  int vcpu = (int)must(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
  size_t area = (size_t)must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
  struct kvm_run* run = mmap(NULL, area, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
  must(run == MAP_FAILED ? -1 : 0, "mmap of the vCPU");
  static struct {
    struct kvm_cpuid2 head;
    struct kvm_cpuid_entry2 entries[256];
  } cpuid = {.head = {.nent = 256}};
  must(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid), "KVM_GET_SUPPORTED_CPUID");
  must(ioctl(vcpu, KVM_SET_CPUID2, &cpuid), "KVM_SET_CPUID2");
  struct kvm_sregs special;
  must(ioctl(vcpu, KVM_GET_SREGS, &special), "KVM_GET_SREGS");
  special.cr0 |= 0x80000001; /* paging, protection */
  special.cr3 = kPml4;
  special.cr4 |= 0x20;   /* PAE */
  special.efer |= 0x500; /* long mode enabled and active */
  special.cs = flat(8, 11, 1);
  special.ds = special.es = special.fs = special.gs = special.ss = flat(16, 3, 0);
  must(ioctl(vcpu, KVM_SET_SREGS, &special), "KVM_SET_SREGS");
  struct kvm_regs registers = {.rip = kEntry, .rflags = 2};
  must(ioctl(vcpu, KVM_SET_REGS, &registers), "KVM_SET_REGS");
  must(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
  if (run->exit_reason != KVM_EXIT_IO) {
    fprintf(stderr, "unexpected exit %u\n", run->exit_reason);
    return 1;
  }
  return write(STDOUT_FILENO, "s", 1) == 1 ? 0 : 1;
}
