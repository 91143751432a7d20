"""The application of the stack that tidegate replaces: a form goes to Kafka as JSON, by a producer made for the request.

With ONE_PRODUCER set each process keeps one producer instead: what the old stack could have been. In both it waits for
Kafka before it answers OK, which is more than it had to.
"""

import os
from json import dumps

from flask import Flask, request
from kafka import KafkaProducer

SOURCES = ("identity_pro", "financial_pro", "internet_pro", "social_pro", "trip_pro", "communication_pro")

app = Flask(__name__)
kept = None


def make():
    return KafkaProducer(bootstrap_servers=os.environ["KAFKA"], value_serializer=lambda value: dumps(value).encode())


@app.route("/<source>", methods=["GET", "POST"])
def produce(source):
    global kept
    if source not in SOURCES:
        return "", 404
    if request.method != "POST":
        return "Methods Error", 405
    if os.environ.get("ONE_PRODUCER"):
        kept = kept or make()
        kept.send(source, request.form.to_dict()).get(timeout=30)
        return "OK"
    producer = make()
    producer.send(source, request.form.to_dict()).get(timeout=30)
    producer.close()
    return "OK"
