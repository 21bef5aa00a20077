// A guest that lies to every device: it writes random values to their registers and rings, between spells in
// which it drives them almost properly, so that the lies reach deep. What it does is decided by its command
// line:
//
//   seed=N rounds=N devices=N    all decimal; 0 rounds: until it is ended from outside
//
// Says PASS and powers off after its rounds: it asks nothing of the devices but that the monitor outlives it.
#include "c_guest.h"

enum {
  I8042_RESETS = 0xf0,  // pulses on output lines, of which one is the reset
  I8042_WRITE_OUTPUT = 0xd1,
};

enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8 };

// Where the rings and buffers lie: each queue has a page for descriptors and two for its rings, and all share
// the buffers. Everything in it may be overwritten at any time.
#define ARENA 0x2000000UL
#define ARENA_SIZE 0x400000UL
#define BUFFERS (ARENA + 0x200000UL)
#define BUFFERS_SIZE 0x200000UL
#define MOST_DEVICES 20
#define MOST_QUEUES 4
#define LARGEST_QUEUE 64

struct device {
  u16 available[MOST_QUEUES];
  u16 size[MOST_QUEUES];
};

static u64 random_state;
static u64 device_count;
static struct device devices[MOST_DEVICES];

static u64 any(void) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

static u64 below(u64 end) {
  return (any() >> 11) % end;
}

static int once_in(u64 times) {
  return below(times) == 0;
}

// A value that something may be made of, more often than chance would have it.
static u64 curious(void) {
  switch (below(8)) {
    case 0:
      return 0;
    case 1:
      return ~0UL;
    case 2:
      return 1UL << below(64);
    case 3:
      return (1UL << below(64)) - 1;
    case 4:
      return below(256);
    case 5:
      return ARENA + below(ARENA_SIZE);
    case 6:
      return FIRST_WINDOW + below(device_count * WINDOW);
    default:
      return any();
  }
}

// For where a device may write: never to what this guest lies in itself, which would only end it.
static u64 curious_place(void) {
  const u64 place = curious();
  return place >= ARENA ? place : once_in(2) ? place + ARENA : place | 1UL << 40;
}

static void write32(u64 device, u64 offset, u64 value) {
  *(volatile u32*)(FIRST_WINDOW + device * WINDOW + offset) = (u32)value;
}

static u32 read32(u64 device, u64 offset) {
  return *(volatile u32*)(FIRST_WINDOW + device * WINDOW + offset);
}

static void write64(u64 device, u64 offset, u64 value) {
  write32(device, offset, value);
  write32(device, offset + 4, value >> 32);
}

static u64 area_of(u64 device, u64 queue) {
  return ARENA + (device * MOST_QUEUES + queue) * 0x3000;
}

// An initialisation as 3.1.1 has it, but for a lie now and then.
static void initialise(u64 device) {
  write32(device, STATUS, 0);
  write32(device, STATUS, ACKNOWLEDGE);
  write32(device, STATUS, ACKNOWLEDGE | DRIVER);
  for (u32 half = 0; half < 2; half++) {
    write32(device, DEVICE_FEATURES_SELECT, half);
    u64 features = read32(device, DEVICE_FEATURES);
    if (!once_in(3)) features &= any();
    if (half == 1 && !once_in(32)) features |= 1;  // VIRTIO_F_VERSION_1
    if (once_in(64)) features = curious();
    write32(device, DRIVER_FEATURES_SELECT, half);
    write32(device, DRIVER_FEATURES, features);
  }
  write32(device, STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
  for (u64 queue = 0; queue < MOST_QUEUES; queue++) {
    write32(device, QUEUE_SELECT, queue);
    const u32 most = read32(device, QUEUE_SIZE_MAX);
    if (most == 0) continue;
    u64 size = 1UL << below(7);
    if (size > most) size = most;
    if (once_in(128)) size = curious() & 0xffff;
    devices[device].size[queue] = (u16)(size < LARGEST_QUEUE ? size : LARGEST_QUEUE);
    devices[device].available[queue] = 0;
    const u64 area = area_of(device, queue);
    for (volatile u64* at = (u64*)area; at < (u64*)(area + 0x3000); at++) *at = 0;
    write32(device, QUEUE_SIZE, size);
    write64(device, QUEUE_DESC, once_in(256) ? curious_place() : area);
    write64(device, QUEUE_DRIVER, once_in(256) ? curious_place() : area + 0x1000);
    write64(device, QUEUE_DEVICE, once_in(256) ? curious_place() : area + 0x2000);
    write32(device, QUEUE_READY, 1);
  }
  write32(device, STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
}

// A request's header or a packet's, whatever the device is (5.1.6, 5.2.6), and what may follow it.
static void fill(u64 address) {
  static const u32 types[] = {0, 1, 4, 8, 11, 13};
  volatile u32* words = (volatile u32*)address;
  words[0] = once_in(8) ? (u32)curious() : types[below(6)];
  words[1] = once_in(4) ? (u32)any() : 0;
  words[2] = (u32)(once_in(8) ? curious() : below(64));
  words[3] = once_in(8) ? (u32)curious() : 0;
  for (int index = 4; index < 16; index++) words[index] = (u32)curious();
}

static u64 some_length(void) {
  static const u16 usual[] = {1, 12, 16, 20, 32, 60, 512, 4096};
  return once_in(16) ? curious() : once_in(2) ? 1UL << below(17) : usual[below(8)];
}

static u64 put_buffer(volatile struct descriptor* entry, u64 length, int writes) {
  const u64 buffer = BUFFERS + (below(BUFFERS_SIZE - 0x20000) & ~63UL);
  fill(buffer);
  entry->address = once_in(96) ? curious_place() : buffer;
  entry->length = (u32)(once_in(96) ? curious() : length);
  entry->flags = writes ? kWrite : 0;
  return buffer;
}

// A chain of any shape from `head` on.
static void put_any_chain(volatile struct descriptor* table, u16 size, u16 head) {
  int writes = once_in(4);
  u16 index = head;
  for (u64 length = 1 + below(5); length != 0; length--) {
    writes |= once_in(3);
    put_buffer(&table[index], some_length(), writes);
    table[index].flags |=
        (u16)((length > 1 ? kNext : 0) | (once_in(48) ? kIndirect : 0) | (once_in(96) ? (u16)any() : 0));
    const u16 next = (u16)(once_in(48) ? any() : (index + 1U) % size);
    table[index].next = next;
    index = next % size;
  }
}

// One as a driver of a network (queues in pairs: receive, transmit) or of a disk (header, data, status) makes
// it.
static void put_proper_chain(u64 device, u64 queue, volatile struct descriptor* table, u16 size, u16 head) {
  const int is_network = read32(device, DEVICE_ID) == 1;
  const u64 parts = is_network ? 1 + below(2) : 2 + below(3);
  int writes = is_network && queue % 2 == 0;
  for (u64 part = 0; part < parts; part++) {
    volatile struct descriptor* entry = &table[(head + part) % size];
    if (is_network) {
      put_buffer(entry, part == 0 ? 12 + below(2000) : 1 + below(0x10000), writes);
    } else if (part == 0) {
      const volatile u32* header = (const volatile u32*)put_buffer(entry, 16, 0);
      writes = header[0] == 0 || header[0] == 8;
    } else if (part + 1 < parts) {
      put_buffer(entry, once_in(4) ? some_length() : 512 * (1 + below(32)), writes);
    } else {
      put_buffer(entry, 1, 1);
    }
    entry->flags |= part + 1 < parts ? kNext : 0;
    entry->next = (u16)((head + part + 1) % size);
  }
}

static void send_chains(u64 device, u64 queue) {
  // Most of what is sent to a device that waits for its reset is wasted.
  const u32 running = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
  if (read32(device, STATUS) != running && !once_in(4)) initialise(device);
  const u16 size = devices[device].size[queue];
  if (size == 0) return;
  const u64 area = area_of(device, queue);
  volatile struct descriptor* table = (volatile struct descriptor*)area;
  volatile u16* available = (volatile u16*)(area + 0x1000);
  u16 head = (u16)below(size);
  for (u64 chains = 1 + below(4); chains != 0; chains--) {
    if (once_in(4)) {
      put_any_chain(table, size, head);
    } else {
      put_proper_chain(device, queue, table, size, head);
    }
    available[2 + devices[device].available[queue] % size] = (u16)(once_in(128) ? any() : head);
    devices[device].available[queue] = (u16)(devices[device].available[queue] + (once_in(256) ? any() : 1));
    head = (u16)((head + 8U) % size);
  }
  __asm__ volatile("" : : : "memory");
  available[0] = (u16)(once_in(16) ? any() : 0);
  available[1] = devices[device].available[queue];
  if (once_in(16)) available[2 + size] = (u16)any();  // used_event
  write32(device, QUEUE_NOTIFY, once_in(32) ? curious() : queue);
}

static void write_anywhere(u64 device) {
  const u64 offset = once_in(4) ? below(WINDOW) : below(0x140);
  const u64 place = FIRST_WINDOW + device * WINDOW + offset;
  const u64 value = curious();
  switch (below(8)) {
    case 0:
      *(volatile u8*)place = (u8)value;
      return;
    case 1:
      *(volatile u16*)(place & ~1UL) = (u16)value;
      return;
    case 2:
      *(volatile u64*)(place & ~7UL) = value;
      return;
    default:
      if (offset >= QUEUE_DESC && offset < QUEUE_DEVICE + 8 && (u32)value < ARENA) return;
      *(volatile u32*)(place & ~3UL) = (u32)value;
      return;
  }
}

static void read_anywhere(u64 device) {
  const u64 place = FIRST_WINDOW + device * WINDOW + below(once_in(4) ? WINDOW : 0x140);
  switch (below(3)) {
    case 0:
      (void)*(volatile u8*)place;
      return;
    case 1:
      (void)*(volatile u16*)(place & ~1UL);
      return;
    default:
      (void)*(volatile u32*)(place & ~3UL);
      return;
  }
}

static void spoil_memory(void) {
  for (u64 count = 1 + below(16); count != 0; count--) {
    *(volatile u32*)((ARENA + below(0x40000)) & ~3UL) = (u32)curious();
  }
}

// The other devices. Not what would end the machine: that is a guest's right and tells nothing here.
static void poke_ports(void) {
  const u8 value = (u8)any();
  switch (below(4)) {
    case 0:
      out8((u16)(COM1 + 1 + below(7)), value);
      return;
    case 1:
      (void)in8((u16)(once_in(2) ? COM1 + below(8) : once_in(2) ? I8042_DATA : I8042_COMMAND));
      return;
    case 2:
      if (value < I8042_RESETS && value != I8042_WRITE_OUTPUT)
        out8(once_in(2) ? I8042_DATA : I8042_COMMAND, value);
      return;
    default:
      if ((value & 0x20) == 0) out8(SLEEP_CONTROL, value);  // without SLP_EN
      return;
  }
}

static u64 number_of(const char* line, const char* name, u64 otherwise) {
  for (; *line; line++) {
    const char *at = line, *wanted = name;
    while (*wanted && *at == *wanted) at++, wanted++;
    if (*wanted) continue;
    u64 value = 0;
    while (*at >= '0' && *at <= '9') value = value * 10 + (u64)(*at++ - '0');
    return value;
  }
  return otherwise;
}

void guest_main(const u8* zero_page) {
  // boot.rst: cmd_line_ptr.
  const char* line = (const char*)(u64)(*(const u32*)(zero_page + 0x228));
  random_state = number_of(line, "seed=", 1) * 0x9e3779b97f4a7c15UL + 1;
  u64 rounds = number_of(line, "rounds=", 0);
  const u64 ends = rounds;
  device_count = number_of(line, "devices=", 1);
  if (device_count > MOST_DEVICES) device_count = MOST_DEVICES;
  for (u64 device = 0; device < device_count; device++) initialise(device);
  while (ends == 0 || rounds-- != 0) {
    const u64 device = below(device_count);
    const u64 choice = below(100);
    if (choice < 60) {
      send_chains(device, below(MOST_QUEUES));
    } else if (choice < 66) {
      initialise(device);
    } else if (choice < 80) {
      write_anywhere(device);
    } else if (choice < 84) {
      write32(device, INTERRUPT_ACK, curious());
    } else if (choice < 90) {
      read_anywhere(device);
    } else if (choice < 94) {
      spoil_memory();
    } else if (choice < 97) {
      poke_ports();
    } else {
      write32(device, QUEUE_NOTIFY, curious());
    }
  }
  out8(COM1 + 3, 3);  // the line's settings as they should be
  out8(COM1 + 4, 3);
  print("PASS\n");
  power_off();
}
