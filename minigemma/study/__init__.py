"""What hidden states keep of their token, and what per-layer embeddings do."""
