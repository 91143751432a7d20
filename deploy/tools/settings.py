"""Whether what compose.yml and the Kubernetes manifests set is what tidegate takes, and what they promise.

settings.py BINARY compose COMPOSE.json | kubernetes MANIFESTS.yaml

The real tools check the form; this checks the meaning: each container's settings go through the binary's own
`config check`, its ports are those it listens on, it is given the time that it needs to end, and nothing is published
beyond this machine.
"""

import json
import os
import re
import subprocess
import sys
import tempfile

import yaml

SECTION = {"serve": "http", "land": "land"}


def fail(message):
    sys.exit(f"deploy/check: {message}")


def seconds(text):
    units = {"s": 1, "m": 60, "min": 60, "h": 3600}
    parts = re.findall(r"(\d+) ?(min|h|m|s)", str(text))
    return sum(int(number) * units[unit] for number, unit in parts)


def effective(binary, what, verb, variables, config=""):
    """What `tidegate config show` says of these settings, once `config check` has taken them."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(config)
        file.flush()
        variables = {"PATH": os.environ["PATH"], **variables}
        outcome = {}
        for question in ("check", "show"):
            ended = subprocess.run([binary, "--config", file.name, "config", question], env=variables, text=True,
                                   capture_output=True)
            if ended.returncode != 0:
                fail(f"{what}: `config {question}` says {ended.returncode}\n{ended.stdout}{ended.stderr}")
            outcome[question] = ended.stdout
        section, found = "", {}
        for line in outcome["show"].splitlines():
            if header := re.match(r"\[+([\w.]+)\]+", line):
                section = header[1]
            elif setting := re.match(r"(\w+) = (\"[^\"]*\"|[^#]*)", line):
                found[f"{section}.{setting[1]}"] = setting[2].strip().strip('"')
        return found


def check_tag(what, image):
    version = re.search(r'^version = "(.*)"', open("Cargo.toml").read(), re.M)[1]
    if not image.endswith(f"tidegate:{version}"):
        fail(f"{what}: the image is {image}, the version {version}")


def port(address):
    return int(address.rsplit(":", 1)[1])


def ends_in_time(what, verb, settings, grace, before=0):
    limit = seconds(settings[f"{SECTION[verb]}.shutdown"]) + before
    if limit == 0 or grace < limit + 5:
        fail(f"{what}: it may take {limit} s to end and is killed after {grace} s")


def compose(binary, file):
    services = json.load(open(file))["services"]
    for name, service in services.items():
        for published in service.get("ports", []):
            if published.get("host_ip") != "127.0.0.1":
                fail(f"compose: {name} publishes {published['target']} beyond this machine")
        for volume in service.get("volumes", []):
            # Certificates are the user's own.
            if volume["type"] == "bind" and not (os.path.exists(volume["source"]) or "certificates" in volume["source"]):
                fail(f"compose: {name} mounts {volume['source']}, which is not there")
        if not re.search(r":v?\d+\.\d+", service["image"]):
            fail(f"compose: the image of {name} has no version: {service['image']}")
        if name not in ("secrets", "topics") and not service.get("healthcheck"):
            # The image of tidegate brings its own.
            if not service["image"].startswith("tidegate:"):
                fail(f"compose: {name} has no health check")
    for name, verb in (("gateway", "serve"), ("lander", "land")):
        service = services[name]
        check_tag(f"compose: {name}", service["image"])
        if service["command"] != [verb]:
            fail(f"compose: {name} runs {service['command']}")
        # Its entrypoint reads these from the volume of secrets.
        given = {"TIDEGATE_ADMIN__TOKEN": "0123456789abcdef"}
        if verb == "land":
            given["TIDEGATE_LAND__URL"] = "postgres://tidegate:x@postgres:5432/tidegate?sslmode=disable"
        for variable in given:
            if f"export {variable}=" not in service["entrypoint"][2]:
                fail(f"compose: {name} gets no {variable}")
        settings = effective(binary, f"compose: {name}", verb, {**service["environment"], **given})
        ends_in_time(f"compose: {name}", verb, settings, seconds(service["stop_grace_period"]))
        listens = [settings["http.listen"], settings["admin.listen"]] if verb == "serve" else [settings["land.listen"]]
        missing = {port(address) for address in listens} - {published["target"] for published in service["ports"]}
        if missing:
            fail(f"compose: {name} listens on {missing} and does not publish it")
    made = services["topics"]["entrypoint"][2]
    for source in re.findall(r'^name = "(\w+)"', open("config.toml").read(), re.M):
        if source not in made.split("for topic in")[1].split(";")[0].split():
            fail(f"compose: nobody makes the topic of the source {source}")


def kubernetes(binary, file):
    objects = [entry for entry in yaml.safe_load_all(open(file)) if entry]
    maps = {entry["metadata"]["name"]: entry["data"] for entry in objects if entry["kind"] == "ConfigMap"}
    secrets = {entry["metadata"]["name"]: entry["stringData"] for entry in objects if entry["kind"] == "Secret"}
    example = {"admin-token": "0123456789abcdef", "land-url": "postgres://u:p@db.example:5432/rows?sslmode=require"}
    checked = 0
    for entry in objects:
        if entry["kind"] not in ("StatefulSet", "Deployment"):
            continue
        pod = entry["spec"]["template"]["spec"]
        what = f"kubernetes: {entry['metadata']['name']}"
        [container] = pod["containers"]
        check_tag(what, container["image"])
        verb = container["args"][0]
        variables = {}
        for variable in container["env"]:
            source = variable["valueFrom"]
            if reference := source.get("configMapKeyRef"):
                variables[variable["name"]] = maps[reference["name"]][reference["key"]]
            elif reference := source.get("secretKeyRef"):
                if reference["key"] not in secrets[reference["name"]]:
                    fail(f"{what}: the example's secret has no {reference['key']}")
                variables[variable["name"]] = example[reference["key"]]
        [config] = [volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume]
        with tempfile.TemporaryDirectory() as keys:
            open(f"{keys}/keys.toml", "w").close()
            text = maps[config]["config.toml"].replace("/etc/tidegate/keys/", f"{keys}/")
            settings = effective(binary, what, verb, variables, text)
        before = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        ends_in_time(what, verb, settings, pod["terminationGracePeriodSeconds"], before)
        ports = {named["name"]: named["containerPort"] for named in container["ports"]}
        listens = {"http": "http.listen", "admin": "admin.listen"} if verb == "serve" else {"admin": "land.listen"}
        for name, key in listens.items():
            if port(settings[key]) != ports[name]:
                fail(f"{what}: {key} is {settings[key]}, its port {name} {ports[name]}")
        checked += 1
    if checked != 2:
        fail(f"kubernetes: a gateway and a lander were expected, {checked} found")


if __name__ == "__main__":
    _, binary, kind, file = sys.argv
    {"compose": compose, "kubernetes": kubernetes}[kind](binary, file)
    print(f"{kind}: its settings are taken, its ports and times agree")
