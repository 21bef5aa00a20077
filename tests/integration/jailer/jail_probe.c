// A program for jails: it stands where the monitor does, and tries what the word behind "do" says.
// Each line of its output is "what: result", a result being a number, or the name of an errno.
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

extern char** environ;

static void say(const char* what, long result) {
  if (result < 0) {
    printf("%s: %s\n", what, strerrorname_np(errno));
  } else {
    printf("%s: %ld\n", what, result);
  }
  fflush(stdout);
}

static long path_of(const char* path, int flags) {
  return open(path, flags | O_CLOEXEC, 0600);
}

static long connect_tcp(void) {
  const int link = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct sockaddr_in to = {
      .sin_family = AF_INET, .sin_port = htons(9), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  return connect(link, (struct sockaddr*)&to, sizeof to);
}

static long connect_abstract(const char* name) {
  const int link = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct sockaddr_un to = {.sun_family = AF_UNIX};
  strncpy(to.sun_path + 1, name, sizeof to.sun_path - 2);
  return connect(link, (struct sockaddr*)&to, (socklen_t)(sizeof to.sun_family + 1 + strlen(name)));
}

// The old way out of a chroot: another root directory below, and up from there.
static long chroot_twice(void) {
  if (chroot("run") != 0) {
    return -1;
  }
  for (int up = 0; up < 64; ++up) {
    if (chdir("..") != 0) {
      return -1;
    }
  }
  return chroot(".");
}

static void escape(const char* abstract) {
  say("open ../../../../etc/passwd", path_of("../../../../etc/passwd", O_RDONLY));
  say("open /etc/passwd", path_of("/etc/passwd", O_RDONLY));
  say("open /proc/self/root", path_of("/proc/self/root/etc/passwd", O_RDONLY));
  say("open /proc/1/root", path_of("/proc/1/root", O_RDONLY));
  say("write the monitor", path_of("/jail_probe", O_WRONLY));
  say("read the monitor", path_of("/jail_probe", O_RDONLY));
  say("replace the monitor", rename("/jail_probe", "/other"));
  say("remove a device", unlink("/dev/kvm"));
  say("make a file in dev", path_of("/dev/new", O_WRONLY | O_CREAT));
  say("move dev", rename("/dev", "/other"));
  for (int fd = 3; fd < 1024; ++fd) {
    if (fcntl(fd, F_GETFD) >= 0) {
      say("a descriptor is open", fd);
    }
  }
  say("mknod", mknod("/node", S_IFBLK | 0600, makedev(254, 0)));
  say("mkdir", mkdir("/folder", 0700));
  say("symlink", symlink("/", "/link"));
  say("mount", mount("none", "/run", "tmpfs", 0, NULL));
  say("umount", umount2("/", MNT_DETACH));
  say("pivot_root", syscall(SYS_pivot_root, "/run", "/run"));
  say("chroot", chroot_twice());
  say("unshare mount", unshare(CLONE_NEWNS));
  say("unshare net", unshare(CLONE_NEWNET));
  say("setns", setns(0, 0));
  say("setuid", setuid(0));
  say("setgid", setgid(0));
  say("setgroups", syscall(SYS_setgroups, 0, NULL));
  struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  struct __user_cap_data_struct data[2] = {{.effective = 1, .permitted = 1, .inheritable = 1}};
  say("capset", syscall(SYS_capset, &header, data));
  say("new privileges again", prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0));
  say("ptrace the parent", ptrace(PTRACE_SEIZE, getppid(), NULL, NULL));
  say("signal the parent", kill(getppid(), 0));
  say("signal init", kill(1, 0));
  say("chmod a device", chmod("/dev", 0777));
  say("sethostname", sethostname("x", 1));
  say("reboot", syscall(SYS_reboot, 0xfee1dead, 672274793, 0, NULL));
  say("raise a limit", syscall(SYS_prlimit64, 0, 7, (unsigned long[]){1UL << 20, 1UL << 20}, NULL));
  say("connect by TCP", connect_tcp());
  say("connect to an abstract socket", connect_abstract(abstract));
  say("use the caller's key", syscall(SYS_request_key, "user", "jailer-test", NULL, 0));
  say("execute another", execl("/other-program", "other-program", "do", "hello", NULL));
}

// What an ordinary process may do where there are user namespaces, and no filter of system calls is loaded
// yet.
static void user_namespace(void) {
  if (unshare(CLONE_NEWUSER) != 0) {
    say("unshare user", -1);
    return;
  }
  say("mount", mount("none", "/run", "tmpfs", 0, NULL));
  say("mknod", mknod("/node", S_IFBLK | 0600, makedev(254, 0)));
  say("open /etc/passwd", path_of("/etc/passwd", O_RDONLY));
  say("mount in a namespace", unshare(CLONE_NEWNS) != 0 ? -1 : mount("none", "/run", "tmpfs", 0, NULL));
}

// The process's first thread ends, another goes on.
static void* spin_on(void* nothing) {
  for (int tens = 0; tens < 3000; ++tens) {
    usleep(10000);
  }
  _exit(0);
  return nothing;
}

static void dead_leader(void) {
  pthread_t thread;
  say("thread", pthread_create(&thread, NULL, spin_on, NULL));
  syscall(SYS_exit, 0);
}

// In a user namespace it may change its root directory.
static void elsewhere(void) {
  say("unshare user", unshare(CLONE_NEWUSER));
  say("chroot", chroot("/run"));
  pause();
}

// One process after the other, none for longer than a moment; each counts itself in /run/chain, until it is
// told to stop.
static void chain(void) {
  signal(SIGCHLD, SIG_IGN);
  puts("forking");
  fflush(stdout);
  const int file = open("/run/chain", O_RDWR | O_CREAT, 0600);
  for (unsigned long long count = 1; access("/run/stop", F_OK) != 0; count++) {
    if (pwrite(file, &count, sizeof count, 0) != sizeof count || fork() > 0) {
      _exit(0);
    }
    usleep(500);
  }
}

// Each line of a terminal's may be another's command.
static void terminal(void) {
  const unsigned long upper = 1UL << 32;
  say("type", ioctl(0, TIOCSTI, "x"));
  say("type, by an upper half", syscall(SYS_ioctl, 0, TIOCSTI | upper, "x"));
  say("select and paste", ioctl(0, TIOCLINUX, "\3"));
  say("ask for the size", ioctl(0, TIOCGWINSZ, &(struct winsize){0}));
  const pid_t child = fork();
  if (child == 0) {
    syscall(0x40000000 | 514, 0, TIOCSTI, "x");  // ioctl() of x32
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  say("type, by x32: killed by", WIFSIGNALED(status) ? WTERMSIG(status) : 0);
}

static void* wait_for_ever(void* nothing) {
  pause();
  return nothing;
}

static void report(int count, char** arguments) {
  for (int index = 0; index < count; ++index) {
    printf("argument: %s\n", arguments[index]);
  }
  for (char** one = environ; *one != NULL; ++one) {
    printf("environment: %s\n", *one);
  }
  struct dirent** names = NULL;
  const int found = scandir("/", &names, NULL, alphasort);
  for (int index = 0; index < found; ++index) {
    printf("in the root: %s\n", names[index]->d_name);
  }
  say("pid", getpid());
  say("session", getsid(0) == getpid());
  fflush(stdout);
}

int main(int count, char** arguments) {
  int at = 1;
  while (at < count && strcmp(arguments[at], "do") != 0) {
    ++at;
  }
  if (at + 1 >= count) {
    return 2;
  }
  const char* const what = arguments[at + 1];
  const char* const argument = at + 2 < count ? arguments[at + 2] : "0";
  const long number = strtol(argument, NULL, 0);
  if (strcmp(what, "hello") == 0) {
    puts("hello");
    fflush(stdout);
  } else if (strcmp(what, "report") == 0) {
    report(count, arguments);
  } else if (strcmp(what, "escape") == 0) {
    escape(argument);
  } else if (strcmp(what, "user-namespace") == 0) {
    user_namespace();
  } else if (strcmp(what, "dead-leader") == 0) {
    dead_leader();
  } else if (strcmp(what, "elsewhere") == 0) {
    elsewhere();
  } else if (strcmp(what, "chain") == 0) {
    chain();
  } else if (strcmp(what, "terminal") == 0) {
    terminal();
  } else if (strcmp(what, "wait") == 0) {
    puts("waiting");
    fflush(stdout);
    pause();
  } else if (strcmp(what, "spin") == 0) {
    puts("spinning");
    fflush(stdout);
    for (;;) {
    }
  } else if (strcmp(what, "memory") == 0) {
    char* const memory = malloc((size_t)number << 20);
    for (long mib = 0; mib < number; ++mib) {
      memset(memory + (mib << 20), 1, 1 << 20);
      say("MiB", mib + 1);
    }
  } else if (strcmp(what, "threads") == 0) {
    for (long index = 0; index < number; ++index) {
      pthread_t thread;
      const int error = pthread_create(&thread, NULL, wait_for_ever, NULL);
      if (error != 0) {
        errno = error;
        say("thread", -1);
        return 0;
      }
      say("thread", index + 1);
    }
  } else if (strcmp(what, "files") == 0) {
    for (long index = 0; index < number; ++index) {
      const int fd = open("/", O_RDONLY | O_CLOEXEC);
      if (fd < 0) {
        say("open", -1);
        return 0;
      }
    }
  } else if (strcmp(what, "write") == 0) {
    signal(SIGXFSZ, SIG_IGN);
    const int fd = open("/large", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    long written = 0;
    char block[4096] = {0};
    while (written < number) {
      const ssize_t step = write(fd, block, sizeof block);
      if (step < 0) {
        say("write", -1);
        break;
      }
      written += step;
    }
    say("written", written);
  } else if (strcmp(what, "open") == 0) {
    say(argument, path_of(argument, O_RDONLY) < 0 ? -1 : 0);
    say("/dev/urandom", path_of("/dev/urandom", O_RDONLY) < 0 ? -1 : 0);
  } else if (strcmp(what, "exit") == 0) {
    return (int)number;
  } else {
    return 2;
  }
  return 0;
}
