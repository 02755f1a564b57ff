"""Run and measure every step on a synthetic archive as large as CheXpert: python -m bench.archive"""
