"""Estimate hours, cores, GPUs, disk and memory for a whole archive: python -m bench.plan"""
