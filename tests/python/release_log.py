"""Makes the fixture of a release: a log that its own binary leaves when SIGKILL ends it under eight clients, with Kafka away.

    python3 tests/python/release_log.py BINARY tests/fixtures/NAME

`wal/` is the folder as it was left, `answered` what clients had read OK for: a line for each request, `<first sequence> <last
sequence> <client> <n>`. Odd clients post three JSON records to a topic, even ones a form to a source. tests/it/upgrade.rs
reads both.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

REQUESTS = 300
CLIENTS = range(1, 9)
NOWHERE = "127.0.0.1:9"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def main():
    binary, out = map(os.path.abspath, sys.argv[1:])
    os.makedirs(out)
    ingest, admin = free_port(), free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
    log = tempfile.TemporaryFile()
    gateway = subprocess.Popen(
        [binary, "serve", "--listen", f"127.0.0.1:{ingest}", "--admin-listen", f"127.0.0.1:{admin}", "--wal", f"{out}/wal",
         "--bootstrap-servers", NOWHERE], env=environment, cwd=out, stderr=log)
    deadline = time.monotonic() + 20
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", admin, timeout=2)
            connection.request("GET", "/livez")
            if connection.getresponse().status == 200:
                break
        except OSError:
            pass
        if gateway.poll() is not None or time.monotonic() > deadline:
            log.seek(0)
            sys.exit(f"the gateway does not serve: {log.read().decode()}")
        time.sleep(0.05)

    lock, answered, killed = threading.Lock(), [], threading.Event()

    def client(number):
        connection = http.client.HTTPConnection("127.0.0.1", ingest, timeout=5)
        n = 0
        while not killed.is_set():
            n += 1
            try:
                if number % 2:
                    body = json.dumps([{"client": number, "n": n, "i": i} for i in range(3)], separators=(",", ":"))
                    connection.request("POST", f"/v1/topics/upgrade.orders?key=client-{number}", body,
                                       {"Content-Type": "application/json"})
                else:
                    connection.request("POST", "/trip_pro", f"client={number}&n={n}&text=%C3%BC",
                                       {"Content-Type": "application/x-www-form-urlencoded"})
                answer = connection.getresponse()
                text = answer.read()
            except (OSError, http.client.HTTPException):
                # Cut off: nobody knows what became of this request.
                return
            if answer.status == 202:
                receipt = json.loads(text)
                bounds = receipt["first_seq"], receipt["last_seq"]
            elif answer.status == 200:
                bounds = (int(answer.headers["tidegate-seq"]),) * 2
            else:
                raise SystemExit(f"{answer.status}: {text}")
            with lock:
                answered.append((*bounds, number, n))
                if len(answered) >= REQUESTS and not killed.is_set():
                    killed.set()
                    os.kill(gateway.pid, signal.SIGKILL)

    threads = [threading.Thread(target=client, args=(number,)) for number in CLIENTS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gateway.wait()
    # It holds the number of a process.
    os.remove(f"{out}/wal/lock")
    with open(f"{out}/answered", "w") as file:
        file.writelines("%d %d %d %d\n" % line for line in sorted(answered))
    print(f"{len(answered)} requests were answered OK, the last with sequence {max(line[1] for line in answered)}")


if __name__ == "__main__":
    main()
