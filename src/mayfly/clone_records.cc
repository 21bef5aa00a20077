#include "mayfly/clone_records.h"

#include <algorithm>
#include <bit>
#include <utility>

namespace mayfly {

void BirthUnderWay::note_made(const std::string& message) const {
  NewOutputBytes bytes{};
  message.copy(bytes.data(), bytes.size(), 1);
  const auto file = std::bit_cast<NewOutput>(bytes);
  std::vector<MadeFile>& known = call->made_files;
  if (file.index < outputs.size() &&
      std::ranges::find(known, outputs[file.index], &MadeFile::path) == known.end()) {
    known.push_back({outputs[file.index], file});
  }
}

void LivingClones::add(const api::BornClone& clone, CloneCall& call) {
  Life life{.id = std::pmr::string(clone.id, &books_), .socket = std::nullopt, .call = &call};
  if (clone.socket) {
    life.socket.emplace(*clone.socket, &books_);
  }
  ids_.insert(life.id);
  living_.emplace(clone.pid, std::move(life));
}

CloneCall* LivingClones::remove(pid_t pid) {
  const auto found = living_.find(pid);
  if (found == living_.end()) {
    return nullptr;
  }
  CloneCall* const call = found->second.call;
  ids_.erase(found->second.id);
  living_.erase(found);
  if (call == nullptr) {
    --told_;
  }
  return call;
}

void LivingClones::note_told(pid_t pid) {
  if (const auto found = living_.find(pid); found != living_.end()) {
    found->second.call = nullptr;
    ++told_;
  }
}

bool LivingClones::is_untold_of(const CloneCall& call, pid_t pid) const {
  const auto found = living_.find(pid);
  return found != living_.end() && found->second.call == &call;
}

std::vector<api::BornClone> LivingClones::told() const {
  std::vector<api::BornClone> clones;
  for (const auto& [pid, life] : living_) {
    if (life.call == nullptr) {
      clones.push_back({.id = std::string(life.id), .pid = pid});
      if (life.socket) {
        clones.back().socket = std::string(*life.socket);
      }
    }
  }
  return clones;
}

}  // namespace mayfly
