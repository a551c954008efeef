"""Reads the same Parquet files with pyarrow, DuckDB and Polars as their users would, and prints what each found.

    readers.py RECORDS

Each must need no help: no schema, no option. One JSON document: per reader, rows, sum of values, devices, epochs.
"""

import json
import math
import pathlib
import sys

import duckdb
import polars
import pyarrow.compute
import pyarrow.dataset

records = pathlib.Path(sys.argv[1])
samples = str(records / "samples" / "**" / "*.parquet")


def finite(values):
    return math.fsum(v for v in values if v is not None and math.isfinite(v))


def with_pyarrow():
    table = pyarrow.dataset.dataset(records / "samples", format="parquet", partitioning="hive").to_table()
    return {
        "rows": table.num_rows,
        "sum": finite(table["value"].to_pylist()),
        "devices": sorted(set(table["device"].to_pylist())),
        "epochs": len(set(table["epoch"].to_pylist())),
        "cpu_modes": sorted({dict(l).get("mode") for n, l in zip(table["name"].to_pylist(), table["labels"].to_pylist()) if n == "node_cpu_seconds_total"}),
    }


def with_duckdb():
    ask = duckdb.connect().execute
    rows = ask(f"SELECT count(*), count(DISTINCT epoch) FROM read_parquet('{samples}', hive_partitioning = true)").fetchall()[0]
    values = ask(f"SELECT value FROM read_parquet('{samples}')").fetchall()
    devices = ask(f"SELECT DISTINCT device FROM read_parquet('{samples}') ORDER BY 1").fetchall()
    modes = ask(
        f"SELECT DISTINCT labels['mode'] FROM read_parquet('{samples}') WHERE name = 'node_cpu_seconds_total' ORDER BY 1"
    ).fetchall()

    def text(value):
        return value[0] if isinstance(value, list) else value

    return {
        "rows": rows[0],
        "sum": finite(v for (v,) in values),
        "devices": [d for (d,) in devices],
        "epochs": rows[1],
        "cpu_modes": [text(m) for (m,) in modes],
    }


def with_polars():
    def as_dict(labels):
        # Polars before 2 gives a map as a list of entries.
        return labels if isinstance(labels, dict) else {entry["key"]: entry["value"] for entry in labels}

    frame = polars.scan_parquet(samples, hive_partitioning=True).collect()
    cpu = frame.filter(polars.col("name") == "node_cpu_seconds_total")["labels"].to_list()
    return {
        "rows": frame.height,
        "sum": finite(frame["value"].to_list()),
        "devices": sorted(frame["device"].unique().to_list()),
        "epochs": frame["epoch"].n_unique(),
        "cpu_modes": sorted({as_dict(labels).get("mode") for labels in cpu}),
    }


json.dump({"pyarrow": with_pyarrow(), "duckdb": with_duckdb(), "polars": with_polars()}, sys.stdout, indent=1)
