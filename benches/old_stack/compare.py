"""Starts Kafka, then the stacks in turn, several times, and asks each with the same `ab` line. See `run`."""

import contextlib
import os
import re
import shutil
import signal
import socket
import statistics
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
RUNS = int(os.environ.get("TIDEGATE_BENCH_RUNS", "5"))


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
def bridge(folder):
    """Apache Camel, with its defaults but for what bridge/route.yaml says."""
    with open(f"{folder}/application.properties", "w") as file:
        file.write(f"""camel.main.routesIncludePattern=file:{HERE}/bridge/route.yaml
camel.server.enabled=true
camel.server.host=127.0.0.1
camel.server.port={PORT}
kafka=127.0.0.1:{BROKER}
""")
    command = ["java", "-Xmx512m", "-cp", f"{folder}:{TARGET}/bridge/libs/*", "org.apache.camel.main.Main"]
    # Killed: it would wait for requests that Kafka will never answer.
    with process("bridge", command, folder, signal.SIGKILL):
        # It listens before it has its route.
        until("the bridge answers", lambda: answers(PORT) and ask("GET", f"/{TOPIC}")[0] == 405)
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


# Name, how it is started, how many requests warm it up, and how many are measured: some seconds of each.
STACKS = (
    ("old stack, a producer for each request (as it was)", old, {}, 100, 200),
    ("old stack, one producer for each process", old, {"ONE_PRODUCER": "1"}, 100, 1_000),
    ("Apache Camel 4.18.0 as a bridge", bridge, {}, 5_000, 10_000),
    ("tidegate", tidegate, {}, 100, 10_000),
)


def main():
    # So that what it started ends with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if taken := [port for port in (PORT, BROKER, CONTROLLER, ADMIN) if answers(port)]:
        sys.exit(f"compare: something listens on 127.0.0.1 already, at {taken} (of a run that was killed?): end it first")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="tidegate-old-stack-") as folder:
        found = {name: [] for name, *_ in STACKS}
        with kafka(folder) as broker:
            admin = KafkaAdminClient(bootstrap_servers=f"127.0.0.1:{BROKER}")
            admin.create_topics([NewTopic(TOPIC, num_partitions=1, replication_factor=1)])
            admin.close()
            for _ in range(RUNS):
                for name, stack, environment, warm, number in STACKS:
                    with stack(folder, **environment):
                        posted, got = ask("POST", f"/{TOPIC}"), ask("GET", f"/{TOPIC}")
                        # A bridge has no page of the old stack's to show.
                        if posted != (200, "OK") or got != (405, got[1] if stack is bridge else "Methods Error"):
                            sys.exit(f"compare: {name} answers differently: {posted}, {got}")
                        ab(folder, warm)
                        before = in_kafka_settled()
                        figures = ab(folder, number)
                        found[name].append({**figures, "new": in_kafka_settled() - before})
            broker.kill()
            broker.wait()
            down = {}
            for name, stack, environment, *_ in STACKS:
                with stack(folder, **environment):
                    # Few: all but one take their time.
                    down[name] = ab(folder, PROCESSES, PROCESSES)
    report(found, down)
    print(f"\nPOST is 200 OK and GET 405 with each. {RUNS} runs, alternating; {PROCESSES} processes of uWSGI, {os.cpu_count()} cores "
          f"shared with Kafka and `ab`; load before {load:.1f}. Without Kafka: {PROCESSES} clients, a request each.")


def report(found, down):
    print("\n### The stacks, `ab -c 100`, no keep-alive\n")
    print("| | requests/s: min | median | max | p50 ms | p99 ms | 2xx | other | new in Kafka |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for name, runs in found.items():
        rates = sorted(run["rate"] for run in runs)
        middle = {key: statistics.median(int(run[key]) for run in runs) for key in ("p50", "p99")}
        total = {key: sum(run[key] for run in runs) for key in ("ok", "bad", "new")}
        print(f"| {name} | {rates[0]:.0f} | {statistics.median(rates):.0f} | {rates[-1]:.0f} | {middle['p50']:.0f} | {middle['p99']:.0f} "
              f"| {total['ok']} | {total['bad']} | {total['new']} |")
    print("\n### The same without Kafka\n\n| | p50 ms | p99 ms | 2xx | other |\n|---|--:|--:|--:|--:|")
    for name, run in down.items():
        print(f"| {name} | {run['p50']} | {run['p99']} | {run['ok']} | {run['bad']} |")
    medians = [statistics.median(run["rate"] for run in found[name]) for name in (STACKS[-1][0], STACKS[0][0])]
    times = medians[0] / medians[1]
    print(f"\nGoal: requests of the old stack as it was, on the same `ab` line: at least 100 times; measured {times:.0f} times: "
          f"{'met' if times >= 100 else 'missed'}.")


def in_kafka_settled():
    """How many records Kafka has, once the number stands still for half a second; or after half a minute."""
    seen, since = in_kafka(), time.monotonic()
    deadline = since + 30
    while time.monotonic() - since < 0.5 and time.monotonic() < deadline:
        time.sleep(0.1)
        now = in_kafka()
        if now != seen:
            seen, since = now, time.monotonic()
    return seen


if __name__ == "__main__":
    main()
