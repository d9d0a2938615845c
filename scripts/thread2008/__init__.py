"""scripts/claims: what was said of AIO in the review of a QEMU patch in 2008, measured on this machine.

cells.py says what is run beside a plan of `aiofs bench`, lab.py runs both on temporary files, claims.py turns
the numbers into a sentence and a verdict for each claim; __main__.py is the command line.
"""
