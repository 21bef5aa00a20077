/* Runs a program to which the kernel offers no functions of its own (vdso(7)): its clocks are system calls,
 * as they are on hosts whose clocks can be read in no other way.
 *
 *   without_vdso PROGRAM ARGUMENT...      ends with the program's exit code
 */
#include <elf.h>
#include <errno.h>
#include <stdio.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#define FAILED 125

static long peek(pid_t program, unsigned long address) {
  errno = 0;
  return ptrace(PTRACE_PEEKDATA, program, address, NULL);
}

/* At its first instruction the stack holds the number of arguments, these, the environment and the auxiliary
 * vector. */
static int hide(pid_t program) {
  struct user_regs_struct registers;
  if (ptrace(PTRACE_GETREGS, program, NULL, &registers) != 0) {
    return -1;
  }
  unsigned long at = registers.rsp;
  at += 8 * ((unsigned long)peek(program, at) + 2);
  while (peek(program, at) != 0) {
    at += 8;
  }
  for (at += 8; peek(program, at) != AT_NULL; at += 16) {
    if (errno != 0) {
      return -1;
    }
    if (peek(program, at) == AT_SYSINFO_EHDR) {
      return (int)ptrace(PTRACE_POKEDATA, program, at, AT_IGNORE);
    }
  }
  return 0;
}

int main(int count, char** arguments) {
  if (count < 2) {
    fprintf(stderr, "without_vdso needs a program\n");
    return FAILED;
  }
  const pid_t program = fork();
  if (program == 0) {
    ptrace(PTRACE_TRACEME, 0, NULL, NULL);
    execv(arguments[1], arguments + 1);
    _exit(FAILED);
  }
  int status = 0;
  if (waitpid(program, &status, 0) != program || !WIFSTOPPED(status) || hide(program) != 0 ||
      ptrace(PTRACE_DETACH, program, NULL, NULL) != 0 || waitpid(program, &status, 0) != program) {
    perror("without_vdso");
    return FAILED;
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
