"""scripts/bench: aiofs beside the raw image, qemu-storage-daemon and nbdfuse, in one interleaved run.

workloads.py says what fio does, targets.py on what, run.py in which order; results.py turns cells into
ratios and compares them with the goals; report.py and chart.py show them; costs.py measures the idle mount.
"""
