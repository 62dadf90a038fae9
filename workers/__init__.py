"""The Celery worker: claims a job, runs the conversion engine, publishes to the Hub and settles the job."""
