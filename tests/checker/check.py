"""Reads what a relay has stored, with pyarrow, sqlite3 and nothing of ours, and says whether the promise was kept.

    check.py RECORDS [DEVICE_LOGS]

RECORDS is the folder with `samples` and `gaps`; `registry.db` beside it, if there, adds the dead letters and what the
relay claims to have. DEVICE_LOGS is what the simulated devices saw. One JSON document on stdout: per satellite and
epoch, and in all, what is stored, explained, set aside, lost, duplicated, unexpected, altered, out of order.

A number that an epoch gave is exactly one of: a sample, a gap, in a dead letter, or in the loss that a gap tells of.
"""

import bisect
import collections
import datetime
import json
import pathlib
import sqlite3
import sys

import pyarrow.parquet as pq

# How far a gap's slots may stand from the moment at which a device was asked.
SLACK_MS = 2_500
EXAMPLES = 5


def ms(value):
    if value is None:
        return None
    if isinstance(value, datetime.datetime):
        if value.tzinfo is None:
            value = value.replace(tzinfo=datetime.timezone.utc)
        since = value - datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
        return (since.days * 86_400 + since.seconds) * 1_000 + since.microseconds // 1_000
    return int(value)


def rows(folder):
    for path in sorted(pathlib.Path(folder).rglob("*.parquet")):
        # ParquetFile, so that the folders' names add no columns: the file must say everything itself.
        for row in pq.ParquetFile(path).read().to_pylist():
            row["file"] = str(path)
            yield row


def labels(row):
    value = row["labels"] or []
    pairs = value.items() if isinstance(value, dict) else value
    return tuple(sorted((name, text) for name, text in pairs))


def count_within(sorted_numbers, first, last):
    return bisect.bisect_right(sorted_numbers, last) - bisect.bisect_left(sorted_numbers, first)


def merged(ranges):
    whole = []
    for first, last in sorted(tuple(pair) for pair in ranges):
        if whole and first <= whole[-1][1] + 1:
            whole[-1][1] = max(whole[-1][1], last)
        else:
            whole.append([first, last])
    return whole


def read_registry(path):
    """The dead letters' spans, and the spans that the relay claims to have, by satellite and epoch."""
    letters, claims = collections.defaultdict(list), {}
    if path.is_file():
        with sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=30) as registry:
            for satellite, epoch, first, last in registry.execute("SELECT satellite, epoch, first_seq, last_seq FROM dead_letters"):
                letters[satellite, epoch].append((first, last))
            for satellite, epoch, spans in registry.execute("SELECT satellite, epoch, spans FROM streams"):
                claims[satellite, epoch] = merged((span[0], span[1]) for span in json.loads(spans))
    return letters, claims


def without(ranges, numbers):
    """How many of these ranges' numbers are not among the sorted numbers."""
    return sum(last - first + 1 - count_within(numbers, first, last) for first, last in ranges)


def check_numbers(samples, gaps, letters, claims):
    """Per satellite and epoch: every number from 1 is there once, set aside, or told lost; and the relay knows it."""
    records = collections.defaultdict(list)
    explained = collections.Counter()
    lost = collections.defaultdict(list)
    stored = collections.Counter((row["satellite"], row["epoch"]) for row in samples)
    for row in samples + gaps:
        records[row["satellite"], row["epoch"]].append(row["seq"])
    for row in gaps:
        explained[row["satellite"], row["lost_epoch"] or row["epoch"]] += row["count"]
        if row["lost_epoch"]:
            lost[row["satellite"], row["lost_epoch"]].append((row["lost_first_seq"], row["lost_last_seq"]))
    epochs = []
    for key in sorted(set(records) | set(lost) | set(letters)):
        have = sorted(records[key])
        unique = sorted(set(have))
        aside = merged(letters[key])
        told = merged(lost[key])
        covered = merged([(n, n) for n in unique] + aside + told)
        last = covered[-1][1]
        epochs.append(
            {
                "satellite": key[0],
                "epoch": key[1],
                "stored": stored[key],
                "explained": explained[key],
                "set_aside": sum(end - first + 1 for first, end in aside),
                "last_seq": last,
                "lost": last - sum(end - first + 1 for first, end in covered),
                "duplicated": len(have) - len(unique) + sum(count_within(unique, first, end) for first, end in aside),
                "unexpected": sum(n < 1 for n in unique),
                "told_lost": without(told, unique),
                "claims_differ": int(claims.get(key, covered) != covered),
            }
        )
    return epochs


def check_device(log, samples, gaps):
    """What a device was asked is stored once, unaltered, in order, or lies in a gap."""
    device = log["device"]
    ticks = sorted(
        ((ms(row["time"]), row["value"]) for row in samples if row["device"] == device and row["name"].startswith("device_tick")),
    )
    echoes = {}
    doubled_echoes = 0
    for row in samples:
        if row["device"] == device and row["name"] == "device_echo":
            doubled_echoes += row["value"] in echoes
            echoes[row["value"]] = ms(row["time"])
    answered = {float(r["tick"]): r["wall_ms"] for r in log["requests"] if r["tick"] is not None}
    spans = [(ms(g["from"]) - SLACK_MS, ms(g["to"]) + SLACK_MS) for g in gaps if g["device"] in (device, None, "")]

    def explained(wall_ms):
        return any(first <= wall_ms <= last for first, last in spans)

    stored = collections.Counter(value for _, value in ticks)
    lost = [r for r in log["requests"] if (r["tick"] is None or float(r["tick"]) not in stored) and not explained(r["wall_ms"])]
    echo_of = {tick * 1.25 + 0.1: tick for tick in answered}
    tick_times = {value: time for time, value in ticks}
    torn = [e for e, time in echoes.items() if e in echo_of and tick_times.get(echo_of[e], time) != time]
    missed = collections.Counter()
    for gap in gaps:
        if gap["device"] == device and gap["metric"] in (None, "", "device_tick"):
            missed[gap["reason"]] += gap["count"]
    late = [abs(time - answered[value]) for time, value in ticks if value in answered]
    return {
        "device": device,
        "requests": len(log["requests"]),
        "answers": len(answered),
        "stored": len(stored),
        "lost": len(lost),
        "lost_examples": lost[:EXAMPLES],
        "duplicates": sum(n - 1 for n in stored.values()) + doubled_echoes,
        "unexpected": sum(value not in answered for value in stored) + sum(e not in echo_of for e in echoes),
        "altered": len(torn),
        "out_of_order": sum(a[1] > b[1] for a, b in zip(ticks, ticks[1:])),
        "missed": dict(missed),
        "time_off_max_ms": max(late, default=0),
    }


def main():
    records = pathlib.Path(sys.argv[1])
    samples = list(rows(records / "samples"))
    gaps = list(rows(records / "gaps"))
    logs = json.loads(pathlib.Path(sys.argv[2]).read_text()) if len(sys.argv) > 2 else []
    epochs = check_numbers(samples, gaps, *read_registry(records.parent / "registry.db"))
    devices = [check_device(log, samples, gaps) for log in logs]
    reasons = collections.Counter()
    for gap in gaps:
        reasons[gap["reason"]] += gap["count"]
    satellites = {}
    for name in sorted({e["satellite"] for e in epochs}):
        mine = [e for e in epochs if e["satellite"] == name]
        satellites[name] = {
            "epochs": len(mine),
            "stored": sum(s["satellite"] == name for s in samples),
            "explained": sum(g["count"] for g in gaps if g["satellite"] == name),
        }
    verdict = {
        "stored": len(samples),
        "explained": sum(s["explained"] for s in satellites.values()),
        "gaps": len(gaps),
        "duplicates": sum(e["duplicated"] for e in epochs) + sum(d["duplicates"] for d in devices),
        "unexpected": sum(e["unexpected"] for e in epochs) + sum(d["unexpected"] for d in devices),
        "altered": sum(d["altered"] for d in devices),
        "out_of_order": sum(d["out_of_order"] for d in devices),
        "set_aside": sum(e["set_aside"] for e in epochs),
        "claims_differ": sum(e["claims_differ"] for e in epochs),
        "lost": sum(e["lost"] for e in epochs) + sum(d["lost"] for d in devices),
        "reasons": dict(reasons),
        "names": sorted({s["name"] for s in samples}),
        "satellites": satellites,
        "epochs": epochs,
        "devices": devices,
    }
    json.dump(verdict, sys.stdout, indent=1, default=str)


main()
