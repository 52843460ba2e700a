"""Fuzzing, by three roads: files whose bytes are changed, values on every engine, and sequences of calls.

`python -m tests.fuzz --minutes 10` runs it from the root of the repository;
`tests/robustness/test_fuzz.py` runs a fixed part of it.
"""
