"""Generated requests against the API as it runs: `make test-contract`."""
