"""From a stream of segments to a stream of vectors."""
