"""Copies a registry that may be in use, as its operator would for a backup.

    backup.py REGISTRY COPY
"""

import sqlite3
import sys

registry = sqlite3.connect(sys.argv[1])
registry.execute("VACUUM INTO ?", (sys.argv[2],))
