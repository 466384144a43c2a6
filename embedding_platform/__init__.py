"""Keeps Milvus vector collections true to a growing lake of raw media."""
