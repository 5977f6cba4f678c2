"""The workshop: a Celery task that supervises one fresh runner process per job."""
