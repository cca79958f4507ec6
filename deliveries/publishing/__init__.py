"""Published: an event and its deliveries are recorded in the caller's own transaction."""
