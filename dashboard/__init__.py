"""The browser front door."""
