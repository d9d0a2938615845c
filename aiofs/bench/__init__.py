"""`aiofs bench IMAGE`: which driver is the fastest for this image on this machine, and does `auto` know it?

arguments.py reads the words, plan.py says what runs in which order, image.py and scratch.py open what it
runs on, run.py runs it through the data plane's queue (no FUSE), order.py looks at how sequential writes
arrived; results.py holds the numbers, verdict.py judges them, report.py and plot.py show them; command.py
holds it together.
"""
