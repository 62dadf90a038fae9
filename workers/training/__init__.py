"""Training that a job may do: heads of a pair, or a fresh adapter. Seeded, resumable, watched."""
