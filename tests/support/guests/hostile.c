// A guest that lies to every device: it writes random values to their registers and rings, between spells in
// which it drives them almost properly, so that the lies reach deep. What it does is decided by its command
// line:
//
//   seed=N rounds=N devices=N    all decimal; 0 rounds: until it is ended from outside
//
// Says PASS and powers off after its rounds: it asks nothing of the devices but that the monitor outlives it.
#include <stdint.h>

enum {
  COM1 = 0x3f8,
  I8042_DATA = 0x60,
  I8042_COMMAND = 0x64,
  I8042_RESETS = 0xf0,  // pulses on output lines, of which one is the reset
  I8042_WRITE_OUTPUT = 0xd1,
  SLEEP_CONTROL = 0x600,
  SLEEP_S5 = 0x34,
};

// The machine's windows, one behind the other, and virtio-mmio's registers (virtio 1.2, 4.2.2).
#define FIRST_WINDOW 0xc0001000UL
#define WINDOW 0x1000UL
enum {
  DEVICE_ID = 0x008,
  DEVICE_FEATURES = 0x010,
  DEVICE_FEATURES_SELECT = 0x014,
  DRIVER_FEATURES = 0x020,
  DRIVER_FEATURES_SELECT = 0x024,
  QUEUE_SELECT = 0x030,
  QUEUE_SIZE_MAX = 0x034,
  QUEUE_SIZE = 0x038,
  QUEUE_READY = 0x044,
  QUEUE_NOTIFY = 0x050,
  INTERRUPT_ACK = 0x064,
  STATUS = 0x070,
  QUEUE_DESC = 0x080,
  QUEUE_DRIVER = 0x090,
  QUEUE_DEVICE = 0x0a0,
  CONFIGURATION = 0x100,
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

struct descriptor {
  uint64_t address;
  uint32_t length;
  uint16_t flags, next;
};
enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };

struct device {
  uint16_t available[MOST_QUEUES];
  uint16_t size[MOST_QUEUES];
};

static uint64_t random_state;
static uint64_t device_count;
static struct device devices[MOST_DEVICES];

static uint64_t any(void) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

static uint64_t below(uint64_t end) {
  return (any() >> 11) % end;
}

static int once_in(uint64_t times) {
  return below(times) == 0;
}

// A value that something may be made of, more often than chance would have it.
static uint64_t curious(void) {
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
static uint64_t curious_place(void) {
  const uint64_t place = curious();
  return place >= ARENA ? place : once_in(2) ? place + ARENA : place | 1UL << 40;
}

static void out8(uint16_t port, uint8_t value) {
  __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static uint8_t in8(uint16_t port) {
  uint8_t value;
  __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
  return value;
}

static void write32(uint64_t device, uint64_t offset, uint64_t value) {
  *(volatile uint32_t*)(FIRST_WINDOW + device * WINDOW + offset) = (uint32_t)value;
}

static uint32_t read32(uint64_t device, uint64_t offset) {
  return *(volatile uint32_t*)(FIRST_WINDOW + device * WINDOW + offset);
}

static void write64(uint64_t device, uint64_t offset, uint64_t value) {
  write32(device, offset, value);
  write32(device, offset + 4, value >> 32);
}

static uint64_t area_of(uint64_t device, uint64_t queue) {
  return ARENA + (device * MOST_QUEUES + queue) * 0x3000;
}

// An initialisation as 3.1.1 has it, but for a lie now and then.
static void initialise(uint64_t device) {
  write32(device, STATUS, 0);
  write32(device, STATUS, ACKNOWLEDGE);
  write32(device, STATUS, ACKNOWLEDGE | DRIVER);
  for (uint32_t half = 0; half < 2; half++) {
    write32(device, DEVICE_FEATURES_SELECT, half);
    uint64_t features = read32(device, DEVICE_FEATURES);
    if (!once_in(3)) features &= any();
    if (half == 1 && !once_in(32)) features |= 1;  // VIRTIO_F_VERSION_1
    if (once_in(64)) features = curious();
    write32(device, DRIVER_FEATURES_SELECT, half);
    write32(device, DRIVER_FEATURES, features);
  }
  write32(device, STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
  for (uint64_t queue = 0; queue < MOST_QUEUES; queue++) {
    write32(device, QUEUE_SELECT, queue);
    const uint32_t most = read32(device, QUEUE_SIZE_MAX);
    if (most == 0) continue;
    uint64_t size = 1UL << below(7);
    if (size > most) size = most;
    if (once_in(128)) size = curious() & 0xffff;
    devices[device].size[queue] = (uint16_t)(size < LARGEST_QUEUE ? size : LARGEST_QUEUE);
    devices[device].available[queue] = 0;
    const uint64_t area = area_of(device, queue);
    for (volatile uint64_t* at = (uint64_t*)area; at < (uint64_t*)(area + 0x3000); at++) *at = 0;
    write32(device, QUEUE_SIZE, size);
    write64(device, QUEUE_DESC, once_in(256) ? curious_place() : area);
    write64(device, QUEUE_DRIVER, once_in(256) ? curious_place() : area + 0x1000);
    write64(device, QUEUE_DEVICE, once_in(256) ? curious_place() : area + 0x2000);
    write32(device, QUEUE_READY, 1);
  }
  write32(device, STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
}

// A request's header or a packet's, whatever the device is (5.1.6, 5.2.6), and what may follow it.
static void fill(uint64_t address) {
  static const uint32_t types[] = {0, 1, 4, 8, 11, 13};
  volatile uint32_t* words = (volatile uint32_t*)address;
  words[0] = once_in(8) ? (uint32_t)curious() : types[below(6)];
  words[1] = once_in(4) ? (uint32_t)any() : 0;
  words[2] = (uint32_t)(once_in(8) ? curious() : below(64));
  words[3] = once_in(8) ? (uint32_t)curious() : 0;
  for (int index = 4; index < 16; index++) words[index] = (uint32_t)curious();
}

static uint64_t some_length(void) {
  static const uint16_t usual[] = {1, 12, 16, 20, 32, 60, 512, 4096};
  return once_in(16) ? curious() : once_in(2) ? 1UL << below(17) : usual[below(8)];
}

static uint64_t put_buffer(volatile struct descriptor* entry, uint64_t length, int writes) {
  const uint64_t buffer = BUFFERS + (below(BUFFERS_SIZE - 0x20000) & ~63UL);
  fill(buffer);
  entry->address = once_in(96) ? curious_place() : buffer;
  entry->length = (uint32_t)(once_in(96) ? curious() : length);
  entry->flags = writes ? WRITE : 0;
  return buffer;
}

// A chain of any shape from `head` on.
static void put_any_chain(volatile struct descriptor* table, uint16_t size, uint16_t head) {
  int writes = once_in(4);
  uint16_t index = head;
  for (uint64_t length = 1 + below(5); length != 0; length--) {
    writes |= once_in(3);
    put_buffer(&table[index], some_length(), writes);
    table[index].flags |= (uint16_t)((length > 1 ? NEXT : 0) | (once_in(48) ? INDIRECT : 0) |
                                     (once_in(96) ? (uint16_t)any() : 0));
    const uint16_t next = (uint16_t)(once_in(48) ? any() : (index + 1U) % size);
    table[index].next = next;
    index = next % size;
  }
}

// One as a driver of a network (queues in pairs: receive, transmit) or of a disk (header, data, status) makes
// it.
static void put_proper_chain(uint64_t device, uint64_t queue, volatile struct descriptor* table,
                             uint16_t size, uint16_t head) {
  const int is_network = read32(device, DEVICE_ID) == 1;
  const uint64_t parts = is_network ? 1 + below(2) : 2 + below(3);
  int writes = is_network && queue % 2 == 0;
  for (uint64_t part = 0; part < parts; part++) {
    volatile struct descriptor* entry = &table[(head + part) % size];
    if (is_network) {
      put_buffer(entry, part == 0 ? 12 + below(2000) : 1 + below(0x10000), writes);
    } else if (part == 0) {
      const volatile uint32_t* header = (const volatile uint32_t*)put_buffer(entry, 16, 0);
      writes = header[0] == 0 || header[0] == 8;
    } else if (part + 1 < parts) {
      put_buffer(entry, once_in(4) ? some_length() : 512 * (1 + below(32)), writes);
    } else {
      put_buffer(entry, 1, 1);
    }
    entry->flags |= part + 1 < parts ? NEXT : 0;
    entry->next = (uint16_t)((head + part + 1) % size);
  }
}

static void send_chains(uint64_t device, uint64_t queue) {
  // Most of what is sent to a device that waits for its reset is wasted.
  const uint32_t running = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
  if (read32(device, STATUS) != running && !once_in(4)) initialise(device);
  const uint16_t size = devices[device].size[queue];
  if (size == 0) return;
  const uint64_t area = area_of(device, queue);
  volatile struct descriptor* table = (volatile struct descriptor*)area;
  volatile uint16_t* available = (volatile uint16_t*)(area + 0x1000);
  uint16_t head = (uint16_t)below(size);
  for (uint64_t chains = 1 + below(4); chains != 0; chains--) {
    if (once_in(4)) {
      put_any_chain(table, size, head);
    } else {
      put_proper_chain(device, queue, table, size, head);
    }
    available[2 + devices[device].available[queue] % size] = (uint16_t)(once_in(128) ? any() : head);
    devices[device].available[queue] =
        (uint16_t)(devices[device].available[queue] + (once_in(256) ? any() : 1));
    head = (uint16_t)((head + 8U) % size);
  }
  __asm__ volatile("" : : : "memory");
  available[0] = (uint16_t)(once_in(16) ? any() : 0);
  available[1] = devices[device].available[queue];
  if (once_in(16)) available[2 + size] = (uint16_t)any();  // used_event
  write32(device, QUEUE_NOTIFY, once_in(32) ? curious() : queue);
}

static void write_anywhere(uint64_t device) {
  const uint64_t offset = once_in(4) ? below(WINDOW) : below(0x140);
  const uint64_t place = FIRST_WINDOW + device * WINDOW + offset;
  const uint64_t value = curious();
  switch (below(8)) {
    case 0:
      *(volatile uint8_t*)place = (uint8_t)value;
      return;
    case 1:
      *(volatile uint16_t*)(place & ~1UL) = (uint16_t)value;
      return;
    case 2:
      *(volatile uint64_t*)(place & ~7UL) = value;
      return;
    default:
      if (offset >= QUEUE_DESC && offset < QUEUE_DEVICE + 8 && (uint32_t)value < ARENA) return;
      *(volatile uint32_t*)(place & ~3UL) = (uint32_t)value;
      return;
  }
}

static void read_anywhere(uint64_t device) {
  const uint64_t place = FIRST_WINDOW + device * WINDOW + below(once_in(4) ? WINDOW : 0x140);
  switch (below(3)) {
    case 0:
      (void)*(volatile uint8_t*)place;
      return;
    case 1:
      (void)*(volatile uint16_t*)(place & ~1UL);
      return;
    default:
      (void)*(volatile uint32_t*)(place & ~3UL);
      return;
  }
}

static void spoil_memory(void) {
  for (uint64_t count = 1 + below(16); count != 0; count--) {
    *(volatile uint32_t*)((ARENA + below(0x40000)) & ~3UL) = (uint32_t)curious();
  }
}

// The other devices. Not what would end the machine: that is a guest's right and tells nothing here.
static void poke_ports(void) {
  const uint8_t value = (uint8_t)any();
  switch (below(4)) {
    case 0:
      out8((uint16_t)(COM1 + 1 + below(7)), value);
      return;
    case 1:
      (void)in8((uint16_t)(once_in(2) ? COM1 + below(8) : once_in(2) ? I8042_DATA : I8042_COMMAND));
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

static uint64_t number_of(const char* line, const char* name, uint64_t otherwise) {
  for (; *line; line++) {
    const char *at = line, *wanted = name;
    while (*wanted && *at == *wanted) at++, wanted++;
    if (*wanted) continue;
    uint64_t value = 0;
    while (*at >= '0' && *at <= '9') value = value * 10 + (uint64_t)(*at++ - '0');
    return value;
  }
  return otherwise;
}

__attribute__((noreturn, used)) void guest_main(const uint8_t* zero_page) {
  // boot.rst: cmd_line_ptr.
  const char* line = (const char*)(uint64_t)(*(const uint32_t*)(zero_page + 0x228));
  random_state = number_of(line, "seed=", 1) * 0x9e3779b97f4a7c15UL + 1;
  uint64_t rounds = number_of(line, "rounds=", 0);
  const uint64_t ends = rounds;
  device_count = number_of(line, "devices=", 1);
  if (device_count > MOST_DEVICES) device_count = MOST_DEVICES;
  for (uint64_t device = 0; device < device_count; device++) initialise(device);
  while (ends == 0 || rounds-- != 0) {
    const uint64_t device = below(device_count);
    const uint64_t choice = below(100);
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
  for (const char* text = "PASS\n"; *text; text++) out8(COM1, (uint8_t)*text);
  for (;;) out8(SLEEP_CONTROL, SLEEP_S5);
}
