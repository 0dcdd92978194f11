"""From tables of one or many cases to what is drawn."""
