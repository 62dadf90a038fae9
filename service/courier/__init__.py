"""The courier: a process of its own that delivers callbacks, so that no receiver delays a job."""
