"""Which network ports serve which GPUs of a node, and what NVLink joins, from captures. Pure."""
