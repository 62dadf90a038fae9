"""What people type and import: the command line and a small typed HTTP client."""
