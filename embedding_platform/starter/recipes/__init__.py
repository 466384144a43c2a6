"""How each starter model is built, trained and measured: one file per architecture."""
