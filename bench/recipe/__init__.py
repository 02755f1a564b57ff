"""The recipe study: which pre-training recipe gives the best few-shot probes? python -m bench.recipe"""
