// Whether two paths mean one file.
#pragma once

#include <string>

namespace mayfly {

// Whether both paths lead to one regular file, be it one that is not there yet and would be made: links are
// followed, also those that lead to no file. What cannot be looked at is no such file.
bool same_file(const std::string& one, const std::string& other);

}  // namespace mayfly
