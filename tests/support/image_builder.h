// Files that pretend to be kernels: built whole and valid, then damaged by the tests at one place each. The
// layouts are written down here from the specifications, not taken from the loaders.
#pragma once

#include <elf.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/unique_fd.h"
#include "memory/guest_memory.h"

namespace mayfly::testing {

using Bytes = std::vector<std::byte>;

// Puts `source` at `offset`, making the file longer where needed.
inline void put_bytes(Bytes& file, std::uint64_t offset, std::span<const std::byte> source) {
  if (source.empty()) {
    return;
  }
  if (file.size() < offset + source.size()) {
    file.resize(offset + source.size());
  }
  std::memcpy(file.data() + offset, source.data(), source.size());
}

template <typename T>
requires std::is_trivially_copyable_v<T>
void put(Bytes& file, std::uint64_t offset, const T& value) {
  put_bytes(file, offset, std::as_bytes(std::span(&value, 1)));
}

inline Bytes to_bytes(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text));
  return Bytes(bytes.begin(), bytes.end());
}

// `size` bytes that differ from their neighbours and are never 0.
inline Bytes pattern(std::size_t size, unsigned seed = 1) {
  Bytes bytes(size);
  for (std::size_t i = 0; i < size; ++i) {
    bytes[i] = static_cast<std::byte>((i * 7 + seed) % 251 + 1);
  }
  return bytes;
}

// An unnamed file with this content. Ends the process where the host cannot make one.
inline UniqueFd make_file(std::span<const std::byte> content) {
  UniqueFd file(::memfd_create("image", MFD_CLOEXEC));
  while (file.valid() && !content.empty()) {
    const ssize_t written = ::write(file.get(), content.data(), content.size());
    if (written <= 0) {
      std::abort();
    }
    content = content.subspan(static_cast<std::size_t>(written));
  }
  if (!file.valid()) {
    std::abort();
  }
  return file;
}

// Fresh memory of [0, size).
inline GuestMemory make_memory(std::uint64_t size) {
  const auto range = GuestRange::make(GuestAddress(0), size);
  if (!range) {
    std::abort();
  }
  auto memory = GuestMemory::create(std::span(&*range, 1), Backing::kAnonymous);
  if (!memory) {
    std::abort();
  }
  return std::move(*memory);
}

inline Bytes read_memory(const GuestMemory& memory, std::uint64_t address, std::size_t size) {
  Bytes bytes(size);
  if (!memory.read(GuestAddress(address), bytes)) {
    std::abort();
  }
  return bytes;
}

// One note as the GNU tools lay it out: name and description each padded to `alignment` from the note's
// start.
struct Note {
  std::uint32_t type = 0;
  Bytes name;
  Bytes description;
};

inline Bytes note_bytes(const std::vector<Note>& notes, std::uint64_t alignment = 4) {
  Bytes bytes;
  const auto pad = [&] { bytes.resize((bytes.size() + alignment - 1) / alignment * alignment); };
  for (const Note& note : notes) {
    put(bytes, bytes.size(), static_cast<std::uint32_t>(note.name.size()));
    put(bytes, bytes.size(), static_cast<std::uint32_t>(note.description.size()));
    put(bytes, bytes.size(), note.type);
    put_bytes(bytes, bytes.size(), note.name);
    pad();
    put_bytes(bytes, bytes.size(), note.description);
    pad();
  }
  return bytes;
}

inline Note pvh_note(std::uint64_t entry) {
  Note note{18, to_bytes(std::string_view("Xen\0", 4)), {}};
  put(note.description, 0, entry);
  return note;
}

struct ElfImage {
  Elf64_Ehdr header{};
  std::vector<Elf64_Phdr> program_headers;
  std::vector<std::pair<std::uint64_t, Bytes>> contents;  // (file offset, bytes)

  // No segments yet.
  static ElfImage make(std::uint64_t entry) {
    ElfImage image;
    std::memcpy(image.header.e_ident, ELFMAG, SELFMAG);
    image.header.e_ident[EI_CLASS] = ELFCLASS64;
    image.header.e_ident[EI_DATA] = ELFDATA2LSB;
    image.header.e_ident[EI_VERSION] = EV_CURRENT;
    image.header.e_type = ET_EXEC;
    image.header.e_machine = EM_X86_64;
    image.header.e_version = EV_CURRENT;
    image.header.e_entry = entry;
    image.header.e_phoff = sizeof(Elf64_Ehdr);
    image.header.e_ehsize = sizeof(Elf64_Ehdr);
    image.header.e_phentsize = sizeof(Elf64_Phdr);
    return image;
  }

  ElfImage& add_load(std::uint64_t address, std::uint64_t offset, Bytes content, std::uint64_t memory_size) {
    return add(PT_LOAD, address, offset, std::move(content), memory_size, 0x1000);
  }

  ElfImage& add_notes(std::uint64_t offset, Bytes content, std::uint64_t alignment = 4) {
    const std::uint64_t size = content.size();
    return add(PT_NOTE, 0, offset, std::move(content), size, alignment);
  }

  Bytes bytes() const {
    Bytes file;
    for (const auto& [offset, content] : contents) {
      put_bytes(file, offset, content);
    }
    put(file, 0, header);
    for (std::size_t i = 0; i < program_headers.size(); ++i) {
      put(file, sizeof(Elf64_Ehdr) + i * sizeof(Elf64_Phdr), program_headers[i]);
    }
    return file;
  }

 private:
  ElfImage& add(std::uint32_t type, std::uint64_t address, std::uint64_t offset, Bytes content,
                std::uint64_t memory_size, std::uint64_t alignment) {
    Elf64_Phdr segment{};
    segment.p_type = type;
    segment.p_flags = PF_R | PF_W | PF_X;
    segment.p_offset = offset;
    segment.p_vaddr = address;
    segment.p_paddr = address;
    segment.p_filesz = content.size();
    segment.p_memsz = memory_size;
    segment.p_align = alignment;
    program_headers.push_back(segment);
    header.e_phnum = static_cast<std::uint16_t>(program_headers.size());
    contents.emplace_back(offset, std::move(content));
    return *this;
  }
};

inline constexpr std::uint64_t kElfTextAddress = 0x1000000;
inline constexpr std::uint64_t kElfDataAddress = 0x1200000;
inline constexpr std::uint64_t kElfPvhEntry = kElfTextAddress + 0x40;

// What a Linux vmlinux looks like: text, data with BSS, a PVH note. Program headers 0, 1 and 2.
inline ElfImage make_vmlinux() {
  ElfImage image = ElfImage::make(kElfTextAddress);
  image.add_load(kElfTextAddress, 0x1000, pattern(0x1800), 0x1800);
  image.add_load(kElfDataAddress, 0x3000, pattern(0x345, 9), 0x5000);
  image.add_notes(0x3800, note_bytes({Note{3, to_bytes(std::string_view("GNU\0", 4)), pattern(20)},
                                      pvh_note(kElfPvhEntry)}));
  return image;
}

// A bzImage of protocol 2.15, field by field at the offsets of the boot protocol's table.
struct BzImage {
  Bytes file;

  static constexpr std::uint64_t kCodeOffset = 5 * 512;
  static constexpr std::uint64_t kCodeSize = 0x1230;

  template <typename T>
  void set(std::uint64_t offset, std::type_identity_t<T> value) {
    put<T>(file, offset, value);
  }
};

inline BzImage make_bzimage() {
  BzImage image;
  image.file = Bytes(BzImage::kCodeOffset);
  image.set<std::uint8_t>(0x1f1, 4);                         // setup_sects
  image.set<std::uint32_t>(0x1f4, BzImage::kCodeSize / 16);  // syssize
  image.set<std::uint16_t>(0x1fe, 0xaa55);                   // boot_flag
  image.set<std::uint16_t>(0x200, 0x6aeb);                   // jump over the header, up to 0x26c
  image.set<std::uint32_t>(0x202, 0x53726448);               // "HdrS"
  image.set<std::uint16_t>(0x206, 0x020f);                   // version
  image.set<std::uint8_t>(0x211, 0x01);                      // loadflags: LOADED_HIGH
  image.set<std::uint32_t>(0x214, 0x100000);                 // code32_start
  image.set<std::uint32_t>(0x22c, 0x7fffffff);               // initrd_addr_max
  image.set<std::uint32_t>(0x230, 0x200000);                 // kernel_alignment
  image.set<std::uint8_t>(0x234, 1);                         // relocatable_kernel
  image.set<std::uint8_t>(0x235, 21);                        // min_alignment
  image.set<std::uint16_t>(0x236, 0x3);                      // xloadflags: 64-bit entry, above 4 GiB
  image.set<std::uint32_t>(0x238, 2047);                     // cmdline_size
  image.set<std::uint32_t>(0x248, 0x300);                    // payload_offset
  image.set<std::uint32_t>(0x24c, 0x400);                    // payload_length
  image.set<std::uint64_t>(0x258, 0x1000000);                // pref_address
  image.set<std::uint32_t>(0x260, 0x800000);                 // init_size
  image.set<std::uint32_t>(0x264, 0x190);                    // handover_offset
  image.set<std::uint32_t>(0x268, 0x1100);                   // kernel_info_offset
  put_bytes(image.file, BzImage::kCodeOffset, pattern(BzImage::kCodeSize));
  return image;
}

}  // namespace mayfly::testing
