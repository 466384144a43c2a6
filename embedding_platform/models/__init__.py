"""Read a model family and describe it to a runtime. One module per family.

A family module holds CODE_VERSION (raise it when a change here changes a vector), POOLINGS
(for each way from states to a vector one sentence: what the vector is, and the source; ""
is the usual one), FILES (what its folder must hold beside config.json and weights, each a
tuple of alternatives) and `load(folder, pooling)`, which returns a `Network`. One whose
models run behind a server sets REMOTE and holds `connect` in place of `load`. Families
import torch and transformers inside functions, so that fingerprints cost no such import.
"""
