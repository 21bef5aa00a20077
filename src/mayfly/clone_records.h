// What a template knows of the calls for clones that are under way, and of the clones that live.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory_resource>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "api/clone_call.h"
#include "base/error.h"
#include "base/unforked_memory.h"
#include "mayfly/clone_files.h"
#include "mayfly/clone_pool.h"

namespace mayfly {

// POST /clone under way.
struct CloneCall {
  std::uint64_t ticket = 0;
  api::CloneRequest request;
  std::vector<api::BornClone> clones{};  // told who they are, in this order
  std::vector<MadeFile> made_files{};
  std::size_t in_flight = 0;     // clones that have not said yet that they are born
  unsigned lost = 0;             // processes that ended without a word while it waited for one
  std::optional<Error> error{};  // no clone is to be left
  // Until a process is there; after an error, until all have ended, and then until the files are gone.
  std::chrono::steady_clock::time_point deadline{};
  std::size_t left = 0;  // after an error: clones that live
  pid_t remover = 0;     // after these: the process that removes made_files; 0: none
};

// A clone that was told who it is and has not said yet that it is born.
struct BirthUnderWay {
  PoolProcess child;
  CloneCall* call = nullptr;
  std::string id;
  std::vector<std::string> outputs;  // paths

  // Keeps what the clone says of a file that it has made (kMade, a message of clone_channel.h), for the call.
  // Each of its outputs is said once: what a clone says more than that is not kept.
  void note_made(const std::string& message) const;
};

// The clones that live, or are being born: the one record that grows with their number, in memory that they
// do not share.
class LivingClones {
 public:
  // `call`, borrowed until it is told or the clone has ended, is the one whose caller does not know of it
  // yet. Nobody else has its id or its process.
  void add(const api::BornClone& clone, CloneCall& call);
  // Its process has ended. The call whose caller was not told of it; null where that one was, or there is no
  // such clone.
  CloneCall* remove(pid_t pid);
  // Somebody knows of it now, if it lives.
  void note_told(pid_t pid);

  bool has_id(std::string_view id) const { return ids_.contains(id); }
  // Whether it lives, and the caller of `call` was not told of it.
  bool is_untold_of(const CloneCall& call, pid_t pid) const;

  // Those that somebody was told of.
  std::size_t told_count() const { return told_; }
  std::vector<api::BornClone> told() const;

 private:
  struct Life {
    std::pmr::string id;
    std::optional<std::pmr::string> socket;
    CloneCall* call = nullptr;  // whose caller was not told of it yet
  };

  UnforkedMemory unforked_;
  std::pmr::unsynchronized_pool_resource books_{&unforked_};
  std::pmr::map<pid_t, Life> living_{&books_};
  std::pmr::set<std::pmr::string, std::less<>> ids_{&books_};  // of those
  std::size_t told_ = 0;                                       // of them, that somebody was told of
};

}  // namespace mayfly
