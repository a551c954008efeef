"""Reads what a relay has stored, with pyarrow and nothing of ours, and says whether the promise was kept.

    check.py RECORDS [DEVICE_LOGS]

RECORDS is the folder with `samples` and `gaps`. DEVICE_LOGS is what the simulated devices saw. One JSON document on
stdout: per satellite and in all, what is stored, explained, duplicated, unexpected, altered, lost, out of order.
"""

import bisect
import collections
import datetime
import json
import pathlib
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
    for first, last in sorted(ranges):
        if whole and first <= whole[-1][1] + 1:
            whole[-1][1] = max(whole[-1][1], last)
        else:
            whole.append([first, last])
    return whole


def check_numbers(samples, gaps):
    """Per satellite and epoch: every number from 1 is there once, or was told lost."""
    numbers = collections.defaultdict(list)
    lost = collections.defaultdict(list)
    for row in samples:
        numbers[row["satellite"], row["epoch"]].append(row["seq"])
    for row in gaps:
        numbers[row["satellite"], row["epoch"]].append(row["seq"])
        if row["lost_epoch"]:
            lost[row["satellite"], row["lost_epoch"]].append((row["lost_first_seq"], row["lost_last_seq"]))
    epochs = []
    for key in sorted(set(numbers) | set(lost)):
        have = sorted(numbers[key])
        unique = sorted(set(have))
        told = merged(lost[key])
        last = max(unique[-1:] + [range_last for _, range_last in told])
        in_lost = sum(count_within(unique, first, range_last) for first, range_last in told)
        told_lost = sum(range_last - first + 1 for first, range_last in told)
        epochs.append(
            {
                "satellite": key[0],
                "epoch": key[1],
                "records": len(have),
                "last_seq": last,
                "duplicates": len(have) - len(unique),
                "told_lost": told_lost - in_lost,
                "lost_but_stored": in_lost,
                "holes": last - len(unique) - (told_lost - in_lost),
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
        "time_off_max_ms": max(late, default=0),
    }


def main():
    records = pathlib.Path(sys.argv[1])
    samples = list(rows(records / "samples"))
    gaps = list(rows(records / "gaps"))
    logs = json.loads(pathlib.Path(sys.argv[2]).read_text()) if len(sys.argv) > 2 else []
    epochs = check_numbers(samples, gaps)
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
        "duplicates": sum(e["duplicates"] for e in epochs) + sum(d["duplicates"] for d in devices),
        "unexpected": sum(d["unexpected"] for d in devices),
        "altered": sum(d["altered"] for d in devices),
        "out_of_order": sum(d["out_of_order"] for d in devices),
        "lost": sum(e["holes"] for e in epochs) + sum(d["lost"] for d in devices),
        "reasons": dict(reasons),
        "names": sorted({s["name"] for s in samples}),
        "satellites": satellites,
        "epochs": epochs,
        "devices": devices,
    }
    json.dump(verdict, sys.stdout, indent=1, default=str)


main()
