// Whether two paths mean one file.
#pragma once

#include <sys/stat.h>

#include <string>

namespace mayfly {

// Whether both paths lead to one regular file, be it one that is not there yet and would be made, or to one
// block device: links are followed, also those that lead to no file. What cannot be looked at is no such
// file.
bool same_file(const std::string& one, const std::string& other);

// The same of what stat() has told.
bool same_file(const struct stat& one, const struct stat& other);

}  // namespace mayfly
