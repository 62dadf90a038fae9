"""What the service and the workers share: settings, tables, job states, queue client, errors, logs. No torch."""
