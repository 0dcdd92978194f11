"""Files on disk and the SQL views over them."""
