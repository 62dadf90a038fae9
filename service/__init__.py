"""The HTTP API: requests become job records and notifications. Imports no tensor library."""
