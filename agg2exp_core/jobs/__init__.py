"""Work started by the dashboard, run by another process."""
