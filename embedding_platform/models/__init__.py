"""Load a model family and embed a batch. One module per family.

A family module holds CODE_VERSION (raise it when a change here changes a vector), POOLING
(one sentence: what the vector is, and the source), FILES (what its folder must hold beside
config.json and weights, each a tuple of alternatives) and `load(folder, device, dtype)`. It
imports torch and transformers inside functions, so that fingerprints cost no such import.
"""
