/*
 * The host's side of bench/prefetch.py: starts a guest, saves it, and has it go on again and again, with its
 * working set read ahead and without, each time with nothing of its files in the page cache. All ways once,
 * of which ROUND says which comes first, for each letter of PATTERNS.
 *
 *   prefetch_host ROUND:PATTERNS PLACE MAYFLY KERNEL INITRD CMDLINE MIB [MKE2FS MODULE "PARAMETERS"...]
 *
 * PLACE is where the files of the snapshot lie: a folder, or a disk, on which MKE2FS makes a file system once
 * the kernel has each MODULE: this machine is ours alone then. Says for every load
 *
 *   load WAY LETTER CALL_NS ALL_NS GUEST_NS MAPPED_NS MINOR MAJOR CPU_NS READS PRIVATE_KIB
 *
 * WAY is record, plain, prefetch, huge, which is prefetch with memory in transparent huge pages, or warm,
 * which is plain with all of the file in the page cache. ALL_NS is
 * the time from the begin of the load's call to the guest's answer, GUEST_NS what it took by the guest's
 * clock, and MAPPED_NS what it took once more, with all of it there; MINOR and MAJOR page faults and CPU_NS
 * of the monitor, without the time in the guest, and READS, what all disks of this machine were asked for,
 * are those of ALL_NS. PRIVATE_KIB is the monitor's memory that is its alone, after all that.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>

#include "monitor_process.h"

enum { SILENCE_LIMIT_MS = 90000, TEXT = 4096 };

static char folder[256];

struct monitor {
  pid_t pid;
  int input, output;
  char socket[300];
};

static uint64_t now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
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
  strcpy(vm.socket, file("api"));
  unlink(vm.socket);
  char* command[] = {program, "--api-sock", vm.socket, NULL};
  vm.pid = start_monitor(command, &vm.input, &vm.output);
  return vm;
}

static void end(struct monitor* vm) {
  end_monitor(vm->pid);
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
    char byte;
    if (!next_byte(vm->output, &byte, SILENCE_LIMIT_MS)) die(begin);
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

static uint64_t disk_reads(void) {
  char text[TEXT * 4];
  uint64_t reads = 0;
  if (read_text("/proc/diskstats", text, sizeof text) != 0) die("/proc/diskstats");
  for (char* line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
    unsigned long long of_one = 0;
    sscanf(line, "%*u %*u %*s %llu", &of_one);
    reads += of_one;
  }
  return reads;
}

static uint64_t private_kib(pid_t pid) {
  char path[64], text[TEXT];
  snprintf(path, sizeof path, "/proc/%d/status", pid);
  const char* at = read_text(path, text, sizeof text) == 0 ? strstr(text, "RssAnon:") : NULL;
  if (!at) die(path);
  return strtoull(at + 8, NULL, 10);
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

static void run(char* program, const char* way, char letter, int is_ours) {
  char set[TEXT], more[TEXT] = "", command[2] = {letter, '\n'};
  snprintf(set, sizeof set, "%s/set-%c", folder, letter);
  const int records = strcmp(way, "record") == 0;
  if (records) snprintf(more, sizeof more, ", \"record_working_set\": true");
  const int huge = strcmp(way, "huge") == 0;
  if (huge || strcmp(way, "prefetch") == 0) {
    snprintf(more, sizeof more, ", \"working_set_path\": \"%.250s\"%s", set,
             huge ? ", \"huge_pages\": \"Transparent\"" : "");
  }
  struct monitor vm = start(program);
  ask(&vm, "PUT", "/logger", "{\"level\": \"Error\"}");
  chill_all(is_ours);
  if (strcmp(way, "warm") == 0) warm(file("memory"));
  const struct usage before = usage_of(vm.pid);
  const uint64_t reads = disk_reads();
  const uint64_t begin = now();
  ask(&vm, "PUT", "/snapshot/load",
      "{\"snapshot_path\": \"%s\", \"mem_backend\": {\"backend_type\": \"File\", \"backend_path\": \"%s\"}, "
      "\"resume_vm\": true%s}",
      file("state"), file("memory"), more);
  const uint64_t loaded = now();
  if (write(vm.input, command, sizeof command) != sizeof command) die("the guest's console");
  uint64_t answered, again;
  unsigned long long took, wrong, mapped;
  if (sscanf(await(&vm, "touched", &answered), "touched %*c %*u %llu %llu", &took, &wrong) != 2 ||
      wrong != 0) {
    die("what the guest found is not what it wrote");
  }
  const struct usage after = usage_of(vm.pid);
  const uint64_t reads_after = disk_reads();
  if (sscanf(await(&vm, "again", &again), "again %llu %llu", &mapped, &wrong) != 2 || wrong != 0) {
    die("what the guest found is not what it found before");
  }
  printf("load %s %c %llu %llu %llu %llu %llu %llu %llu %llu %llu\n", way, letter,
         (unsigned long long)(loaded - begin), (unsigned long long)(answered - begin), took, mapped,
         (unsigned long long)(after.minor - before.minor), (unsigned long long)(after.major - before.major),
         (unsigned long long)(after.cpu_ns - before.cpu_ns), (unsigned long long)(reads_after - reads),
         (unsigned long long)private_kib(vm.pid));
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

// --- a disk
// ------------------------------------------------------------------------------------------------------

static void load_module(const char* path, const char* parameters) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0 || (syscall(SYS_finit_module, fd, parameters, 0) != 0 && errno != EEXIST)) die(path);
  close(fd);
}

static void make_disk(const char* disk, char** words) {
  for (char** module = words + 1; *module; module += 2) load_module(module[0], module[1]);
  char* command[] = {words[0], "-q", "-F", "-t", "ext4", (char*)disk, NULL};
  int output, status;
  const pid_t pid = start_monitor(command, NULL, &output);
  for (size_t kept = 0; kept + 1 < sizeof said && read(output, said + kept, 1) == 1; said[++kept] = 0) {
  }
  if (waitpid(pid, &status, 0) != pid || status != 0) die(words[0]);
  close(output);
  if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
      mount(disk, folder, "ext4", 0, NULL) != 0) {
    die("mount the disk");
  }
}

int main(int argc, char** argv) {
  const int has_disk = argc > 8;
  if (argc < 8 || (has_disk && argc % 2 != 1)) return 2;
  setvbuf(stdout, NULL, _IOLBF, 0);
  signal(SIGPIPE, SIG_IGN);
  snprintf(folder, sizeof folder, "%s/mayfly-prefetch.%d", has_disk ? "/tmp" : argv[2], getpid());
  if (mkdir(folder, 0700) != 0) die(folder);
  if (has_disk) make_disk(argv[2], argv + 8);
  save(argv + 3);
  static const char* const ways[] = {"plain", "prefetch", "huge", "warm"};
  enum { WAYS = sizeof ways / sizeof *ways };
  char* letters;
  const long first = strtol(argv[1], &letters, 10);
  for (const char* letter = letters + 1; *letters && *letter; letter++) {
    run(argv[3], "record", *letter, has_disk);
    for (int way = 0; way < WAYS; way++) run(argv[3], ways[(first + way) % WAYS], *letter, has_disk);
  }
  static const char* const names[] = {"state", "memory", "set-s", "set-o", "api"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) unlink(file(names[i]));
  if (has_disk) umount(folder);
  rmdir(folder);
  return 0;
}
