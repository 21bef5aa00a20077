/* The floor under every API on a UNIX socket: one thread that answers whatever comes with the same few bytes,
 * in a static process that does nothing else. One client at a time; a request is what one read gives. */
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int main(int count, char** arguments) {
  static const char answer[] = "HTTP/1.1 204 No Content\r\nServer: floor\r\n\r\n";
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  if (count != 2 || strlen(arguments[1]) >= sizeof address.sun_path) {
    return 2;
  }
  strcpy(address.sun_path, arguments[1]);
  int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (bind(listener, (struct sockaddr*)&address, sizeof address) < 0 || listen(listener, 8) < 0) {
    perror(arguments[1]);
    return 1;
  }
  for (;;) {
    char request[8192];
    int client = accept(listener, NULL, NULL);
    while (read(client, request, sizeof request) > 0 && write(client, answer, sizeof answer - 1) > 0) {
    }
    close(client);
  }
}
