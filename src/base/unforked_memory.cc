#include "base/unforked_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <new>

namespace mayfly {
namespace {

std::size_t page_size() {
  return static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
}

std::size_t in_pages(std::size_t bytes) {
  const std::size_t page = page_size();
  return (bytes + page - 1) / page * page;
}

}  // namespace

// Throws what a memory_resource throws: to the process it is as if new had found no memory.
void* UnforkedMemory::do_allocate(std::size_t bytes, std::size_t alignment) {
  void* const memory = alignment > page_size() ? MAP_FAILED
                                               : ::mmap(nullptr, in_pages(bytes), PROT_READ | PROT_WRITE,
                                                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    throw std::bad_alloc();
  }
  if (::madvise(memory, in_pages(bytes), MADV_DONTFORK) != 0) {
    ::munmap(memory, in_pages(bytes));
    throw std::bad_alloc();
  }
  return memory;
}

void UnforkedMemory::do_deallocate(void* memory, std::size_t bytes, std::size_t /*alignment*/) {
  ::munmap(memory, in_pages(bytes));
}

}  // namespace mayfly
