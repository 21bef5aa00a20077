/*
 * The guest of bench/peers.py, as its first process: reads and writes its disk, talks to the host over its
 * network, and says what it did on the console. "<" is where a load begins and ">" where it has ended: one
 * character each, so that saying it costs next to nothing; the line that follows is "LOAD COUNT NANOSECONDS
 * BYTES".
 *
 * The kernel's command line gives MILLISECONDS, how long a load lasts. Those that are done are below, in
 * main().
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define DISK "/dev/vda"
#define CARD "eth0"
#define OWN_ADDRESS "10.0.0.2"
#define HOST_ADDRESS "10.0.0.1"
#define TCP_PORT 5001
#define UDP_PORT 5002
enum { SMALL = 4096, LARGE = 1 << 20, CHUNK = 128 << 10, PING = 64 };

static uint64_t duration;
static uint64_t disk_bytes;
static char* buffer;  // of LARGE bytes, aligned to a page

static uint64_t now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static void rest(unsigned milliseconds) {
  usleep(milliseconds * 1000);
}

static void end(void) {
  rest(100);
  reboot(RB_AUTOBOOT);
  _exit(1);
}

static void give_up(const char* what) {
  printf("FAILED: %s: %s\n", what, strerror(errno));
  end();
}

// What a load did until its time was over.
struct done {
  uint64_t count;
  uint64_t bytes;
};

static struct done random_reads(int disk, uint64_t until) {
  struct done done = {0};
  uint64_t state = 88172645463325252u;
  while (now() < until) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    off_t at = (off_t)(state % (disk_bytes / SMALL) * SMALL);
    if (pread(disk, buffer, SMALL, at) != SMALL) give_up("read");
    done.count++;
    done.bytes += SMALL;
  }
  return done;
}

static struct done sequential(int disk, uint64_t until, int writes) {
  struct done done = {0};
  uint64_t at = 0;
  while (now() < until) {
    ssize_t moved = writes ? pwrite(disk, buffer, LARGE, (off_t)at) : pread(disk, buffer, LARGE, (off_t)at);
    if (moved != LARGE) give_up(writes ? "write" : "read");
    at = (at + LARGE) % disk_bytes;
    done.count++;
    done.bytes += LARGE;
  }
  return done;
}

static struct done sequential_reads(int disk, uint64_t until) {
  return sequential(disk, until, 0);
}
static struct done sequential_writes(int disk, uint64_t until) {
  return sequential(disk, until, 1);
}

static struct sockaddr_in host(uint16_t port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
  inet_pton(AF_INET, HOST_ADDRESS, &address.sin_addr);
  return address;
}

// A connection on which the host does what `order` says: 'o' takes what comes, 'i' sends.
static int connection(char order) {
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in address = host(TCP_PORT);
  if (connect(fd, (struct sockaddr*)&address, sizeof address) != 0) give_up("connect");
  if (write(fd, &order, 1) != 1) give_up("order");
  return fd;
}

static struct done tcp_out(int fd, uint64_t until) {
  struct done done = {0};
  while (now() < until) {
    ssize_t sent = write(fd, buffer, CHUNK);
    if (sent <= 0) give_up("send");
    done.count++;
    done.bytes += (uint64_t)sent;
  }
  // The host answers once it has all of it.
  shutdown(fd, SHUT_WR);
  char answer;
  if (read(fd, &answer, 1) != 1) give_up("answer");
  return done;
}

static struct done tcp_in(int fd, uint64_t until) {
  struct done done = {0};
  while (now() < until) {
    ssize_t got = read(fd, buffer, CHUNK);
    if (got <= 0) give_up("receive");
    done.count++;
    done.bytes += (uint64_t)got;
  }
  return done;
}

// Each way and back again is two packets, one each way.
static struct done pings(int fd, uint64_t until) {
  struct done done = {0};
  struct timeval patience = {.tv_sec = 2};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  while (now() < until) {
    if (write(fd, buffer, PING) != PING || read(fd, buffer, PING) != PING) give_up("ping");
    done.count++;
    done.bytes += 2 * PING;
  }
  return done;
}

static void measure(const char* name, int fd, struct done (*load)(int, uint64_t)) {
  rest(200);
  fputc('<', stdout);
  rest(100);
  uint64_t begin = now();
  struct done done = load(fd, begin + duration);
  uint64_t took = now() - begin;
  fputc('>', stdout);
  rest(100);
  printf("%s %llu %llu %llu\n", name, (unsigned long long)done.count, (unsigned long long)took,
         (unsigned long long)done.bytes);
  close(fd);
}

static void set_address(int fd, struct ifreq* request, unsigned long call, const char* text) {
  struct sockaddr_in address = {.sin_family = AF_INET};
  inet_pton(AF_INET, text, &address.sin_addr);
  memcpy(&request->ifr_addr, &address, sizeof address);
  if (ioctl(fd, call, request) != 0) give_up(CARD);
}

static void bring_up(void) {
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  struct ifreq request = {.ifr_name = CARD};
  set_address(fd, &request, SIOCSIFADDR, OWN_ADDRESS);
  set_address(fd, &request, SIOCSIFNETMASK, "255.255.255.0");
  request.ifr_flags = IFF_UP | IFF_RUNNING;
  if (ioctl(fd, SIOCSIFFLAGS, &request) != 0) give_up(CARD);
  close(fd);
}

static int disk(int flags) {
  int fd = open(DISK, flags | O_DIRECT);
  if (fd < 0 || ioctl(fd, BLKGETSIZE64, &disk_bytes) != 0) give_up(DISK);
  return fd;
}

int main(void) {
  setvbuf(stdout, NULL, _IONBF, 0);
  mount("dev", "/dev", "devtmpfs", 0, NULL);
  const char* milliseconds = getenv("MILLISECONDS");
  duration = (milliseconds ? strtoull(milliseconds, NULL, 10) : 2000) * 1000000;
  buffer = mmap(NULL, LARGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (buffer == MAP_FAILED) give_up("memory");
  memset(buffer, 'x', LARGE);
  bring_up();

  measure("read4k", disk(O_RDONLY), random_reads);
  measure("read1m", disk(O_RDONLY), sequential_reads);
  measure("write1m", disk(O_RDWR), sequential_writes);
  measure("tcp_out", connection('o'), tcp_out);
  measure("tcp_in", connection('i'), tcp_in);
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  struct sockaddr_in address = host(UDP_PORT);
  if (connect(fd, (struct sockaddr*)&address, sizeof address) != 0) give_up("connect");
  measure("ping", fd, pings);
  puts("DONE");
  end();
}
