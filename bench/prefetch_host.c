/*
 * The host's side of bench/prefetch.py: starts a guest, saves it, and has it go on again and again, with its
 * working set read ahead and without, each time with nothing of its files in the page cache.
 *
 *   prefetch_host ROUNDS PLACE MAYFLY KERNEL INITRD CMDLINE MIB
 *
 * PLACE is where the files of the snapshot lie: a folder, or a disk with an ext4 file system, which is
 * mounted. Says for every load
 *
 *   load WAY LETTER ROUND CALL_NS ALL_NS GUEST_NS MINOR MAJOR CPU_NS READS
 *
 * WAY is record, plain, prefetch or warm, which is plain with all of the file in the page cache. ALL_NS is
 * the time from the begin of the load's call to the guest's answer, GUEST_NS what it took by the guest's
 * clock; MINOR and MAJOR page faults and CPU_NS of the monitor, without the time in the guest, and READS,
 * what all disks of this machine were asked for, are those of ALL_NS.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { SILENCE_LIMIT_MS = 90000, TEXT = 4096 };

static char folder[256];
static char said[TEXT];  // the last that a guest or a monitor said

struct monitor {
  pid_t pid;
  int input, output;
  char socket[300];
};

static void die(const char* what) {
  printf("FAILED: %s: %s\nit was said last:\n%s\n", what, strerror(errno), said);
  exit(1);
}

static uint64_t now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static int read_text(const char* path, char* text, size_t size) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t got = fd < 0 ? -1 : read(fd, text, size - 1);
  close(fd);
  text[got < 0 ? 0 : got] = 0;
  return got < 0 ? -1 : 0;
}

static const char* file(const char* name) {
  static char paths[4][TEXT];
  static int turn;
  char* path = paths[turn++ % 4];
  snprintf(path, TEXT, "%s/%s", folder, name);
  return path;
}

// --- the monitor
// -------------------------------------------------------------------------------------------------

static struct monitor start(char* program) {
  struct monitor vm;
  int in[2], out[2];
  if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0) die("pipe");
  strcpy(vm.socket, file("api"));
  unlink(vm.socket);
  fflush(stdout);
  vm.pid = fork();
  if (vm.pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(in[0], 0);
    dup2(out[1], 1);
    dup2(out[1], 2);
    execl(program, program, "--api-sock", vm.socket, (char*)NULL);
    _exit(127);
  }
  close(in[0]);
  close(out[1]);
  vm.input = in[1];
  vm.output = out[0];
  return vm;
}

static void end(struct monitor* vm) {
  kill(vm->pid, SIGKILL);
  waitpid(vm->pid, NULL, 0);
  close(vm->input);
  close(vm->output);
}

// One call of the control API, which has to be answered with success. Waits until there is one.
static void ask(const struct monitor* vm, const char* method, const char* path, const char* format, ...) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  char body[TEXT], text[TEXT];
  va_list values;
  va_start(values, format);
  int length = vsnprintf(body, sizeof body, format, values);
  va_end(values);
  strcpy(address.sun_path, vm->socket);
  int api = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  for (int tries = 0; connect(api, (struct sockaddr*)&address, sizeof address) != 0; tries++) {
    if (tries == SILENCE_LIMIT_MS / 5) die("the control API");
    usleep(5000);
  }
  dprintf(api, "%s %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s",
          method, path, length, body);
  size_t have = 0;
  // Until the head's end: there is no body behind 204.
  for (ssize_t got; have + 1 < sizeof text && !memmem(text, have, "\r\n\r\n", 4); have += (size_t)got) {
    got = read(api, text + have, sizeof text - 1 - have);
    if (got <= 0) break;
  }
  text[have] = 0;
  if (strncmp(text, "HTTP/1.1 20", 11) != 0) {
    snprintf(said, sizeof said, "%s", text);
    die(path);
  }
  close(api);
}

// Waits for a line that begins with `begin` and answers it; *first is when its first byte came.
static const char* await(struct monitor* vm, const char* begin, uint64_t* first) {
  static char line[TEXT];
  size_t length = 0, kept = 0;
  for (;;) {
    struct pollfd wait = {.fd = vm->output, .events = POLLIN};
    char byte;
    if (poll(&wait, 1, SILENCE_LIMIT_MS) <= 0 || read(vm->output, &byte, 1) != 1) die(begin);
    if (length == 0) *first = now();
    if (kept + 1 < sizeof said) said[kept++] = byte, said[kept] = 0;
    if (byte == '\n') {
      line[length] = 0;
      length = 0;
      if (strncmp(line, begin, strlen(begin)) == 0) return line;
    } else if (byte != '\r' && length + 1 < sizeof line) {
      line[length++] = byte;
    }
  }
}

// --- what is measured
// --------------------------------------------------------------------------------------------

struct sample {
  uint64_t minor, major, cpu_ns, reads;
};

static struct sample take_sample(pid_t pid) {
  struct sample sample = {0};
  char path[64], text[TEXT * 4];
  snprintf(path, sizeof path, "/proc/%d/stat", pid);
  if (read_text(path, text, sizeof text) != 0) die(path);
  // proc(5): fields 10 and 12 are minor and major faults, 14 and 15 utime and stime, 43 is guest_time, which
  // utime contains. Field 2 may hold blanks.
  const uint64_t tick_ns = 1000000000u / (uint64_t)sysconf(_SC_CLK_TCK);
  char* at = strrchr(text, ')');
  for (int field = 2; at && field <= 43; field++) {
    uint64_t value = strtoull(at + 1, NULL, 10);
    if (field == 10) sample.minor = value;
    if (field == 12) sample.major = value;
    if (field == 14 || field == 15) sample.cpu_ns += value * tick_ns;
    if (field == 43) sample.cpu_ns -= value * tick_ns;
    at = strchr(at + 1, ' ');
  }
  if (read_text("/proc/diskstats", text, sizeof text) != 0) die("/proc/diskstats");
  for (char* line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
    unsigned long long reads = 0;
    sscanf(line, "%*u %*u %*s %llu", &reads);
    sample.reads += reads;
  }
  return sample;
}

// Nothing of the file is in the page cache.
static void chill(const char* path) {
  struct stat about;
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;  // it is yet to be written
  if (fstat(fd, &about) != 0 || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) != 0) die(path);
  const size_t pages = ((size_t)about.st_size + 4095) / 4096;
  unsigned char* there = calloc(pages, 1);
  void* all = mmap(NULL, (size_t)about.st_size, PROT_READ, MAP_SHARED, fd, 0);
  if (!there || all == MAP_FAILED || mincore(all, (size_t)about.st_size, there) != 0) die(path);
  for (size_t page = 0; page < pages; page++) {
    if (there[page] & 1) {
      errno = EBUSY;
      die("the page cache cannot be emptied");
    }
  }
  munmap(all, (size_t)about.st_size);
  free(there);
  close(fd);
}

static void chill_all(int is_ours) {
  sync();
  // Of a host that is not made for this alone, others need theirs.
  int fd = is_ours ? open("/proc/sys/vm/drop_caches", O_WRONLY | O_CLOEXEC) : -1;
  if (fd >= 0) {
    if (write(fd, "3", 1) != 1) die("drop_caches");
    close(fd);
  }
  static const char* const names[] = {"state", "memory", "set-s", "set-o"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) chill(file(names[i]));
}

// All of the file is in the page cache.
static void warm(const char* path) {
  static char data[1 << 20];
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t got;
  while ((got = read(fd, data, sizeof data)) > 0) {
  }
  if (got < 0) die(path);
  close(fd);
}

static void run(char* program, const char* way, char letter, int round, int is_ours) {
  char set[TEXT], more[TEXT] = "", command[2] = {letter, '\n'};
  snprintf(set, sizeof set, "%s/set-%c", folder, letter);
  const int records = strcmp(way, "record") == 0;
  if (records) snprintf(more, sizeof more, ", \"record_working_set\": true");
  const int is_warm = strcmp(way, "warm") == 0;
  if (strcmp(way, "prefetch") == 0) snprintf(more, sizeof more, ", \"working_set_path\": \"%.250s\"", set);
  struct monitor vm = start(program);
  ask(&vm, "PUT", "/logger", "{\"level\": \"Error\"}");
  chill_all(is_ours);
  if (is_warm) warm(file("memory"));
  const struct sample before = take_sample(vm.pid);
  const uint64_t begin = now();
  ask(&vm, "PUT", "/snapshot/load",
      "{\"snapshot_path\": \"%s\", \"mem_backend\": {\"backend_type\": \"File\", \"backend_path\": \"%s\"}, "
      "\"resume_vm\": true%s}",
      file("state"), file("memory"), more);
  const uint64_t loaded = now();
  if (write(vm.input, command, sizeof command) != sizeof command) die("the guest's console");
  uint64_t answered;
  unsigned long long pages, took, wrong;
  if (sscanf(await(&vm, "touched", &answered), "touched %*c %llu %llu %llu", &pages, &took, &wrong) != 3 ||
      wrong != 0) {
    die("what the guest found is not what it wrote");
  }
  const struct sample after = take_sample(vm.pid);
  printf("load %s %c %d %llu %llu %llu %llu %llu %llu %llu\n", way, letter, round,
         (unsigned long long)(loaded - begin), (unsigned long long)(answered - begin), took,
         (unsigned long long)(after.minor - before.minor), (unsigned long long)(after.major - before.major),
         (unsigned long long)(after.cpu_ns - before.cpu_ns),
         (unsigned long long)(after.reads - before.reads));
  if (records) {
    ask(&vm, "PUT", "/snapshot/working-set", "{\"working_set_path\": \"%s\"}", set);
    struct stat about;
    if (stat(set, &about) == 0) printf("set %c %lld bytes\n", letter, (long long)about.st_size);
  }
  end(&vm);
}

static void save(char** words) {
  struct monitor vm = start(words[0]);
  uint64_t first;
  ask(&vm, "PUT", "/machine-config", "{\"vcpu_count\": 1, \"mem_size_mib\": %s}", words[4]);
  ask(&vm, "PUT", "/boot-source",
      "{\"kernel_image_path\": \"%s\", \"initrd_path\": \"%s\", \"boot_args\": \"%s\"}", words[1], words[2],
      words[3]);
  ask(&vm, "PUT", "/actions", "{\"action_type\": \"InstanceStart\"}");
  await(&vm, "READY", &first);
  ask(&vm, "PATCH", "/vm", "{\"state\": \"Paused\"}");
  ask(&vm, "PUT", "/snapshot/create", "{\"snapshot_path\": \"%s\", \"mem_file_path\": \"%s\"}", file("state"),
      file("memory"));
  end(&vm);
}

int main(int argc, char** argv) {
  if (argc != 8) return 2;
  setvbuf(stdout, NULL, _IOLBF, 0);
  signal(SIGPIPE, SIG_IGN);
  struct stat place;
  if (stat(argv[2], &place) != 0) die(argv[2]);
  const int has_disk = S_ISBLK(place.st_mode);
  snprintf(folder, sizeof folder, "%s/mayfly-prefetch.%d", has_disk ? "/tmp" : argv[2], getpid());
  if (mkdir(folder, 0700) != 0) die(folder);
  if (has_disk && (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
                   mount(argv[2], folder, "ext4", 0, NULL) != 0)) {
    die("mount the disk");
  }
  save(argv + 3);
  static const char* const ways[] = {"plain", "prefetch", "warm"};
  enum { WAYS = sizeof ways / sizeof *ways };
  for (const char* letter = "so"; *letter; letter++) run(argv[3], "record", *letter, 0, has_disk);
  for (int round = 0; round < atoi(argv[1]); round++) {
    for (const char* letter = "so"; *letter; letter++) {
      // Each goes first in turn.
      for (int way = 0; way < WAYS; way++) run(argv[3], ways[(round + way) % WAYS], *letter, round, has_disk);
    }
  }
  static const char* const names[] = {"state", "memory", "set-s", "set-o", "api"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) unlink(file(names[i]));
  if (has_disk) umount(folder);
  rmdir(folder);
  return 0;
}
