#!/usr/bin/env python3
"""Writes grafana/dashboards/*.json (or into the folder that is named) from the tables below; run it after a change and commit both.

A dashboard is a list of rows, a row a title and its panels, a panel one call of `panel`. Each panel says what to do when it looks
bad: that is what it is for. `tests/it/observe.rs` runs this script and fails when its output is not what is committed, and asks a
real Prometheus every expression.

Cheap at 1,000 gateways: the fleet's panels ask recording rules and gauges (one series for each gateway), never buckets or topics.
"""
import json
import pathlib
import sys

FOLDER = pathlib.Path(__file__).parent / "dashboards"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
# Of Grafana 12; later ones read it too.
SCHEMA = 41
GREEN, YELLOW, RED, BLUE = "green", "yellow", "red", "blue"


def steps(*steps_):
    """Thresholds: a colour from its value on."""
    return [{"color": color, "value": value} for color, value in steps_]


GOOD = steps((GREEN, None))
BAD_ABOVE_0 = steps((GREEN, None), (RED, 1))
WARN_ABOVE_0 = steps((GREEN, None), (YELLOW, 1))
UP = steps((RED, None), (GREEN, 1))
TIME_LEFT = steps((RED, None), (YELLOW, 4 * 3600), (GREEN, 24 * 3600))
AGE = steps((GREEN, None), (YELLOW, 900), (RED, 4 * 3600))


def panel(title, what, *queries, kind="timeseries", unit="short", width=8, height=8, colors=GOOD, low=0, names=None, stacked=False,
          most=None):
    """A panel. `queries`: (expression, legend), or an expression alone; `names`: words for values."""
    targets = []
    for index, query in enumerate(queries):
        expression, legend = query if isinstance(query, tuple) else (query, "__auto")
        target = {"refId": chr(ord("A") + index), "datasource": DATASOURCE, "expr": expression, "legendFormat": legend,
                  "range": kind in ("timeseries", "heatmap"), "instant": kind not in ("timeseries", "heatmap")}
        if kind == "heatmap":
            target |= {"format": "heatmap", "legendFormat": "{{le}}"}
        if kind == "table":
            target["format"] = "table"
        targets.append(target)
    defaults = {"unit": unit, "thresholds": {"mode": "absolute", "steps": colors}}
    if low is not None:
        defaults["min"] = low
    if most is not None:
        defaults["max"] = most
    if names:
        options = {str(value): {"text": text, "index": index} for index, (value, text) in enumerate(names.items())}
        defaults["mappings"] = [{"type": "value", "options": options}]
    made = {"type": kind, "title": title, "description": what, "datasource": DATASOURCE, "targets": targets,
            "gridPos": {"w": width, "h": height}, "fieldConfig": {"defaults": defaults, "overrides": []}}
    if kind == "timeseries":
        defaults["color"] = {"mode": "palette-classic"}
        defaults["custom"] = {"fillOpacity": 60 if stacked else 10, "lineWidth": 1, "showPoints": "never", "spanNulls": False,
                              "stacking": {"mode": "normal" if stacked else "none", "group": "A"}}
        if colors is not GOOD:
            defaults["custom"]["thresholdsStyle"] = {"mode": "line"}
        made["options"] = {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
                           "tooltip": {"mode": "multi", "sort": "desc"}}
    elif kind == "stat":
        defaults["color"] = {"mode": "thresholds"}
        made["options"] = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "colorMode": "background",
                           "graphMode": "none", "textMode": "auto", "justifyMode": "auto", "orientation": "auto"}
    elif kind == "heatmap":
        del made["fieldConfig"]["defaults"]["thresholds"]
        made["options"] = {"calculate": False, "cellGap": 1, "showValue": "never", "selectionMode": "x",
                           "color": {"mode": "scheme", "scheme": "Blues", "steps": 64, "exponent": 0.5, "fill": "blue",
                                     "reverse": False, "scale": "exponential"},
                           "exemplars": {"color": "rgba(255,0,255,0.7)"}, "filterValues": {"le": 1e-9},
                           "legend": {"show": True}, "rowsFrame": {"layout": "auto"}, "tooltip": {"mode": "single"},
                           "yAxis": {"unit": unit, "axisPlacement": "left", "reverse": False}, "cellValues": {"unit": "short"}}
    elif kind == "table":
        defaults["color"] = {"mode": "thresholds"}
        made["options"] = {"showHeader": True, "cellHeight": "sm"}
        hidden = {"Time": True, "__name__": True, "job": True}
        made["transformations"] = [{"id": "organize", "options": {"excludeByName": hidden, "indexByName": {"site": 0, "instance": 1},
                                                                  "renameByName": {"Value": title}}}]
        made["fieldConfig"]["overrides"] = [
            {"matcher": {"id": "byName", "options": title},
             "properties": [{"id": "custom.cellOptions", "value": {"type": "color-text"}}]},
            {"matcher": {"id": "byName", "options": "instance"},
             "properties": [{"id": "links", "value": [{
                 "title": "this gateway", "url": "/d/tidegate-gateway?var-site=${__data.fields.site}&var-instance=${__data.fields.instance}"
             }]}]},
        ]
    return made


def variable(name, label, query, many):
    everything = {"allValue": ".*", "current": {"text": "All", "value": "$__all"}} if many else {}
    return {"type": "query", "name": name, "label": label, "datasource": DATASOURCE, "definition": query,
            "query": {"query": query, "refId": name}, "refresh": 2, "sort": 1, "multi": many, "includeAll": many,
            "options": [], "hide": 0, "regex": "", "skipUrlSync": False, **everything}


def dashboard(uid, title, what, variables, rows):
    panels, number, y = [], 0, 0
    for name, row in rows:
        number += 1
        panels.append({"type": "row", "id": number, "title": name, "collapsed": False, "panels": [],
                       "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}})
        x, y, height = 0, y + 1, 0
        for item in row:
            number += 1
            size = item["gridPos"]
            if x + size["w"] > 24:
                x, y, height = 0, y + height, 0
            panels.append({"id": number, **item, "gridPos": {"x": x, "y": y, **size}})
            x, height = x + size["w"], max(height, size["h"])
        y += height
    source = {"type": "datasource", "name": "datasource", "label": "Prometheus", "query": "prometheus", "options": [],
              "hide": 0, "includeAll": False, "multi": False, "refresh": 1, "regex": "", "skipUrlSync": False}
    links = [{"type": "dashboards", "title": "tidegate", "tags": ["tidegate"], "asDropdown": False, "includeVars": False,
              "keepTime": True, "targetBlank": False, "icon": "external link", "tooltip": "", "url": ""}]
    return {"uid": uid, "title": title, "description": what, "tags": ["tidegate"], "schemaVersion": SCHEMA, "version": 1,
            "editable": True, "graphTooltip": 1, "timezone": "browser", "refresh": "30s", "time": {"from": "now-6h", "to": "now"},
            "timepicker": {}, "fiscalYearStartMonth": 0, "links": links, "annotations": {"list": []},
            "templating": {"list": [source, *variables]}, "panels": panels}


def of(name, labels='site=~"$site", instance=~"$instance"'):
    return f"{name}{{{labels}}}"


def land(name):
    return of(name, 'site=~"$site", instance=~"$lander"')


def lander(name):
    """Of what both kinds of process have, the landers'."""
    return of(name, 'job="tidegate-lander", site=~"$site", instance=~"$lander"')


def busy(label, expression):
    """Without the many values of a label that are 0; one line at 0 when all are."""
    return f'sum by ({label}) ({expression}) > 0 or on() label_replace(vector(0), "{label}", "none", "", "")'


def by(label, name, of=of):
    """A counter's rate by a label."""
    return busy(label, f"rate({of(name)}[$__rate_interval])")


def in_an_hour(label, name, of=of):
    """A counter's increase by a label."""
    return busy(label, f"increase({of(name)}[1h])")


def heat(name, of=of):
    return f"sum by (le) (increase({of(name + '_bucket')}[$__rate_interval]))"


def quantile(share, name, of=of):
    return f"histogram_quantile({share}, sum by (le) (rate({of(name + '_bucket')}[$__rate_interval])))"


def stat(title, what, query, **more):
    return panel(title, what, query, kind="stat", width=3, height=4, **more)


GATEWAY = [
    ("Now", [
        stat("Kafka", "Away: records wait on disk and go by themselves later. Only when it lasts: runbook kafka-away.",
             of("tidegate_forward_broker_up"), colors=UP, names={0: "away", 1: "up"}),
        stat("New records", "Refused: the log or its disk is full and senders read 503. Runbook disk-full.",
             of("tidegate_wal_refusing"), colors=BAD_ABOVE_0, names={0: "taken", 1: "refused"}),
        stat("Backlog", "Records on disk that Kafka has not acknowledged. If it grows while Kafka is up: runbook kafka-away.",
             of("tidegate_wal_backlog_records")),
        stat("Oldest record", "How late consumers of Kafka are. Grows while Kafka is away; else runbook kafka-away.",
             of("tidegate_wal_oldest_record_age_seconds"), unit="s", colors=AGE),
        stat("Until full", "Time until the disk is full at the pace of the last 30 minutes; 30 days stand for never. Red: runbook "
             "disk-filling, now.", of("instance:tidegate_wal_full:seconds"), unit="s", colors=TIME_LEFT),
        stat("Dead letters", "Records that Kafka refuses for good. Any: find out why, then requeue. Runbook dead-letters.",
             of("tidegate_dead_letters"), colors=WARN_ABOVE_0),
        stat("Held records", "Records whose topic does not exist or is denied. Any: runbook held-topics.",
             of("tidegate_held_records"), colors=WARN_ABOVE_0),
        stat("Damaged records", "Committed records that cannot be read any more. Any: the disk cannot be trusted. Runbook "
             "corruption-found.", of("tidegate_wal_damaged_records"), colors=BAD_ABOVE_0),
    ]),
    ("Backlog and disk", [
        panel("Backlog, records", "What waits for Kafka. It rises in an outage and falls after it. Rises without one: more comes in "
              "than goes out (next row); forward.bytes_per_second_max may be too low.",
              (of("tidegate_wal_backlog_records"), "main log"), (of("tidegate_held_records"), "held"),
              (of("tidegate_dead_letters"), "dead letters")),
        panel("Backlog, bytes", "The same before compression. Divided by the rate out: how long catching up takes.",
              (of("tidegate_wal_backlog_bytes"), "backlog"), unit="bytes"),
        panel("Backlog, time", "Age of the oldest record that waits. Rises by a minute each minute while nothing goes out: runbook "
              "kafka-away.", (of("tidegate_wal_oldest_record_age_seconds"), "oldest record"), unit="s", colors=AGE),
        panel("Growth", "Records a second that come in above what goes out. Above 0 for long without an outage: Kafka or the line is "
              "too slow for what is sent.",
              (f"{of('instance:tidegate_ingest_records:rate5m')} - {of('instance:tidegate_forward_records:rate5m')}", "in - out"),
              unit="cps", low=None),
        panel("Time until the disk is full", "At the pace of the last 30 minutes, 30 days at most. Below 4 hours somebody is woken: "
              "runbook disk-filling.", (of("instance:tidegate_wal_full:seconds"), "until full"), unit="s", colors=TIME_LEFT),
        panel("Disk", "What the log takes, its limit, and what its file system has left. Free falls while the log does not grow: "
              "somebody else fills the disk. Runbook disk-filling.",
              (of("tidegate_wal_disk_bytes"), "log"), (of("tidegate_wal_capacity_bytes"), "wal.bytes_max"),
              (of("tidegate_wal_free_bytes"), "free on the file system"), (of("tidegate_wal_room_bytes"), "room for new records"),
              unit="bytes"),
    ]),
    ("In and out", [
        panel("Records a second", "Committed, acknowledged by Kafka. Out stays below in: the backlog grows. In falls to "
              "nothing: ask the senders.",
              (of("instance:tidegate_ingest_records:rate5m"), "in"), (of("instance:tidegate_forward_records:rate5m"), "out"),
              unit="cps"),
        panel("Bytes a second", "Payload. Out at a level line: forward.bytes_per_second_max, or the line's own limit.",
              (of("instance:tidegate_ingest_bytes:rate5m"), "in"), (of("instance:tidegate_forward_bytes:rate5m"), "out"), unit="Bps"),
        panel("Records in, by topic", "Who sends how much. A topic that was there and is not: ask its senders.",
              (by("topic", "tidegate_ingest_records_total"), "{{topic}}"), unit="cps", stacked=True),
        panel("Answers by code", "2xx is on disk. 5xx is the gateway's matter (disk, limits), 4xx the senders': see the next panel.",
              (by("code", "tidegate_ingest_requests_total"), "{{code}}"), unit="reqps", stacked=True),
        panel("Rejected, by reason", "wal_full, disk_low: runbook disk-full. unauthorized, forbidden, rate: runbook refused-clients. "
              "in_flight, busy: more than the machine takes. The others are a sender's fault, and its answer says which.",
              (by("reason", "tidegate_ingest_rejected_total"), "{{reason}}"), unit="reqps", stacked=True),
        panel("Requests in work", "Near http.in_flight_max: the disk is slow or too many send at once. Replayed are retries that "
              "were answered as before: many mean that senders lose their answers.",
              (of("tidegate_ingest_in_flight"), "in work"),
              (f"rate({of('tidegate_ingest_replayed_total')}[$__rate_interval])", "replayed a second")),
    ]),
    ("Latency", [
        panel("Commit", "How long a group commit takes: what a sender waits for. A band that climbs: the disk gets slow. Runbook "
              "commit-latency.", heat("tidegate_wal_commit_seconds"), kind="heatmap", unit="s", low=None),
        panel("fdatasync", "The disk's part of it. As slow as the commit: the disk, or who else uses it. Runbook commit-latency.",
              heat("tidegate_wal_fsync_seconds"), kind="heatmap", unit="s", low=None),
        panel("Delivery", "From receipt to Kafka's acknowledgement. After an outage as long as the outage was; high without one: "
              "Kafka or the line is slow.", heat("tidegate_forward_delivery_seconds"), kind="heatmap", unit="s", low=None),
        panel("99 of 100 are quicker", "Request far above commit: slow senders or a busy processor. Commit above 0.5 s: runbook "
              "commit-latency.", (quantile(0.99, "tidegate_ingest_request_seconds"), "request"),
              (of("instance:tidegate_wal_commit_seconds:p99_5m"), "commit"),
              (of("instance:tidegate_forward_delivery_seconds:p99_5m"), "delivery"), unit="s"),
        panel("Records a commit", "Group commit at work: it grows with the load. Near 1 at a high load: have senders put more "
              "records into a request.", heat("tidegate_wal_commit_records"), kind="heatmap", unit="short", low=None),
        panel("Records by watermark", "Sequences a second, of 5 minutes. acknowledged stands while committed moves: "
              "Kafka is away.", (f"deriv({of('tidegate_wal_committed_sequence')}[5m])", "committed"),
              (f"deriv({of('tidegate_wal_acked_sequence')}[5m])", "acknowledged"), unit="cps", low=None),
    ]),
    ("Kafka", [
        panel("Kafka reachable", "0 while no broker is. Records wait on disk meanwhile. Runbook kafka-away when it lasts.",
              (of("tidegate_forward_broker_up"), "gateway"), (land("tidegate_land_broker_up"), "lander {{instance}}"), most=1),
        panel("Sent again, by reason", "healed: Kafka had lost records, runbook kafka-lost-data. batch, transient, fatal, config heal by "
              "themselves; steadily: the log names the topic.",
              (by("reason", "tidegate_forward_retries_total"), "{{reason}}"), unit="cps", stacked=True),
        panel("On the way to Kafka", "Handed to the producer and not acknowledged. High and level: Kafka takes connections and answers "
              "nothing. Runbook kafka-away.", (of("tidegate_forward_in_flight_records"), "in flight")),
        panel("Lag", "How far the forwarder is behind, as the age of what it has not settled. As the backlog's time.",
              (of("tidegate_forward_lag_seconds"), "lag"), unit="s", colors=AGE),
        panel("Throttled", "Share of time that the forwarder waited because of forward.bytes_per_second_max. At 1 with a growing backlog: "
              "raise it.", (f"rate({of('tidegate_forward_throttled_seconds_total')}[$__rate_interval])", "throttled"),
              unit="percentunit"),
        panel("Producers made anew, transactions", "A fatal error now and then heals by itself. Again and again: the log says why; runbooks "
              "kafka-lost-data and gateway-cloned. Transactions are there with delivery = \"exactly_once\" only.",
              (f"increase({of('tidegate_forward_fatal_errors_total')}[1h])", "fatal errors in an hour"),
              (f"rate({of('tidegate_forward_transactions_total')}[$__rate_interval])", "transactions a second")),
    ]),
    ("Kept for an operator", [
        panel("Dead letters, by reason", "New ones in an hour. MessageSizeTooLarge: the topic's max.message.bytes. Others: its policy or "
              "schema. Runbook dead-letters.",
              (in_an_hour("reason", "tidegate_dead_letters_total"), "{{reason}}"), stacked=True),
        panel("Held", "Records and topics that wait until their topic exists or may be written to. Runbook held-topics.",
              (of("tidegate_held_records"), "records"), (of("tidegate_held_topics"), "topics")),
        panel("Corruption", "Anything but 0: the disk has given back what was not written. Poisoned is 1 when a write failed and the log has "
              "stopped. Runbooks corruption-found and wal-poisoned.",
              (of("tidegate_wal_corruption_records_total"), "found since the start"), (of("tidegate_wal_damaged_records"), "not settled yet"),
              (of("tidegate_wal_salvaged_records_total"), "salvaged at the start"), (of("tidegate_wal_poisoned"), "poisoned"),
              colors=BAD_ABOVE_0),
    ]),
    ("Lander", [
        panel("Lag, records", "What Kafka has and the database has not, by topic. Does not shrink: runbook lander-lag.",
              (f"sum by (topic) ({land('tidegate_land_lag_records')})", "{{topic}}"), stacked=True),
        panel("Lag, time", "How long that takes at the present pace, 30 days at most. Above 15 minutes: runbook lander-lag.",
              (land("instance:tidegate_land_lag:seconds"), "{{instance}}"), unit="s", colors=AGE),
        panel("Rows a second", "Many that are not valid: a sender has changed what it sends; the views <source>_invalid show what. Duplicates "
              "are dropped: some after each crash, rewind or replay.",
              (by("valid", "tidegate_land_records_total", of=land), "valid: {{valid}}"),
              (f"sum(rate({land('tidegate_land_duplicates_total')}[$__rate_interval]))", "duplicates"), unit="cps", stacked=True),
        panel("Batches", "Time of one transaction. A band that climbs: the database gets slow. Runbook lander-lag.",
              heat("tidegate_land_batch_seconds", of=land), kind="heatmap", unit="s", low=None),
        panel("Errors, by reason", "In an hour. identity_clash: runbook gateway-cloned. out_of_range, file_damaged: records are missing. "
              "Others heal by themselves; steadily: runbook lander-lag.",
              (in_an_hour("reason", "tidegate_land_errors_total", of=land), "{{reason}}"), stacked=True),
        panel("Database takes rows", "0: the database or the folder takes nothing; the lander's log and /readyz say why. Runbook lander-lag.",
              (land("tidegate_land_sink_up"), "{{instance}}"), most=1),
    ]),
    ("Process and machine", [
        panel("Memory", "It is bounded by the limits in the configuration. Grows for hours: it is a fault of ours: report it.",
              (of("process_resident_memory_bytes"), "gateway"), (lander("process_resident_memory_bytes"), "lander {{instance}}"), unit="bytes"),
        panel("Processor", "Processors in use, over 5 minutes. At the number that the machine has: give it more, or have senders batch.",
              (f"rate({of('process_cpu_seconds_total')}[5m])", "gateway"),
              (f"rate({lander('process_cpu_seconds_total')}[5m])", "lander {{instance}}")),
        panel("Open files", "Near the limit: raise it (LimitNOFILE), or lower http.connections_max.",
              (of("process_open_fds"), "open"), (of("process_max_fds"), "limit"), (of("process_threads"), "threads")),
        panel("Clock", "How far this machine's clock is before Prometheus's. Above 30 s: runbook clock-off.",
              (of("instance:tidegate_clock:offset_seconds"), "offset"), unit="s", low=None),
        panel("TLS", "Handshakes that failed, by reason; broken, from all senders at once: the certificate. Runbooks certificate-expires and "
              "refused-clients.", (by("reason", "tidegate_http_handshakes_failed_total"), "{{reason}}"), unit="cps"),
        panel("Files that cannot be used", "1: the changed file of keys or certificates is wrong, and what it said before is in force. Runbook "
              "refused-clients.", (of("tidegate_http_files_refused"), "{{file}}"), most=1, colors=BAD_ABOVE_0),
        panel("Up for", "Falls again and again: a supervisor starts what ends at once. Runbook gateway-down.",
              (f"time() - {of('process_start_time_seconds')}", "up for"), unit="s"),
        panel("Generations", "Files of the log. Many while nothing waits: wal.retain, held records, dead letters.",
              (of("tidegate_wal_generations"), "files")),
        stat("Certificate ends in", "Below 14 days: runbook certificate-expires. No data: no TLS.",
             f"{of('tidegate_http_certificate_expiry_timestamp_seconds')} - time()", unit="s",
             colors=steps((RED, None), (YELLOW, 2 * 86400), (GREEN, 14 * 86400)), low=None),
        panel("Version", "What runs here. After an upgrade: is it the new one?", of("tidegate_build_info"), kind="table", width=5, height=4),
    ]),
]

COUNTED = 'site=~"$site", instance=~"$instance"'


def worst(title, what, query, **more):
    return panel(title, what, query, kind="table", width=8, height=8, **more)


def count(expression):
    """How many there are, 0 when there are none."""
    return f"count({expression}) or vector(0)"


FLEET = [
    ("Now", [
        stat("Gateways", "Those that Prometheus reaches. Fewer than you have: the next one.", count(f'up{{job="tidegate", {COUNTED}}} == 1')),
        stat("Gateways away", "Prometheus does not reach them: down, or the line to their site. Runbook gateway-down.",
             count(f'up{{job="tidegate", {COUNTED}}} == 0'), colors=BAD_ABOVE_0),
        stat("Without Kafka", "They keep what comes in. Look at the time until full; runbook kafka-away when it lasts.",
             count(f"{of('tidegate_forward_broker_up')} == 0"), colors=WARN_ABOVE_0),
        stat("Full within 4 hours", "Runbook disk-filling, now, for each.",
             count(f"{of('instance:tidegate_wal_full:seconds')} < 4 * 3600"), colors=BAD_ABOVE_0),
        stat("Refuse records", "Full: senders read 503. Runbook disk-full.", count(f"{of('tidegate_wal_refusing')} == 1"),
             colors=BAD_ABOVE_0),
        stat("Backlog", "Records of all that wait for Kafka. Grows: see by site, below.", f"sum({of('tidegate_wal_backlog_records')})"),
        stat("Dead letters", "Of all. The table below says where; runbook dead-letters.", f"sum({of('tidegate_dead_letters')})",
             colors=WARN_ABOVE_0),
        stat("Held records", "Of all. The table below says where; runbook held-topics.", f"sum({of('tidegate_held_records')})",
             colors=WARN_ABOVE_0),
    ]),
    ("Over time", [
        panel("Records a second", "All in, all out, all landed. Out stays below in: backlogs grow. Landed stays below out: runbook lander-lag.",
              (f"sum({of('instance:tidegate_ingest_records:rate5m')})", "in"),
              (f"sum({of('instance:tidegate_forward_records:rate5m')})", "out"),
              ("sum(instance:tidegate_land_records:rate5m)", "landed"), unit="cps"),
        panel("Bytes a second", "Payload of all. Out at a level line: a limit of the lines, or forward.bytes_per_second_max.",
              (f"sum({of('instance:tidegate_ingest_bytes:rate5m')})", "in"),
              (f"sum({of('instance:tidegate_forward_bytes:rate5m')})", "out"), unit="Bps"),
        panel("Backlog by site", "The ten largest. One site alone: its line or its Kafka. All at once: Kafka. Runbook kafka-away.",
              (f"topk(10, sum by (site) ({of('tidegate_wal_backlog_records')}))", "{{site}}")),
        panel("Gateways", "How many are reached, and how many reach Kafka. Both fall: the network. The second alone: Kafka.",
              (f"sum(up{{job=\"tidegate\", {COUNTED}}})", "reached"), (f"sum({of('tidegate_forward_broker_up')})", "with Kafka")),
        panel("Rejected a second", "Requests refused, the ten gateways with most. One alone: open it and see the reasons. All at once: what was "
              "rolled out to the senders?", (f"topk(10, {of('instance:tidegate_ingest_rejected:rate5m')} > 0) or on() vector(0)", "{{instance}}"),
              unit="reqps"),
        panel("Versions", "Two at once are fine while you upgrade.", ("count by (version) (tidegate_build_info)", "{{version}}"), stacked=True),
        panel("Commit, all gateways", "A second band far above the first: some disks are slow; the table of the slowest names them. Not narrowed "
              "by site.", "fleet:tidegate_wal_commit_seconds_bucket:rate5m", kind="heatmap", unit="s", low=None, width=12),
        panel("Delivery, all gateways", "From receipt to Kafka's acknowledgement. A band that climbs by a minute each minute is an outage that "
              "ends. Not narrowed by site.", "fleet:tidegate_forward_delivery_seconds_bucket:rate5m", kind="heatmap", unit="s", low=None,
              width=12),
    ]),
    ("Where to look first", [
        worst("Until full", "The twenty that are full first. Red: runbook disk-filling, now.",
              f"bottomk(20, {of('instance:tidegate_wal_full:seconds')})", unit="s", colors=TIME_LEFT),
        worst("Oldest record", "The twenty that are furthest behind. Runbook kafka-away.",
              f"topk(20, {of('tidegate_wal_oldest_record_age_seconds')})", unit="s", colors=AGE),
        worst("Commit, p99", "The twenty slowest. Above 0.5 s: runbook commit-latency.",
              f"topk(20, {of('instance:tidegate_wal_commit_seconds:p99_5m')})", unit="s",
              colors=steps((GREEN, None), (YELLOW, 0.5), (RED, 5))),
        worst("Dead letters kept", "The twenty with most. Any: runbook dead-letters.", f"topk(20, {of('tidegate_dead_letters')})",
              colors=WARN_ABOVE_0),
        worst("Held records kept", "The twenty with most. Any: runbook held-topics.", f"topk(20, {of('tidegate_held_records')})",
              colors=WARN_ABOVE_0),
        worst("Damaged records", "The twenty with most. Any: runbook corruption-found.", f"topk(20, {of('tidegate_wal_damaged_records')})",
              colors=BAD_ABOVE_0),
        worst("Lander behind", "The twenty landers that are furthest behind, in time at their pace. Runbook lander-lag.",
              "topk(20, instance:tidegate_land_lag:seconds)", unit="s", colors=AGE),
        worst("Clock off", "The twenty whose clock is furthest from Prometheus's. Above 30 s: runbook clock-off.",
              f"topk(20, abs({of('instance:tidegate_clock:offset_seconds')}))", unit="s", colors=steps((GREEN, None), (YELLOW, 30))),
        worst("Memory", "The twenty that take most. Grows for hours: it is a fault of ours: report it.", f"topk(20, {of('process_resident_memory_bytes')})",
              unit="bytes"),
        worst("Alerts", "What fires now; each alert's own runbook_url says what to do. Empty is good.",
              'count by (alertname, severity, site, instance) (ALERTS{alertname=~"Tidegate.*", alertstate="firing"})'),
        worst("Gateways that are away", "Prometheus does not reach these. Empty is good. Runbook gateway-down.",
              f'up{{job=~"tidegate.*", {COUNTED}}} == 0', colors=UP),
        worst("Certificates that end", "The twenty that end first. Below 14 days: runbook certificate-expires. Empty without TLS.",
              f"bottomk(20, {of('tidegate_http_certificate_expiry_timestamp_seconds')} - time())", unit="s",
              colors=steps((RED, None), (YELLOW, 2 * 86400), (GREEN, 14 * 86400)), low=None),
    ]),
]

SITE = 'label_values(tidegate_build_info, site)'
MADE = {
    "gateway": dashboard(
        "tidegate-gateway", "tidegate: gateway", "One gateway, and the landers of its site. From the top: now, then why.",
        [variable("site", "Site", SITE, False),
         variable("instance", "Gateway", 'label_values(tidegate_wal_committed_sequence{site=~"$site"}, instance)', False),
         variable("lander", "Landers", 'label_values(tidegate_land_broker_up{site=~"$site"}, instance)', True)], GATEWAY),
    "fleet": dashboard(
        "tidegate-fleet", "tidegate: fleet", "All gateways of all sites. From the top: how many, since when, which.",
        [variable("site", "Sites", SITE, True),
         variable("instance", "Gateways", 'label_values(tidegate_wal_committed_sequence{site=~"$site"}, instance)', True)], FLEET),
}

if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    for name, made in MADE.items():
        (folder / f"{name}.json").write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")
