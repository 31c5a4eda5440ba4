"""Who is served first: key functions, and queues with a memory of their own."""
