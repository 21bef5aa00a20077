// The engine that does each operation at once and waits for it.
#pragma once

#include "devices/virtio/block/io_engine.h"

namespace mayfly {

class SyncEngine final : public IoEngine {
 public:
  // `fd` is borrowed, a regular file or a block device.
  explicit SyncEngine(int fd) : fd_(fd) {}

  std::optional<IoResult> submit(std::uint32_t token, const IoOperation& operation) override;
  bool kick() override { return true; }
  std::optional<IoCompletion> reap() override { return std::nullopt; }
  void drain() override {}
  int completion_fd() const override { return -1; }
  void set_file(int fd) override { fd_ = fd; }

 private:
  int fd_;
};

}  // namespace mayfly
