/*
 * call SOCKET METHOD PATH BODY: one call of the control API over its UNIX socket; prints the answer. For
 * where there is no other client. Exit code 0 where there is an answer, whatever it says.
 */
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int main(int argc, char** argv) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  char text[4096];
  if (argc != 5 || strlen(argv[1]) >= sizeof address.sun_path) {
    fprintf(stderr, "usage: call SOCKET METHOD PATH BODY\n");
    return 2;
  }
  strcpy(address.sun_path, argv[1]);
  int api = socket(AF_UNIX, SOCK_STREAM, 0);
  if (api < 0 || connect(api, (struct sockaddr*)&address, sizeof address) != 0) {
    perror(argv[1]);
    return 1;
  }
  dprintf(api, "%s %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %zu\r\n\r\n%s",
          argv[2], argv[3], strlen(argv[4]), argv[4]);
  ssize_t count;
  while ((count = read(api, text, sizeof text)) > 0) fwrite(text, 1, (size_t)count, stdout);
  return count < 0;
}
