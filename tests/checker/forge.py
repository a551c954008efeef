"""Writes records as a relay would, with one fault, and the log of the device that they came from.

    forge.py FOLDER FAULT

FAULT is `none`, `lost`, `explained`, `evicted`, `set_aside`, `duplicate`, `unexpected`, `altered`, `hole`, `aside_twice`
or `claims`. For testing the checker.
"""

import datetime
import json
import pathlib
import sqlite3
import sys

import pyarrow
import pyarrow.parquet

folder, fault = pathlib.Path(sys.argv[1]), sys.argv[2]
start = 1_790_000_000_000
count = 20
requests = [{"wall_ms": start + n * 1000, "tick": 5_000_000 + n} for n in range(count)]
samples = []
for n, request in enumerate(requests):
    for name, value in (("device_tick", float(request["tick"])), ("device_echo", request["tick"] * 1.25 + 0.1)):
        samples.append({"time": start + n * 1000, "device": "plug", "name": name, "value": value, "seq": len(samples) + 1})
gaps = []
if fault in ("lost", "explained", "evicted", "hole"):
    gone = samples[20:22]
    del samples[20:22]
    if fault != "hole":
        for later in samples[20:]:
            later["seq"] -= 0 if fault == "evicted" else 2
    if fault in ("explained", "evicted"):
        gap = {"from": gone[0]["time"], "to": gone[0]["time"], "device": "plug", "count": 2, "reason": "timeout", "seq": samples[-1]["seq"] + 1}
        if fault == "evicted":
            gap |= {"reason": "evicted", "device": None, "lost_epoch": "e" * 32, "lost_first_seq": 21, "lost_last_seq": 22}
        gaps.append(gap)
if fault == "duplicate":
    samples.append(samples[4])
if fault == "unexpected":
    samples[2]["value"] = 77.0
if fault == "altered":
    samples[10]["value"], samples[12]["value"] = samples[12]["value"], samples[10]["value"]


def moment(ms):
    return datetime.datetime.fromtimestamp(ms / 1000, datetime.timezone.utc)


def write(table, rows, times, more):
    path = folder / "records" / table / "date=2026-09-21" / "hour=14" / "one.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = [(name, pyarrow.timestamp("ms", "UTC")) for name in times] + more
    columns = {}
    for name, kind in fields:
        values = [row.get(name) for row in rows]
        columns[name] = pyarrow.array([moment(v) for v in values] if name in times else values, kind)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


for row in samples + gaps:
    row |= {"satellite": "st_a", "epoch": "e" * 32}
text, number = pyarrow.string(), pyarrow.uint64()
both = [("satellite", text), ("device", text), ("epoch", text), ("seq", number)]
labels = [("labels", pyarrow.map_(text, text))]
write("samples", samples, ["time"], both + labels + [("name", text), ("value", pyarrow.float64())])
lost = [("lost_epoch", text), ("lost_first_seq", number), ("lost_last_seq", number)]
write("gaps", gaps, ["from", "to"], both + lost + [("count", number), ("reason", text), ("metric", text)])

# What a registry says of these records: all of them, in one span, and a dead letter where two samples were.
told = len(samples) + len(gaps) + (2 if fault == "evicted" else 0)
with sqlite3.connect(folder / "registry.db") as registry:
    registry.execute("CREATE TABLE dead_letters (satellite, epoch, first_seq, last_seq)")
    registry.execute("CREATE TABLE streams (satellite, epoch, spans)")
    if fault in ("set_aside", "aside_twice"):
        registry.execute("INSERT INTO dead_letters VALUES ('st_a', ?, ?, ?)", ("e" * 32, told + 1, told + 2))
        told += 2
    if fault == "aside_twice":
        registry.execute("INSERT INTO dead_letters VALUES ('st_a', ?, 7, 8)", ("e" * 32,))
    if fault == "claims":
        told += 1
    if fault not in ("hole", "duplicate"):
        registry.execute("INSERT INTO streams VALUES ('st_a', ?, ?)", ("e" * 32, json.dumps([[1, told, 0, told]])))
(folder / "log.json").write_text(json.dumps([{"device": "plug", "requests": requests}]))
