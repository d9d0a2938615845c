"""scripts/check --sanitize: the data plane without Python, under sanitizers and valgrind; and what is fuzzed.

The programs are tests/harness/: a fake kernel that checks every byte, and fuzz targets. build.py compiles
them, harness.py runs the one and fuzz.py the others; ledgers.py fuzzes what the control plane reads of a
mount's memory file; __main__.py is the command line.
"""
