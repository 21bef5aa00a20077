/*
 * The host's side of bench/peers.py: runs monitors in turns, serves their guest's network load, and takes the
 * CPU time of each monitor's process while its guest is at work.
 *
 *   peers_host ROUNDS DISK MIB SIDES
 *
 * Makes the file DISK and the tap "tap0", which the monitors are to use. SIDES is a file of one word a line:
 * for each monitor "--", a name, and its command's words. Says for every load of every guest load SIDE ROUND
 * LOAD COUNT NANOSECONDS BYTES CPU_NANOSECONDS [KEY=VALUE...] CPU: user and system time of all threads, ended
 * ones too, less what vCPUs spent in the guest, which the kernel counts by its ticks. Each KEY is one of
 * KVM's own counters, where debugfs has them; "switches" are the context switches of the monitor's threads,
 * "user_us" is what of the CPU time was not the kernel's.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "monitor_process.h"

#define TAP "tap0"
#define ADDRESS "10.0.0.1"
#define TCP_PORT 5001
#define UDP_PORT 5002
enum { SILENCE_LIMIT_MS = 60000, CHUNK = 256 << 10 };

static const char* const COUNTERS[] = {"exits",          "mmio_exits", "io_exits",      "halt_exits",
                                       "irq_injections", "irq_exits",  "insn_emulation"};
enum { COUNTER_COUNT = sizeof COUNTERS / sizeof *COUNTERS };

// --- the network's other end
// -------------------------------------------------------------------------------------

static struct sockaddr_in here(uint16_t port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
  inet_pton(AF_INET, ADDRESS, &address.sin_addr);
  return address;
}

static int server(int type, uint16_t port) {
  int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0), one = 1;
  struct sockaddr_in address = here(port);
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(fd, (struct sockaddr*)&address, sizeof address) != 0) die("bind");
  if (type == SOCK_STREAM && listen(fd, 8) != 0) die("listen");
  return fd;
}

static void become_child(void) {
  signal(SIGPIPE, SIG_IGN);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
}

static void serve_tcp(void) {
  int listening = server(SOCK_STREAM, TCP_PORT);
  if (fork() != 0) {
    close(listening);
    return;
  }
  become_child();
  signal(SIGCHLD, SIG_IGN);
  static char data[CHUNK];
  for (;;) {
    int fd = accept(listening, NULL, NULL);
    if (fd < 0) continue;
    if (fork() == 0) {
      become_child();
      char order = 0;
      if (read(fd, &order, 1) == 1 && order == 'o') {
        while (read(fd, data, sizeof data) > 0) {
        }
        (void)!write(fd, "", 1);
      } else {
        while (write(fd, data, sizeof data) > 0) {
        }
      }
      _exit(0);
    }
    close(fd);
  }
}

static void serve_udp(void) {
  int fd = server(SOCK_DGRAM, UDP_PORT);
  if (fork() != 0) {
    close(fd);
    return;
  }
  become_child();
  char data[2048];
  for (;;) {
    struct sockaddr_in from;
    socklen_t length = sizeof from;
    ssize_t got = recvfrom(fd, data, sizeof data, 0, (struct sockaddr*)&from, &length);
    if (got > 0) sendto(fd, data, (size_t)got, 0, (struct sockaddr*)&from, length);
  }
}

static void make_tap(void) {
  int tap = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
  struct ifreq request = {.ifr_name = TAP, .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
  if (tap < 0 || ioctl(tap, TUNSETIFF, &request) != 0 || ioctl(tap, TUNSETPERSIST, 1) != 0) die("tap");
  close(tap);
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  struct ifreq set = {.ifr_name = TAP};
  struct sockaddr_in address = here(0);
  memcpy(&set.ifr_addr, &address, sizeof address);
  if (ioctl(fd, SIOCSIFADDR, &set) != 0) die("tap's address");
  inet_pton(AF_INET, "255.255.255.0", &address.sin_addr);
  memcpy(&set.ifr_addr, &address, sizeof address);
  if (ioctl(fd, SIOCSIFNETMASK, &set) != 0) die("tap's netmask");
  set.ifr_flags = IFF_UP | IFF_RUNNING;
  if (ioctl(fd, SIOCSIFFLAGS, &set) != 0) die("tap up");
  close(fd);
}

// --- the monitors
// ------------------------------------------------------------------------------------------------

static const char* disk;
static char debug[64];

struct sample {
  struct usage usage;
  uint64_t switches;
  uint64_t counters[COUNTER_COUNT];
};

// Of all threads that there are.
static uint64_t count_switches(pid_t pid) {
  char path[128], text[4096];
  uint64_t total = 0;
  snprintf(path, sizeof path, "/proc/%d/task", pid);
  DIR* threads = opendir(path);
  struct dirent* thread;
  while (threads && (thread = readdir(threads))) {
    snprintf(path, sizeof path, "/proc/%d/task/%.20s/status", pid, thread->d_name);
    if (thread->d_name[0] == '.' || read_text(path, text, sizeof text) != 0) continue;
    for (const char* at = text; (at = strstr(at, "voluntary_ctxt_switches:")); at++)
      total += strtoull(at + 24, NULL, 10);
  }
  if (threads) closedir(threads);
  return total;
}

static struct sample take_sample(pid_t pid) {
  struct sample sample = {.usage = usage_of(pid)};
  char path[128], text[64];
  sample.switches = count_switches(pid);
  for (int i = 0; i < COUNTER_COUNT; i++) {
    snprintf(path, sizeof path, "%s/kvm/%s", debug, COUNTERS[i]);
    if (read_text(path, text, sizeof text) == 0) sample.counters[i] = strtoull(text, NULL, 10);
  }
  return sample;
}

static void report(const char* side, int round, const char* line, const struct sample* before,
                   const struct sample* after) {
  printf("load %s %d %s %llu", side, round, line,
         (unsigned long long)(after->usage.cpu_ns - before->usage.cpu_ns));
  for (int i = 0; i < COUNTER_COUNT; i++) {
    printf(" %s=%llu", COUNTERS[i], (unsigned long long)(after->counters[i] - before->counters[i]));
  }
  printf(" switches=%llu user_us=%lld\n", (unsigned long long)(after->switches - before->switches),
         (long long)(after->usage.user_ns - before->usage.user_ns) / 1000);
  fflush(stdout);
}

static void run(const char* side, int round, char** command) {
  int console;
  pid_t pid = start_monitor(command, NULL, &console);
  char line[512];
  size_t length = 0;
  struct sample before = {0}, after = {0};
  int measured = 0, is_done = 0;
  said[0] = 0;
  while (!is_done) {
    char byte;
    if (!next_byte(console, &byte, SILENCE_LIMIT_MS)) break;
    if (byte == '<') {
      before = take_sample(pid);
      length = 0;
    } else if (byte == '>') {
      after = take_sample(pid);
      measured = 1;
      length = 0;
    } else if (byte == '\n') {
      line[length] = 0;
      if (measured) report(side, round, line, &before, &after);
      is_done = strcmp(line, "DONE") == 0;
      if (strlen(said) + length + 2 < sizeof said) strcat(strcat(said, line), "\n");
      measured = 0;
      length = 0;
    } else if (byte != '\r' && length + 1 < sizeof line) {
      line[length++] = byte;
    }
  }
  close(console);
  end_monitor(pid);
  if (!is_done) {
    printf("FAILED: %s, round %d, said:\n%s\n", side, round, said);
    exit(1);
  }
}

static void make_disk(unsigned long mib) {
  // Its blocks are all there: none of the monitors meets a hole.
  int fd = open(disk, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  static char data[1 << 20];
  memset(data, 'd', sizeof data);
  if (fd < 0) die(disk);
  for (unsigned long i = 0; i < mib; i++) {
    if (write(fd, data, sizeof data) != sizeof data) die(disk);
  }
  close(fd);
}

static void remove_disk(void) {
  unlink(disk);
}

// The file's lines as words, with a NULL behind the last.
static char** read_words(const char* path) {
  enum { MOST = 256, LONGEST = 4096 };
  static char* words[MOST];
  char line[LONGEST];
  size_t count = 0;
  FILE* file = fopen(path, "re");
  if (!file) die(path);
  while (count + 1 < MOST && fgets(line, sizeof line, file)) {
    line[strcspn(line, "\n")] = 0;
    words[count++] = strdup(line);
  }
  fclose(file);
  return words;
}

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  setvbuf(stdout, NULL, _IOLBF, 0);
  if (unshare(CLONE_NEWNET | CLONE_NEWNS) != 0) die("a network namespace (run this as root)");
  mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL);
  snprintf(debug, sizeof debug, "/dev/shm/mayfly-peers.debug.%d", getpid());
  mkdir(debug, 0700);
  mount("debugfs", debug, "debugfs", 0, NULL);
  make_tap();
  serve_tcp();
  serve_udp();
  int rounds = atoi(argv[1]);
  disk = argv[2];
  atexit(remove_disk);
  make_disk(strtoul(argv[3], NULL, 10));

  char** words = read_words(argv[4]);
  for (int round = 0; round < rounds; round++) {
    for (char** side = words; *side;) {
      // side[0] is "--", side[1] the name.
      char** end = side + 2;
      while (*end && strcmp(*end, "--") != 0) end++;
      char* next = *end;
      *end = NULL;
      run(side[1], round, side + 2);
      *end = next;
      side = end;
    }
  }
  umount(debug);
  rmdir(debug);
  return 0;
}
