"""Starts Kafka, then one stack after the other, and asks each with the same `ab` line. See `run`."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import NewTopic

TARGET = sys.argv[1]
HERE = os.path.dirname(os.path.abspath(__file__))
BODY = "test01=111&test02=222&test03=ccc&test04=ddd"
FORM = "application/x-www-form-urlencoded"
TOPIC = "financial_pro"
# Of the stacks; how many processes of uWSGI, twice as many as cores at least.
PORT, PROCESSES = 14000, max(4, 2 * (os.cpu_count() or 1))
BROKER, CONTROLLER, ADMIN = 14092, 14093, 14001


def until(what, condition, limit=60):
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"compare: after {limit} s: not yet: {what}")
        time.sleep(0.05)


def answers(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextlib.contextmanager
def process(name, command, folder, end=signal.SIGTERM, **environment):
    with open(f"{folder}/{name}.log", "ab") as log:
        child = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                 env={**os.environ, **environment})
    try:
        yield child
    finally:
        child.send_signal(end)
        child.wait(timeout=60)


def java(*arguments):
    return ["java", "-Xmx512m", "-cp", f"{TARGET}/kafka/libs/*", *arguments]


@contextlib.contextmanager
def kafka(folder):
    with open(f"{folder}/server.properties", "w") as file:
        file.write(f"""process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{CONTROLLER}
listeners=PLAINTEXT://127.0.0.1:{BROKER},CONTROLLER://127.0.0.1:{CONTROLLER}
advertised.listeners=PLAINTEXT://127.0.0.1:{BROKER}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs={folder}/data
auto.create.topics.enable=false
offsets.topic.replication.factor=1
""")
    subprocess.run(java("kafka.tools.StorageTool", "format", "-t", "b2xkLXN0YWNrLWNvbXBhcg", "-c", "server.properties"),
                   cwd=folder, check=True, capture_output=True)
    with process("kafka", java("kafka.Kafka", "server.properties"), folder, signal.SIGKILL) as broker:
        until("Kafka answers", lambda: answers(BROKER))
        yield broker


@contextlib.contextmanager
def old(folder, **environment):
    """nginx before uWSGI with the Flask application."""
    uwsgi = [f"{TARGET}/old_stack/bin/uwsgi", "--master", "--processes", str(PROCESSES), "--socket", f"{folder}/uwsgi.sock",
             "--chmod-socket=666", "--wsgi-file", f"{HERE}/app.py", "--callable", "app", "--die-on-term", "--listen", "128",
             "--disable-logging", "--virtualenv", f"{TARGET}/old_stack"]
    kinds = "".join(f"{kind}_temp_path {kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    user = "user root;" if os.getuid() == 0 else ""
    with open(f"{folder}/nginx.conf", "w") as file:
        file.write(f"""{user}
daemon off;
worker_processes auto;
pid nginx.pid;
error_log nginx-error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    {kinds}
    server {{
        listen 127.0.0.1:{PORT};
        location / {{
            uwsgi_pass unix:{folder}/uwsgi.sock;
            uwsgi_read_timeout 60s;
""")
        modifiers = ("QUERY_STRING $query_string", "REQUEST_METHOD $request_method", "CONTENT_TYPE $content_type",
                     "CONTENT_LENGTH $content_length", "REQUEST_URI $request_uri", "PATH_INFO $document_uri",
                     "SERVER_PROTOCOL $server_protocol", "REMOTE_ADDR $remote_addr", "SERVER_PORT $server_port",
                     "SERVER_NAME $server_name")
        file.write("".join(f"            uwsgi_param {line};\n" for line in modifiers))
        file.write("        }\n    }\n}\n")
    with contextlib.suppress(FileNotFoundError):
        os.remove(f"{folder}/uwsgi.sock")
    with process("uwsgi", uwsgi, folder, KAFKA=f"127.0.0.1:{BROKER}", **environment):
        until("uWSGI listens", lambda: os.path.exists(f"{folder}/uwsgi.sock"))
        with process("nginx", ["nginx", "-p", folder, "-c", "nginx.conf", "-e", "nginx-error.log"], folder):
            until("the old stack answers", lambda: answers(PORT) and ask("GET", f"/{TOPIC}")[0] == 405)
            yield


@contextlib.contextmanager
def tidegate(folder):
    shutil.rmtree(f"{folder}/wal", ignore_errors=True)
    command = [f"{TARGET}/release/tidegate", "serve", "--listen", f"127.0.0.1:{PORT}", "--admin-listen", f"127.0.0.1:{ADMIN}",
               "--wal", f"{folder}/wal", "--bootstrap-servers", f"127.0.0.1:{BROKER}"]
    with process("tidegate", command, folder):
        until("tidegate answers", lambda: answers(PORT))
        yield


def in_kafka():
    consumer = KafkaConsumer(bootstrap_servers=f"127.0.0.1:{BROKER}")
    partition = TopicPartition(TOPIC, 0)
    end = consumer.end_offsets([partition])[partition]
    consumer.close()
    return end


def ab(folder, number, clients=100):
    """The line itself, and what it found."""
    with open(f"{folder}/body", "w") as file:
        file.write(BODY)
    # -s: it gives up on a connection that says nothing for so long.
    command = ["ab", "-q", "-s", "120", "-c", str(clients), "-n", str(number), "-T", FORM, "-p", "body", f"http://127.0.0.1:{PORT}/{TOPIC}"]
    text = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout

    def found(pattern):
        match = re.search(pattern, text, re.M)
        return match[1] if match else "0"

    # "Failed requests" counts answers of another length; what counts here is their status.
    bad = int(found(r"^Non-2xx responses: +(\d+)"))
    return {"rate": float(found(r"^Requests per second: +([\d.]+)")), "p50": found(r"^ +50% +(\d+)"),
            "p99": found(r"^ +99% +(\d+)"), "ok": int(found(r"^Complete requests: +(\d+)")) - bad, "bad": bad}


def ask(method, path):
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", method=method,
                                     data=BODY.encode() if method == "POST" else None)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def main():
    stacks = (("old stack, a producer for each request (as it was)", old, {}),
              ("old stack, one producer for each process", old, {"ONE_PRODUCER": "1"}),
              ("tidegate", tidegate, {}))
    load = os.getloadavg()[0]
    print("| stack | requests/s | p50 ms | p99 ms | 2xx | other | new in Kafka |\n|---|--:|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory(prefix="tidegate-old-stack-") as folder:
        same = []
        with kafka(folder) as broker:
            admin = KafkaAdminClient(bootstrap_servers=f"127.0.0.1:{BROKER}")
            admin.create_topics([NewTopic(TOPIC, num_partitions=1, replication_factor=1)])
            admin.close()
            for name, stack, environment in stacks:
                with stack(folder, **environment):
                    same.append([ask("POST", f"/{TOPIC}"), ask("GET", f"/{TOPIC}")])
                    ab(folder, 100)
                    before = in_kafka_settled()
                    # Its pace allows for ten times as many.
                    found = ab(folder, 10_000 if stack is tidegate else 1_000)
                    new = in_kafka_settled() - before
                print(f"| {name} | {found['rate']:.0f} | {found['p50']} | {found['p99']} | {found['ok']} | {found['bad']} | {new} |",
                      flush=True)
            if any(pair != same[0] for pair in same):
                sys.exit(f"compare: the stacks answer differently: {same}")
            broker.kill()
            broker.wait()
            for name, stack, environment in stacks:
                with stack(folder, **environment):
                    # Few: the old stack takes its time.
                    found = ab(folder, 8, PROCESSES)
                print(f"| {name}; Kafka is down | {found['rate']:.2g} | {found['p50']} | {found['p99']} | {found['ok']} | "
                      f"{found['bad']} | - |", flush=True)
        print(f"\nAll three: POST {same[0][0]}, GET {same[0][1]}. {os.cpu_count()} cores; load before {load:.1f}.")


def in_kafka_settled():
    """How many records Kafka has, once the number stands still for a second; or after half a minute."""
    seen, since = in_kafka(), time.monotonic()
    deadline = since + 30
    while time.monotonic() - since < 1 and time.monotonic() < deadline:
        time.sleep(0.1)
        now = in_kafka()
        if now != seen:
            seen, since = now, time.monotonic()
    return seen


if __name__ == "__main__":
    main()
