"""Django's PostgreSQL backend, for a pool whose server may restart at any time.

May import `webhooks_project.engines`, to say how embedded engines are started.

Promises: a pooled connection that the server has closed is replaced before it is handed out.
"""
