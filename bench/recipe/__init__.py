"""The recipe study: compare pre-training hyperparameters by few-shot probes. python -m bench.recipe"""
