"""scripts/check --mutants: the tests are tested.

table.py lists versions of aiofs with one rule broken each, and the test that must catch it; tree.py makes
such a version and runs the test in it; __main__.py is the command line and the verdict.
"""
