// Everything that a guest finds in its memory when it starts: kernel, initrd, command line, firmware tables.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "base/text.h"
#include "boot/command_line.h"
#include "boot/initrd.h"
#include "boot/kernel_image.h"
#include "boot/x86_64/acpi/tables.h"
#include "boot/x86_64/layout.h"
#include "boot/x86_64/mp_table.h"
#include "boot/x86_64/prepare_boot.h"
#include "devices/power/power.h"
#include "devices/vmgenid/vmgenid.h"
#include "vmm/arch.h"
#include "vmm/x86_64/cpu_setup.h"

namespace mayfly {

namespace {

namespace layout = x86_64::layout;

// Whether a parameter that starts so is there.
bool has_token(const CommandLine& command_line, std::string_view token) {
  return (" " + command_line.text()).find(" " + std::string(token)) != std::string::npos;
}

// Tells the kernel that there is no PCI, which nothing else can: it would look for devices by hundreds of
// port accesses, each of them an exit. A command line that says something of PCI itself, or has no room left,
// stays as it is.
void say_that_there_is_no_pci(CommandLine& command_line, std::uint64_t kernel_max) {
  if (has_token(command_line, "pci=")) {
    return;
  }
  CommandLine longer = command_line;
  if (longer.append("pci=off") && longer.size() <= kernel_max) {
    command_line = std::move(longer);
  }
}

// Where the root file system is, unless the command line says so itself.
Result<void> name_root(CommandLine& command_line, const VmConfig& config) {
  const auto root = std::ranges::find_if(config.drives, &BlockDeviceConfig::is_root);
  if (root == config.drives.end() || has_token(command_line, "root=")) {
    return {};
  }
  const std::string device = root->partuuid ? "PARTUUID=" + *root->partuuid : "/dev/vda";
  return command_line.append("root=" + device + (root->read_only ? " ro" : " rw"));
}

// A kernel without ACPI finds devices by its command line only
// (Documentation/admin-guide/kernel-parameters.txt, virtio_mmio.device).
Result<void> name_virtio_devices(CommandLine& command_line, std::uint32_t count) {
  for (std::uint32_t index = 0; index < count; ++index) {
    const x86_64::VirtioPlace place = x86_64::virtio_place(index);
    MAYFLY_TRY(
        command_line.append("virtio_mmio.device=4K@" + hex(place.base) + ":" + std::to_string(place.gsi)));
  }
  return {};
}

}  // namespace

Result<EnterGuest> load_guest(GuestMemory& memory, const VmConfig& config, const GuestFiles& files,
                              BootTrace* trace) {
  const BootSourceConfig& source = config.boot_source;
  MAYFLY_TRY_ASSIGN(CommandLine command_line, CommandLine::make(source.boot_args.value_or(kDefaultBootArgs)));

  auto kernel = [&] {
    const TracePhase phase(trace, "load kernel");
    return load_kernel(memory, files.kernel, source.kernel_image_path, source.protocol);
  }();
  if (!kernel) {
    return tl::make_unexpected(kernel.error());
  }
  const auto virtio_count = static_cast<std::uint32_t>(config.drives.size() + config.networks.size());
  MAYFLY_TRY(name_root(command_line, config));
  const bool without_acpi = has_token(command_line, "acpi=off");
  if (without_acpi) {
    MAYFLY_TRY(name_virtio_devices(command_line, virtio_count));
  }
  say_that_there_is_no_pci(command_line, kernel->command_line_max);
  BootPlan plan{std::move(*kernel), std::nullopt, std::move(command_line), std::nullopt};

  if (files.initrd) {
    const TracePhase phase(trace, "load initrd");
    MAYFLY_TRY_ASSIGN(plan.initrd, load_initrd(memory, *files.initrd, *source.initrd_path, plan.kernel));
  }

  const TracePhase phase(trace, "write boot data");
  std::vector<x86_64::AcpiVirtioMmio> virtio;
  for (std::uint32_t index = 0; index < virtio_count; ++index) {
    const x86_64::VirtioPlace place = x86_64::virtio_place(index);
    virtio.push_back({place.base, layout::kVirtioMmioWindow, place.gsi});
  }
  const x86_64::AcpiConfig tables{
      .vcpu_count = config.machine.vcpu_count,
      .virtio_mmio = std::move(virtio),
      .serial = x86_64::AcpiSerial{layout::kSerialPort, layout::kSerialIrq},
      .power = {.port = layout::kPowerPort,
                .sleep_type_off = PowerDevice::kSleepTypeOff,
                .reset_value = PowerDevice::kResetValue,
                .shutdown_gsi = layout::kShutdownRequestGsi},
      .vm_gen_id = x86_64::AcpiVmGenId{vm_gen_id_page().value() + kGenerationOffset, layout::kVmGenIdGsi}};
  MAYFLY_TRY_ASSIGN(plan.rsdp, x86_64::write_acpi_tables(tables, memory));
  // The snapshot mark beside it stays as fresh memory is: zeros.
  MAYFLY_TRY_ASSIGN(const RandomId generation, make_random_id());
  MAYFLY_TRY(write_generation(memory, vm_gen_id_page(), generation));
  if (without_acpi) {
    // For such a kernel alone: the ACPI tables say it all, and two that say the same could differ.
    MAYFLY_TRY(x86_64::write_mp_table(config.machine.vcpu_count, memory));
  }
  MAYFLY_TRY_ASSIGN(const x86_64::CpuBootState state, x86_64::prepare_boot(memory, plan));
  return [state](const Vcpu& vcpu) { return x86_64::apply_boot_state(vcpu, state); };
}

}  // namespace mayfly
