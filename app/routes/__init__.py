"""The routes of the server, one subject a file: reads the snapshot that is served, publishes nothing."""
