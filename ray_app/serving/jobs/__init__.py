"""Jobs of the endpoint: records, queue, store, webhooks."""
