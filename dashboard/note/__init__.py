"""A note that is kept while it is written, and is reached and left by keys."""
