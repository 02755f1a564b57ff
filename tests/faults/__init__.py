"""Faults of machines and people against build, train, probe and report: nothing lost, nothing half-written, one clear
line, and the same command again ends as if nothing had been. FAULTS=all (make faults) tries every fault on every
command and writes docs/faults.md; the tests try a few."""
