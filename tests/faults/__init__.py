"""Faults of machines and users, injected into build, train, probe and report.

After a fault, nothing is lost or half-written, the error is one line, and the same command ends as if nothing had
happened. FAULTS=all (make faults) tries every fault on every command and writes docs/faults.md; by default the tests
try a few.
"""
