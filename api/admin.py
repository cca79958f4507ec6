"""Keys of the API in the admin."""
