// Directories that nobody but root and the caller can have tampered with.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"

namespace mayfly::jail {

// Opens the directory `name` in `parent`, in that directory and no other: no symbolic link, no other file
// system's mount in between. `path` names it in errors. ENOENT is kNotFound, a link or a file
// kInvalidArgument.
Result<UniqueFd> open_folder(const UniqueFd& parent, const std::string& name, const std::string& path);

// The same of a directory that is about to be removed: one of an ordinary user's is opened to him first.
Result<UniqueFd> open_own_folder(const UniqueFd& parent, const std::string& name, const std::string& path);

// Who serves the FUSE file system of a mount: it says of owners, modes and contents what it likes.
struct Server {
  bool is_mounted = false;    // false: nobody knows
  std::optional<uid_t> user;  // nothing where no process of this host does (virtiofs)
};
// Of the mount with this number, by the text of /proc/self/mountinfo (proc(5)).
Server server_of(std::string_view mountinfo, std::string_view mount);

// Refuses a directory whose file system is a process of somebody's but root's and this process's user, or of
// nobody knows whose: it has been unmounted meanwhile, or is another mount namespace's.
Result<void> check_server(const UniqueFd& folder, const std::string& path);

// Refuses a directory that somebody else could change: its owner must be root or this process's user, and
// nobody else may write to it, unless it is sticky (/tmp), where others cannot touch what they do not own;
// and check_server().
Result<void> check_owner(const UniqueFd& folder, const std::string& path);

// The same of a directory in which there must be nothing of somebody else's: neither if it is sticky.
Result<void> check_private(const UniqueFd& folder, const std::string& path);

struct SafeFolder {
  UniqueFd fd;          // the last one that is there
  std::string path;     // its path
  std::string missing;  // the rest, "a/b", or empty
};
// Follows the absolute `path`, which has neither "." nor "..", as far as it is there: each directory on the
// way is opened by open_folder() and passes check_owner().
Result<SafeFolder> follow(const std::string& path);

// The names in a directory, of which there may be more than these: some thousand at most.
Result<std::vector<std::string>> names_in(const UniqueFd& folder, const std::string& path);

// What begins so in a directory that was not emptied to its end was deep below it.
inline constexpr const char* kMovedPrefix = ".removed-";

// Empties the directory and everything below it, whatever may have been prepared there: nothing outside it is
// touched, links are removed and not followed, mounts are not entered but refused. Root takes each directory
// below it from its owner first, so that nobody can go on filling it. What is named `kept` in the directory
// itself stays. `path` names it in errors.
Result<void> remove_contents(const UniqueFd& folder, const std::string& path, std::string_view kept = {});

}  // namespace mayfly::jail
