#!/usr/bin/python3
"""Takes x86 Linux kernel images apart: the ELF inside a bzImage, and an ELF without its PVH entry.

The layout of a bzImage is the kernel's Documentation/arch/x86/boot.rst; offsets below are its.
"""

import argparse
import gzip
import lzma
import struct
import sys
from pathlib import Path

from recipe import RecipeError, need_tools, run

SETUP_SECTS = 0x1F1
HEADER_MAGIC = 0x202
PAYLOAD_OFFSET = 0x248  # since protocol 2.08; the length follows it
PT_NOTE = 4
XEN_ELFNOTE_PHYS32_ENTRY = 18


def extract_elf(image):
    """The vmlinux ELF that is compressed inside the bzImage `image` (bytes to bytes)."""
    if len(image) < 0x268 or image[HEADER_MAGIC:HEADER_MAGIC + 4] != b"HdrS":
        raise RecipeError("not a bzImage: the setup header's magic is missing")
    offset, length = struct.unpack_from("<II", image, PAYLOAD_OFFSET)
    start = ((image[SETUP_SECTS] or 4) + 1) * 512 + offset
    # The kernel build appends the unpacked size (4 bytes) where the format has no such field; it is no part of
    # the stream, and decoders that read to the end of their input stumble over it.
    payload = image[start:start + length]
    return trim_elf(decompress(payload))


def decompress(payload):
    if payload[:4] == b"\x7fELF":
        return payload
    if payload[:2] == b"\x1f\x8b":
        return gzip.decompress(payload)
    if payload[:6] == b"\xfd7zXZ\x00":
        return lzma.LZMADecompressor().decompress(payload)
    if payload[:4] == b"\x02\x21\x4c\x18":
        need_tools("lz4")
        return run(["lz4", "-dc"], input=payload[:-4])
    if payload[:4] == b"\x28\xb5\x2f\xfd":
        need_tools("zstd")
        return run(["zstd", "-dc"], input=payload[:-4])
    raise RecipeError(f"the kernel's payload has an unknown compression (magic {payload[:6].hex()})")


def headers(elf):
    """(program headers as (index, type, offset, size), section table end) of a 64-bit little-endian ELF."""
    if elf[:6] != b"\x7fELF\x02\x01":
        raise RecipeError("not a 64-bit little-endian ELF")
    phoff, shoff = struct.unpack_from("<QQ", elf, 32)
    phentsize, phnum, shentsize, shnum = struct.unpack_from("<HHHH", elf, 54)
    programs = []
    for index in range(phnum):
        kind, = struct.unpack_from("<I", elf, phoff + index * phentsize)
        offset, = struct.unpack_from("<Q", elf, phoff + index * phentsize + 8)
        size, = struct.unpack_from("<Q", elf, phoff + index * phentsize + 32)
        programs.append((kind, offset, size))
    return programs, shoff + shentsize * shnum


def trim_elf(elf):
    """Cuts off what follows the ELF proper: the relocation list of a kernel that can be moved."""
    programs, table_end = headers(elf)
    return elf[:max([table_end] + [offset + size for _, offset, size in programs])]


def drop_pvh_note(elf):
    """The same kernel with its PVH entry note renamed to a type that nobody reads: only the ELF entry is left."""
    changed = bytearray(elf)
    dropped = 0
    for kind, offset, size in headers(elf)[0]:
        position, end = offset, offset + size
        while kind == PT_NOTE and position + 12 <= end:
            name_size, value_size, note = struct.unpack_from("<III", elf, position)
            if note == XEN_ELFNOTE_PHYS32_ENTRY and elf[position + 12:position + 16] == b"Xen\0":
                struct.pack_into("<I", changed, position + 8, 0x7FFFFFFF)
                dropped += 1
            position += 12 + (name_size + 3 & ~3) + (value_size + 3 & ~3)
    if dropped != 1:
        raise RecipeError(f"expected one PVH note, found {dropped}")
    return bytes(changed)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["extract-elf", "drop-pvh-note"])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    change = {"extract-elf": extract_elf, "drop-pvh-note": drop_pvh_note}[options.what]
    try:
        options.target.write_bytes(change(options.source.read_bytes()))
    except (RecipeError, OSError, struct.error) as problem:
        print(f"kernel_image: error: {options.source}: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
