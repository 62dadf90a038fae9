"""The HTTP side: request → job record → doorbell. Imports no tensor library."""
