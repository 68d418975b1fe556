"""A Python program at work, by the same commands as at_command.h: an operation writes a record as JSON and reads it."""

import json
import os
import sys
import time


def operate(count):
    record = {
        "id": count,
        "name": f"name {count}",
        "tags": [f"tag {count % 97} {index}" for index in range(8)],
        "note": "a note of some length " * 30,
    }
    return len(json.loads(json.dumps(record))["tags"])


def work(seconds):
    start = time.monotonic()
    count = 0
    while time.monotonic() < start + seconds:
        operate(count)
        count += 1
    return (time.monotonic() - start) / count * 1e9


print("ready", os.getpid(), flush=True)
for line in sys.stdin:
    print(f"{work(float(line)):.2f}", flush=True)
