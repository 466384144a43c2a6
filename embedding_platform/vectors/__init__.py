"""Keep vectors in immutable Parquet shards, and judge them."""
