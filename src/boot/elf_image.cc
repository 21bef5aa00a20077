#include "boot/elf_image.h"

#include <elf.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "base/check.h"
#include "boot/arch.h"

namespace mayfly {
namespace {

namespace layout = arch::layout;

// Bounds that no kernel comes near (Linux has 5 program headers and 500 bytes of notes), so that a hostile
// image costs next to nothing.
constexpr std::size_t kMaxProgramHeaders = 128;
constexpr std::uint64_t kMaxNoteBytes = 64 * 1024;

// xen/include/public/elfnote.h
constexpr std::uint32_t XEN_ELFNOTE_PHYS32_ENTRY = 18;
constexpr std::string_view kXenNoteName("Xen\0", 4);

struct Segment {
  std::size_t index;          // of its program header, for errors
  std::uint64_t file_offset;  // bytes
  std::uint64_t file_size;    // bytes; the rest of the range is zero
  GuestRange range;
};

std::string segment_name(std::size_t index) {
  return "program header " + std::to_string(index);
}

std::string range_text(const GuestRange& range) {
  return "[" + hex(range.base().value()) + ", " + hex(range.last().value()) + "]";
}

Result<Elf64_Ehdr> read_header(const ImageFile& image) {
  MAYFLY_TRY_ASSIGN(const auto header, image.read_object<Elf64_Ehdr>(0));
  if (header.e_ident[EI_CLASS] != ELFCLASS64) {
    return image.refuse("is not a 64-bit ELF file (EI_CLASS " + std::to_string(header.e_ident[EI_CLASS]) +
                        ")");
  }
  if (header.e_ident[EI_DATA] != ELFDATA2LSB) {
    return image.refuse("is not a little-endian ELF file (EI_DATA " +
                        std::to_string(header.e_ident[EI_DATA]) + ")");
  }
  if (header.e_ident[EI_VERSION] != EV_CURRENT || header.e_version != EV_CURRENT) {
    return image.refuse("has an unknown ELF version (" + std::to_string(header.e_version) + ")");
  }
  if (header.e_machine != EM_X86_64) {
    return image.refuse("is not for x86-64 (e_machine " + std::to_string(header.e_machine) + ")");
  }
  // A kernel says where in physical memory it goes. One that leaves this to its loader (ET_DYN) would also
  // leave its relocations to it, and neither boot protocol has that.
  if (header.e_type == ET_DYN) {
    return image.refuse("is position-independent (ET_DYN): a kernel must be linked to its address (ET_EXEC)");
  }
  if (header.e_type != ET_EXEC) {
    return image.refuse("is not an executable (e_type " + std::to_string(header.e_type) + ")");
  }
  return header;
}

Result<std::vector<Elf64_Phdr>> read_program_headers(const ImageFile& image, const Elf64_Ehdr& header) {
  if (header.e_phentsize != sizeof(Elf64_Phdr)) {
    return image.refuse("has program headers of " + std::to_string(header.e_phentsize) +
                        " bytes instead of " + std::to_string(sizeof(Elf64_Phdr)));
  }
  if (header.e_phnum == 0) {
    return image.refuse("has no program headers");
  }
  if (header.e_phnum > kMaxProgramHeaders) {
    return image.refuse("has " + std::to_string(header.e_phnum) + " program headers, more than the " +
                        std::to_string(kMaxProgramHeaders) + " allowed");
  }
  const std::uint64_t bytes = header.e_phnum * sizeof(Elf64_Phdr);
  if (!image.has(header.e_phoff, bytes)) {
    return image.refuse("ends at " + hex(image.size()) + ", before the end of its program headers at " +
                        hex(header.e_phoff));
  }
  std::vector<Elf64_Phdr> headers(header.e_phnum);
  MAYFLY_TRY(image.read(header.e_phoff, std::as_writable_bytes(std::span(headers))));
  return headers;
}

Result<Segment> check_segment(const GuestMemory& memory, const ImageFile& image, std::size_t index,
                              const Elf64_Phdr& header) {
  const std::string name = segment_name(index);
  if (header.p_filesz > header.p_memsz) {
    return image.refuse(name + " has more bytes in the file (" + hex(header.p_filesz) + ") than in memory (" +
                        hex(header.p_memsz) + ")");
  }
  if (!image.has(header.p_offset, header.p_filesz)) {
    return image.refuse(name + " takes " + hex(header.p_filesz) + " bytes at " + hex(header.p_offset) +
                        " of a file that ends at " + hex(image.size()));
  }
  const auto range = GuestRange::make(GuestAddress(header.p_paddr), header.p_memsz);
  if (!range) {
    return image.refuse(name + " passes the end of the address space (" + hex(header.p_memsz) + " bytes at " +
                        hex(header.p_paddr) + ")");
  }
  if (range->base() < GuestAddress(layout::kHighMemoryStart)) {
    return image.refuse(name + " lies at " + range_text(*range) + ", but a kernel must lie above " +
                        hex(layout::kHighMemoryStart) + " (below it are the boot data)");
  }
  if (!memory.contains(*range)) {
    return image.refuse(name + " lies at " + range_text(*range) + ", which is not in the guest's memory of " +
                        std::to_string(memory.size() >> 20U) + " MiB");
  }
  return Segment{index, header.p_offset, header.p_filesz, *range};
}

Result<std::vector<Segment>> check_segments(const GuestMemory& memory, const ImageFile& image,
                                            const std::vector<Elf64_Phdr>& headers) {
  std::vector<Segment> segments;
  for (std::size_t i = 0; i < headers.size(); ++i) {
    if (headers[i].p_type != PT_LOAD || (headers[i].p_memsz == 0 && headers[i].p_filesz == 0)) {
      continue;
    }
    MAYFLY_TRY_ASSIGN(const Segment segment, check_segment(memory, image, i, headers[i]));
    for (const Segment& other : segments) {
      if (segment.range.overlaps(other.range)) {
        return image.refuse(segment_name(i) + " at " + range_text(segment.range) + " overlaps " +
                            segment_name(other.index) + " at " + range_text(other.range));
      }
    }
    segments.push_back(segment);
  }
  if (segments.empty()) {
    return image.refuse("has nothing to load (no PT_LOAD segment)");
  }
  return segments;
}

// The value of a PVH note in one PT_NOTE segment, if it has one. Layout: gABI, "Note Section"; padding is to
// 4 bytes, and to 8 in a segment aligned to 8, as the GNU tools write it.
Result<std::optional<std::uint64_t>> find_pvh_note(const ImageFile& image, std::size_t index,
                                                   const Elf64_Phdr& header) {
  const std::string name = segment_name(index);
  if (header.p_filesz > kMaxNoteBytes) {
    return image.refuse(name + " has " + hex(header.p_filesz) + " bytes of notes, more than the " +
                        hex(kMaxNoteBytes) + " allowed");
  }
  if (!image.has(header.p_offset, header.p_filesz)) {
    return image.refuse(name + " takes " + hex(header.p_filesz) + " bytes of notes at " +
                        hex(header.p_offset) + " of a file that ends at " + hex(image.size()));
  }
  if (header.p_align > 4 && header.p_align != 8) {
    return image.refuse(name + " has notes aligned to " + hex(header.p_align) + " instead of 4 or 8");
  }
  const std::uint64_t alignment = header.p_align == 8 ? 8 : 4;
  if (header.p_offset % alignment != 0) {
    return image.refuse(name + " has misaligned notes at " + hex(header.p_offset));
  }
  std::vector<std::byte> notes(header.p_filesz);
  MAYFLY_TRY(image.read(header.p_offset, notes));

  // At most 64 KiB and 32-bit sizes: nothing here can wrap. Every round takes at least a header's bytes.
  const auto padded = [alignment](std::uint64_t at) { return (at + alignment - 1) & ~(alignment - 1); };
  std::uint64_t at = 0;
  while (at + sizeof(Elf64_Nhdr) <= notes.size()) {
    Elf64_Nhdr note;
    std::memcpy(&note, notes.data() + at, sizeof(note));
    const std::uint64_t name_at = at + sizeof(note);
    const std::uint64_t desc_at = padded(name_at + note.n_namesz);
    if (desc_at > notes.size() || note.n_descsz > notes.size() - desc_at) {
      return image.refuse(name + " has a note at " + hex(header.p_offset + at) +
                          " that passes its end (name " + hex(note.n_namesz) + ", description " +
                          hex(note.n_descsz) + " bytes)");
    }
    if (note.n_type == XEN_ELFNOTE_PHYS32_ENTRY && note.n_namesz == kXenNoteName.size() &&
        std::memcmp(notes.data() + name_at, kXenNoteName.data(), kXenNoteName.size()) == 0) {
      if (note.n_descsz != sizeof(std::uint32_t) && note.n_descsz != sizeof(std::uint64_t)) {
        return image.refuse("has a PVH note with an entry of " + std::to_string(note.n_descsz) +
                            " bytes instead of 4 or 8");
      }
      std::uint64_t entry = 0;
      std::memcpy(&entry, notes.data() + desc_at, note.n_descsz);
      return entry;
    }
    at = padded(desc_at + note.n_descsz);
  }
  return std::nullopt;
}

Result<std::optional<std::uint64_t>> find_pvh_entry(const ImageFile& image,
                                                    const std::vector<Elf64_Phdr>& headers) {
  for (std::size_t i = 0; i < headers.size(); ++i) {
    if (headers[i].p_type == PT_NOTE) {
      MAYFLY_TRY_ASSIGN(const auto entry, find_pvh_note(image, i, headers[i]));
      if (entry) {
        return entry;
      }
    }
  }
  return std::nullopt;
}

Result<BootEntry> choose_entry(const ImageFile& image, const Elf64_Ehdr& header,
                               const std::vector<Elf64_Phdr>& headers, BootProtocolChoice choice) {
  if (choice != BootProtocolChoice::kLinux64) {
    MAYFLY_TRY_ASSIGN(const auto pvh, find_pvh_entry(image, headers));
    if (pvh) {
      if (*pvh > UINT32_MAX) {
        return image.refuse("has a PVH entry at " + hex(*pvh) + ", which is not a 32-bit address");
      }
      return BootEntry{BootProtocol::kPvh, GuestAddress(*pvh)};
    }
    if (choice == BootProtocolChoice::kPvh) {
      return fail(ErrorCode::kInvalidArgument,
                  image.name() + ": has no PVH note, so that it cannot be entered by PVH");
    }
  }
  return BootEntry{BootProtocol::kLinux64, GuestAddress(header.e_entry)};
}

}  // namespace

Result<LoadedKernel> load_elf(GuestMemory& memory, const ImageFile& image, BootProtocolChoice choice) {
  MAYFLY_TRY_ASSIGN(const Elf64_Ehdr header, read_header(image));
  MAYFLY_TRY_ASSIGN(const std::vector<Elf64_Phdr> headers, read_program_headers(image, header));
  MAYFLY_TRY_ASSIGN(const std::vector<Segment> segments, check_segments(memory, image, headers));
  MAYFLY_TRY_ASSIGN(const BootEntry entry, choose_entry(image, header, headers, choice));

  GuestAddress first = segments.front().range.base();
  GuestAddress last = segments.front().range.last();
  bool entry_is_loaded = false;
  for (const Segment& segment : segments) {
    first = std::min(first, segment.range.base());
    last = std::max(last, segment.range.last());
    const auto offset = entry.entry.checked_offset_from(segment.range.base());
    entry_is_loaded = entry_is_loaded || (offset && *offset < segment.file_size);
  }
  if (!entry_is_loaded) {
    return image.refuse("has its entry at " + hex(entry.entry.value()) + ", where it loads nothing");
  }
  if (entry.protocol == BootProtocol::kLinux64 && last >= GuestAddress(layout::kIdentityMapEnd)) {
    return image.refuse("reaches up to " + hex(last.value()) + ", but the 64-bit entry needs it below " +
                        hex(layout::kIdentityMapEnd));
  }
  const auto extent = GuestRange::make(first, last.value() - first.value() + 1);
  MAYFLY_CHECK(extent, "every segment lies in RAM, above the boot data");
  for (const Segment& segment : segments) {
    if (segment.file_size != 0) {
      MAYFLY_TRY(image.place(memory, segment.range.base(), segment.file_offset, segment.file_size));
    }
  }
  return LoadedKernel{
      KernelFormat::kElf, entry, *extent, layout::kCommandLineMax, GuestAddress(layout::kMmioGapEnd - 1), {}};
}

}  // namespace mayfly
