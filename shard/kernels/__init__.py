"""Loops of the sharder that numba compiles, and building blocks of such loops."""
