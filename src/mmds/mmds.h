// The metadata store: one JSON value that the host writes and the guest reads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/mutex.h"
#include "base/result.h"
#include "mmds/mmds_config.h"
#include "mmds/token_store.h"

namespace mayfly {

// Shared by the control API, which writes, and the network devices, which answer the guest: every function is
// thread-safe, and a reader never waits for a writer's parsing or merging. One for a microVM.
class Mmds {
 public:
  // Of the value as compact JSON, in bytes.
  static constexpr std::size_t kDefaultSizeLimit = 51'200;

  enum class Format : std::uint8_t {
    kText,  // as EC2's instance metadata service: an object is a list of its keys, objects with a slash
    kJson,
  };
  struct Reading {
    enum class Status : std::uint8_t {
      kFound,
      kNotFound,
      kNoText,  // neither an object nor a string: there is no such text
    };
    Status status = Status::kNotFound;
    bool json = false;  // whether the text is that
    std::string text{};
  };

  // `clock` is borrowed: the tokens' time.
  explicit Mmds(std::size_t size_limit = kDefaultSizeLimit, const Clock& clock = kSystemClock);
  ~Mmds();
  Mmds(const Mmds&) = delete;
  Mmds& operator=(const Mmds&) = delete;

  // How the guest is answered from now on. `config` was validated.
  void configure(const MmdsConfig& config);
  MmdsVersion version() const;

  // The host's side: the value is replaced, merged into (RFC 7396), or given as JSON. On an error nothing has
  // changed: kInvalidArgument (no JSON, a key twice in an object, nested too deeply), kExhausted (the new
  // value would be larger than the limit: HTTP's 413), and from patch() and get() kNotFound where nothing has
  // been put yet.
  Result<void> put(std::string_view json);
  Result<void> patch(std::string_view json);
  Result<std::string> get() const;

  // The guest's side. `path` is that of a URL: names between slashes, of which superfluous ones do not count;
  // in a name, %XX stands for a byte, ~1 for a slash and ~0 for a tilde (RFC 6901); an array's elements have
  // their numbers as names. A date of EC2's ("2009-04-04") in front stands for "latest" where there is
  // nothing of that name, as it does there.
  Reading read(std::string_view path, Format format) const;

  // As for a TokenStore.
  Result<std::string> make_token(std::uint32_t ttl_seconds);
  bool use_token(std::string_view token);

 private:
  struct Document;

  std::shared_ptr<const Document> document() const;
  Result<void> replace(std::shared_ptr<const Document> document) MAYFLY_REQUIRES(writer_);

  const std::size_t size_limit_;
  const Clock& clock_;
  Mutex writer_;  // one writer at a time; mutex_ is taken under it
  mutable Mutex mutex_;
  std::shared_ptr<const Document> document_ MAYFLY_GUARDED_BY(mutex_);  // null: nothing was put yet
  MmdsVersion version_ MAYFLY_GUARDED_BY(mutex_) = MmdsVersion::kV1;
  bool imds_compat_ MAYFLY_GUARDED_BY(mutex_) = false;
  TokenStore tokens_ MAYFLY_GUARDED_BY(mutex_);
};

}  // namespace mayfly
