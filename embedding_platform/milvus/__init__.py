"""Schema, sync, index, alias and verification of Milvus collections."""
