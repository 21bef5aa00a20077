#!/usr/bin/python3
"""Ordinary HTTP clients against the control API: curl, and Node's own with a connection that is kept.

  api_client_test.py --mayfly BINARY --guests FOLDER [unittest's own arguments]

Python's own client is that of all other tests of the API.
"""

import json
import shutil
import subprocess
import unittest

from api_test import ApiCase
from bare_guests import HANG, guest, main

# Pauses and resumes 100 times on one connection, and prints what was answered and how many connections it took.
NODE = """
const http = require('http');
const agent = new http.Agent({keepAlive: true, maxSockets: 1});
const connections = new Set();
const answers = {};
function call(method, path, body) {
  return new Promise((resolve, reject) => {
    const request = http.request({socketPath: process.argv[1], agent, method, path}, (answer) => {
      answer.resume();
      answer.on('end', () => {
        answers[answer.statusCode] = (answers[answer.statusCode] || 0) + 1;
        resolve();
      });
    });
    request.on('socket', (socket) => connections.add(socket));
    request.on('error', reject);
    request.end(body && JSON.stringify(body));
  });
}
(async () => {
  for (let round = 0; round < 100; ++round) {
    await call('PATCH', '/vm', {state: round % 2 ? 'Resumed' : 'Paused'});
    await call('GET', '/vm/config');
    await call('PUT', '/nowhere', {});
  }
  agent.destroy();
  console.log(JSON.stringify({answers, connections: connections.size}));
})();
"""


class Clients(ApiCase):
    def curl(self, *arguments):
        done = subprocess.run(["curl", "--silent", "--show-error", "--unix-socket", self.socket, *arguments],
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=HANG, text=True, check=True)
        return done.stdout

    def put(self, path, body, *arguments):
        self.assertEqual(self.curl("-X", "PUT", "--data", json.dumps(body), *arguments, "-w", "%{http_code}",
                                   "http://localhost" + path), "204")

    def test_curl_sets_a_microvm_up_and_starts_it_in_the_order_that_the_dialect_knows(self):
        self.start()
        as_json = ("-H", "Accept: application/json", "-H", "Content-Type: application/json")
        limit = {"bandwidth": {"size": 1024, "one_time_burst": 1048576, "refill_time": 1000}}
        self.put("/logger", {"log_path": self.path("log"), "level": "Debug", "show_level": True, "show_log_origin": True})
        self.put("/boot-source", {"kernel_image_path": guest("spin"), "boot_args": "console=ttyS0 reboot=k panic=1"})
        self.put("/drives/rootfs", {"drive_id": "rootfs", "path_on_host": self.image("root"), "is_root_device": True,
                                    "is_read_only": False}, *as_json)
        self.put("/drives/rootfs", {"drive_id": "rootfs", "path_on_host": self.path("root"), "is_root_device": True,
                                    "is_read_only": False, "io_engine": "Sync"}, *as_json)
        self.put("/drives/scratch", {"drive_id": "scratch", "path_on_host": self.image("empty", 0), "is_root_device": False,
                                     "is_read_only": True, "rate_limiter": limit})
        self.put("/network-interfaces/net1", {"iface_id": "net1", "backend": "user", "guest_mac": "06:00:AC:10:00:02",
                                              "rx_rate_limiter": limit, "tx_rate_limiter": limit})
        self.put("/actions", {"action_type": "InstanceStart"})
        self.vm.until(b"spinning\n")
        self.put("/actions", {"action_type": "FlushMetrics"})
        for path, body in (("/drives/scratch", {"drive_id": "scratch", "path_on_host": self.image("larger")}),
                           ("/drives/scratch", {"drive_id": "scratch"}),
                           ("/network-interfaces/net1", {"iface_id": "net1", "tx_rate_limiter": {
                               "bandwidth": {"size": 0, "refill_time": 0}, "ops": {"size": 0, "refill_time": 0}}})):
            self.put(path, body, "-X", "PATCH")
        self.assertEqual(json.loads(self.curl("http://localhost/"))["state"], "Running")

    def test_curl_sends_many_calls_over_one_connection(self):
        self.start()
        written = self.curl("-w", "%{num_connects}", *["http://localhost/version"] * 5)
        self.assertEqual([int(part.rsplit("}", 1)[1]) for part in written.split("{")[1:]], [1, 0, 0, 0, 0])

    @unittest.skipUnless(shutil.which("node"), "there is no Node on this machine")
    def test_node_makes_hundreds_of_calls_over_one_connection(self):
        self.start()
        self.boot("spin")
        done = subprocess.run(["node", "-e", NODE, self.socket], stdin=subprocess.DEVNULL, capture_output=True,
                              timeout=HANG, check=True)
        self.assertEqual(json.loads(done.stdout), {"answers": {"200": 100, "204": 100, "400": 100}, "connections": 1})


if __name__ == "__main__":
    main(__doc__)
