"""Django's PostgreSQL backend, for a pool whose server may restart at any time."""
