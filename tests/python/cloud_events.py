"""Posts events to a topic's URL with the CloudEvents SDK, as its documentation shows: one in binary mode, one structured."""

import sys
from datetime import datetime, timezone

import requests
from cloudevents.core.bindings.http import to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent

for message_of, number in [(to_binary_event, 1), (to_structured_event, 2)]:
    event = CloudEvent(
        attributes={
            "type": "com.example.level",
            "source": "/pumps/7",
            "id": str(number),
            "time": datetime(2026, 5, 1, 12, 34, 56, tzinfo=timezone.utc),
            "subject": 'Zürich "North" 100 %',
            "datacontenttype": "application/json",
            "partitionkey": "pump-7",
        },
        data={"level": 17.5, "unit": "mm"},
    )
    message = message_of(event)
    answer = requests.post(sys.argv[1], data=message.body, headers=message.headers, timeout=30)
    print(answer.status_code, answer.text)
    answer.raise_for_status()
