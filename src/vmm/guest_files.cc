#include "vmm/guest_files.h"

#include "boot/image_file.h"

namespace mayfly {

Result<GuestFiles> GuestFiles::open(const BootSourceConfig& config) {
  GuestFiles files;
  MAYFLY_TRY_ASSIGN(files.kernel, open_image_file(config.kernel_image_path, "kernel image"));
  if (config.initrd_path) {
    MAYFLY_TRY_ASSIGN(files.initrd, open_image_file(*config.initrd_path, "initrd"));
  }
  return files;
}

}  // namespace mayfly
