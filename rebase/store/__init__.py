"""What the service and the workers share: settings, tables, jobs, queue client, errors, logs. No torch."""
