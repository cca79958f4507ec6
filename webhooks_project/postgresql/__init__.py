"""Django's PostgreSQL backend for the embedded server: it runs before anybody connects."""
