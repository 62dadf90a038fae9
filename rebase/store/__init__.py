"""All SQL: tables, repositories, outbox, scheduler and secrets; shared by service and workers. No torch."""
