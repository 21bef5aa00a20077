#include "vmm/x86_64/cpu_setup.h"

#include <linux/kvm.h>

#include "kvm/x86_64/vcpu_state.h"

namespace mayfly::x86_64 {
namespace {

std::uint8_t bit(bool value) {
  return value ? 1 : 0;
}

kvm_segment to_kvm(const SegmentState& segment) {
  kvm_segment result = {};
  result.base = segment.base;
  result.limit = segment.limit;
  result.selector = segment.selector;
  result.type = segment.type;
  result.dpl = segment.dpl;
  result.present = bit(segment.present);
  result.s = bit(segment.s);
  result.db = bit(segment.db);
  result.l = bit(segment.l);
  result.g = bit(segment.g);
  result.avl = bit(segment.avl);
  result.unusable = bit(!segment.present);
  return result;
}

kvm_dtable to_kvm(const DescriptorTable& table) {
  kvm_dtable result = {};
  result.base = table.base;
  result.limit = table.limit;
  return result;
}

}  // namespace

Result<void> apply_boot_state(const Vcpu& vcpu, const CpuBootState& state) {
  MAYFLY_TRY_ASSIGN(kvm_sregs special, get_sregs(vcpu));
  special.cs = to_kvm(state.cs);
  special.ds = to_kvm(state.ds);
  special.es = to_kvm(state.es);
  special.fs = to_kvm(state.fs);
  special.gs = to_kvm(state.gs);
  special.ss = to_kvm(state.ss);
  special.tr = to_kvm(state.tr);
  special.ldt = to_kvm(state.ldt);
  special.gdt = to_kvm(state.gdt);
  special.idt = to_kvm(state.idt);
  special.cr0 = state.cr0;
  special.cr3 = state.cr3;
  special.cr4 = state.cr4;
  special.efer = state.efer;
  MAYFLY_TRY(set_sregs(vcpu, special));

  kvm_regs registers = {};
  registers.rip = state.rip;
  registers.rsp = state.rsp;
  registers.rsi = state.rsi;
  registers.rbx = state.rbx;
  registers.rflags = state.rflags;
  MAYFLY_TRY(set_regs(vcpu, registers));
  return set_fpu(vcpu, initial_fpu());
}

}  // namespace mayfly::x86_64
