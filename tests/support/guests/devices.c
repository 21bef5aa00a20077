/* Drives virtio devices over MMIO, as it is told by letters on the serial port; answers each with the letter,
 * or with '!' where the device did not do as it should. The first device is a disk, the second a network
 * interface.
 *
 *   b  resets the disk and sets it up        n  the same with the network interface
 *   r  reads 4 KiB      w  writes them       t  sends a frame
 *   f  flushes          d  discards          s  opens a TCP connection to the metadata service
 *   z  zeroes           q  powers off        m  asks for two pairs of queues
 *   x  resets the disk while it reads        k  resets the network interface
 *   e  gives the disk a queue that lies nowhere, which it refuses
 *   g  says that it waits, waits to be another machine by its VM generation id, which it says, and then, as
 * nobody types at a clone: writes blocks of that id to the disk, looks many times whether any other shows
 * through, and sends a frame where there is a network interface
 */
#include "c_guest.h"

enum {
  kEntries = 64,
  kBlock = 4096,
  kMost = 1 << 20,
  kMemoryEnd = 64 << 20,
};

#define DISK FIRST_WINDOW
#define NETWORK (FIRST_WINDOW + WINDOW)
/* Bits of the first 32: whatever a disk or an interface offers of them is taken. */
#define kFlushFeature (1u << 9)
#define DISK_FEATURES (kFlushFeature | 1u << 13 | 1u << 14)
#define NETWORK_FEATURES (1u << 0 | 1u << 1 | 1u << 7 | 1u << 11 | 1u << 17 | 1u << 22)

struct available {
  u16 flags;
  volatile u16 index;
  u16 ring[kEntries];
};
struct used {
  u16 flags;
  volatile u16 index;
  struct {
    u32 id, length;
  } ring[kEntries];
};
struct queue {
  _Alignas(16) struct descriptor descriptors[kEntries];
  _Alignas(16) struct available available;
  _Alignas(16) struct used used;
};

static struct queue disk;
static struct queue network[5]; /* two pairs and the control queue */
static struct {
  u32 type, reserved;
  u64 sector;
} header;
static struct {
  u64 sector;
  u32 count, flags;
} range;
static u8 status;
static u8 frame[12 + 1514];
static u8 control[4];
static u32 has_network;
static u8* const memory = (u8*)0x2000000;   /* of the disk's requests: kMost */
static u8* const received = (u8*)0x2200000; /* what the network brings, at any moment */

static u32 offered(u32 device, u32 word) {
  *reg(device, DEVICE_FEATURES_SELECT) = word;
  return *reg(device, DEVICE_FEATURES);
}

static void set_up_queue(u32 device, u32 index, struct queue* queue) {
  *reg(device, QUEUE_SELECT) = index;
  *reg(device, QUEUE_SIZE) = kEntries;
  *reg(device, QUEUE_DESC) = (u32)(u64)queue->descriptors;
  *reg(device, QUEUE_DESC + 4) = 0;
  *reg(device, QUEUE_DRIVER) = (u32)(u64)&queue->available;
  *reg(device, QUEUE_DRIVER + 4) = 0;
  *reg(device, QUEUE_DEVICE) = (u32)(u64)&queue->used;
  *reg(device, QUEUE_DEVICE + 4) = 0;
  *reg(device, QUEUE_READY) = 1;
}

static u32 set_up(u32 device, u32 wanted, struct queue* queues, u32 count) {
  *reg(device, STATUS) = 0;
  *reg(device, STATUS) = 1;
  *reg(device, STATUS) = 1 | 2;
  for (u32 index = 0; index < count; ++index) {
    if ((u64)queues < kMemoryEnd) {
      queues[index].available.index = queues[index].used.index = 0;
    }
  }
  const u32 features = offered(device, 0) & wanted;
  *reg(device, DRIVER_FEATURES_SELECT) = 0;
  *reg(device, DRIVER_FEATURES) = features;
  *reg(device, DRIVER_FEATURES_SELECT) = 1;
  *reg(device, DRIVER_FEATURES) = 1; /* VIRTIO_F_VERSION_1 */
  *reg(device, STATUS) = 1 | 2 | 8;
  for (u32 index = 0; index < count; ++index) {
    set_up_queue(device, index, &queues[index]);
  }
  *reg(device, STATUS) = 1 | 2 | 8 | 4;
  return (*reg(device, STATUS) & 0x40) == 0; /* DEVICE_NEEDS_RESET */
}

static void offer(struct queue* queue, u16 head) {
  queue->available.ring[queue->available.index % kEntries] = head;
  __asm__ volatile("" : : : "memory");
  queue->available.index++;
}

static void wait_used(struct queue* queue, u16 until) {
  while (queue->used.index != until) {
    __asm__ volatile("pause" : : : "memory");
  }
  /* What the device wrote is read after that, also where it was done at once. */
  __asm__ volatile("" : : : "memory");
}

static void describe(struct queue* queue, u16 index, const void* at, u32 length, u16 flags) {
  queue->descriptors[index] = (struct descriptor){(u64)at, length, flags, (u16)(index + 1)};
}

/* One request; its data lies in up to two pieces. */
static u32 request(u32 type, void* data, u32 length, u16 direction) {
  header.type = type;
  header.sector = 0;
  status = 0xff;
  u16 last = 0;
  describe(&disk, last++, &header, 16, kNext);
  if (length != 0) {
    describe(&disk, last++, data, length, kNext | direction);
  }
  describe(&disk, last, &status, 1, kWrite);
  const u16 until = (u16)(disk.used.index + 1);
  offer(&disk, 0);
  *reg(DISK, QUEUE_NOTIFY) = 0;
  wait_used(&disk, until);
  return status == 0;
}

/* Many large reads, and a reset as soon as one of them is done. */
static u32 reset_while_it_reads(void) {
  header.type = 0;
  header.sector = 0;
  u16 index = 0;
  for (u32 read = 0; read < kEntries / 4; ++read) {
    const u16 head = index;
    describe(&disk, index++, &header, 16, kNext);
    describe(&disk, index++, memory, kMost, kNext | kWrite);
    describe(&disk, index++, &status, 1, kWrite);
    offer(&disk, head);
  }
  *reg(DISK, QUEUE_NOTIFY) = 0;
  while (disk.used.index == 0) {
    __asm__ volatile("pause" : : : "memory");
  }
  return set_up(DISK, DISK_FEATURES, &disk, 1);
}

static u32 sum_of(const u8* bytes, u32 count, u32 sum) {
  for (u32 index = 0; index < count; ++index) {
    sum += index % 2 == 0 ? (u32)bytes[index] << 8 : bytes[index];
  }
  return sum;
}
static void put_checksum(u8* at, u32 sum) {
  sum = (sum & 0xffff) + (sum >> 16);
  sum = ~((sum & 0xffff) + (sum >> 16));
  at[0] = (u8)(sum >> 8);
  at[1] = (u8)sum;
}

/* A frame whose first bytes are the device's own header, all zero. Ethernet, IPv4, and TCP's SYN to port 80.
 */
static void make_frame(void) {
  static const u8 text[] = {6,    0,    0,    0,  0,   1,   6,    0,   0,  0, 0, 2, 8, 0, /* Ethernet */
                            0x45, 0,    0,    40, 0,   0,   0x40, 0,   64, 6, 0, 0,       /* IPv4 */
                            169,  254,  0,    2,  169, 254, 169,  254,                    /* from, to */
                            0x30, 0x39, 0,    80, 0,   0,   0,    1,   0,  0, 0, 0,       /* ports, numbers */
                            0x50, 2,    0x20, 0,  0,   0,   0,    0};                     /* SYN */
  for (u32 index = 0; index < sizeof(text); ++index) {
    frame[12 + index] = text[index];
  }
  u8* const ip = frame + 12 + 14;
  put_checksum(ip + 10, sum_of(ip, 20, 0));
  put_checksum(ip + 20 + 16, sum_of(ip + 20, 20, sum_of(ip + 12, 8, 6 + 20)));
}

static u32 send(u32 length) {
  struct queue* const queue = &network[1];
  describe(queue, 0, frame, 12 + length, 0);
  const u16 until = (u16)(queue->used.index + 1);
  offer(queue, 0);
  *reg(NETWORK, QUEUE_NOTIFY) = 1;
  wait_used(queue, until);
  return 1;
}

static u32 use_two_pairs(void) {
  struct queue* const queue = &network[4];
  control[0] = 4; /* VIRTIO_NET_CTRL_MQ, VQ_PAIRS_SET */
  control[1] = 0;
  control[2] = 2;
  control[3] = 0;
  status = 0xff;
  describe(queue, 0, control, 2, kNext);
  describe(queue, 1, control + 2, 2, kNext);
  describe(queue, 2, &status, 1, kWrite);
  const u16 until = (u16)(queue->used.index + 1);
  offer(queue, 0);
  *reg(NETWORK, QUEUE_NOTIFY) = 4;
  wait_used(queue, until);
  return status == 0;
}

static u32 set_up_network(void) {
  const u32 queues = (offered(NETWORK, 0) & 1u << 22) != 0 ? 5 : 2;
  if (!set_up(NETWORK, NETWORK_FEATURES, network, queues)) {
    return 0;
  }
  describe(&network[0], 0, received, 65536, kWrite);
  offer(&network[0], 0);
  *reg(NETWORK, QUEUE_NOTIFY) = 0;
  make_frame();
  has_network = 1;
  return 1;
}

static u32 be_another(void) {
  volatile u64* const generation = (volatile u64*)GENERATION;
  volatile u64* const block = (volatile u64*)memory;
  const u64 before = *generation;
  print("waiting\n");
  while (*generation == before) {
    __asm__ volatile("pause" : : : "memory");
  }
  const u64 own = *generation;
  print_hex(own);
  print("\n");
  for (u32 word = 0; word < kBlock / 8; ++word) {
    block[word] = own + word;
  }
  if (!request(1, memory, kBlock, 0) || !request(4, 0, 0, 0)) {
    return 0;
  }
  for (u32 round = 0; round < 16; ++round) {
    for (u32 word = 0; word < kBlock / 8; ++word) {
      block[word] = 0;
    }
    if (!request(0, memory, kBlock, kWrite)) {
      return 0;
    }
    for (u32 word = 0; word < kBlock / 8; ++word) {
      if (block[word] != own + word) {
        return 0;
      }
    }
  }
  return has_network ? send(64) : 1;
}

static u32 act(u8 letter) {
  switch (letter) {
    case 'b':
      return set_up(DISK, DISK_FEATURES, &disk, 1);
    case 'B':
      return set_up(DISK, DISK_FEATURES & ~kFlushFeature, &disk, 1);
    case 'r':
      return request(0, memory, kBlock, kWrite);
    case 'w':
      return request(1, memory, kBlock, 0);
    case 'f':
      return request(4, 0, 0, 0);
    case 'd':
    case 'z':
      range.sector = 0;
      range.count = 8;
      range.flags = 0;
      return request(letter == 'd' ? 11 : 13, &range, 16, 0);
    case 'x':
      return reset_while_it_reads();
    case 'e':
      return !set_up(DISK, DISK_FEATURES, (struct queue*)0xf0000000, 1);
    case 'n':
      return set_up_network();
    case 't':
      return send(64);
    case 'g':
      return be_another();
    case 's':
      return send(54);
    case 'm':
      return use_two_pairs();
    case 'k':
      *reg(NETWORK, STATUS) = 0;
      return 1;
    default:
      return 0;
  }
}

void guest_main(const u8* zero_page) {
  (void)zero_page;
  for (;;) {
    while (!has_input()) {
    }
    const u8 letter = in8(COM1);
    if (letter == 'q') {
      power_off();
    }
    out8(COM1, act(letter) ? letter : '!');
    out8(COM1, '\n');
  }
}
